"""Images of any number of channels: a prior that sees them in groups of as many as its network takes.

Whole groups are images to the network. A channel that is left over, such as the one of a grey image with an
RGB network, is shown to it n times. Copies alone would not do: their noise is one and the same, which no
network has seen, and as strong in their mean as in each, where noise of its own in each would average out.
So the copies x/a = x₀ + (s/a) z are given the noise that they lack, in the directions in which they differ,
and are shown as what they then are: a grey image with independent noise of √n s/a in each channel, the mean
of which is s/a. The prediction's mean over the channels is E[x₀ | x] for a network that knows grey images.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kintsugi.priors.base import ClassConditional, Parametrization, Prior, data_prediction
from kintsugi.priors.paths import Path


class Grouped:
    """A prior for images (B, C, H, W) of any number of channels by one for images of n.

    Channels 1 … n are a group, and so on; each of those left over, fewer than n, is one by itself. Every
    group takes an evaluation of the network. The noise that copies are given depends on nothing but their
    size, so that a prediction is a smooth function of the image alone.

    Args:
        prior: what predicts the groups; stays at hand as `prior`. channels: n.

    Attributes:
        classes, label, labels: as in `priors.base.ClassConditional`; None where the prior knows no classes.
    """

    def __init__(self, prior: Prior, channels: int):
        self.prior, self.channels = prior, channels
        self.path: Path = prior.path
        self.parametrization: Parametrization = prior.parametrization
        self._conditional = prior if isinstance(prior, ClassConditional) else None

    @property
    def classes(self) -> int | None:
        """How many the network knows."""
        return None if self._conditional is None else self._conditional.classes

    @property
    def label(self) -> int | None:
        """The class of all images, where one was given."""
        return None if self._conditional is None else self._conditional.label

    @property
    def labels(self) -> Tensor | None:
        """The class of each image, (B,) int64, or None."""
        return None if self._conditional is None else self._conditional.labels

    @labels.setter
    def labels(self, labels: Tensor | None) -> None:
        """For the calls that follow; of a prior that knows no classes there are none."""
        if self._conditional is not None:
            self._conditional.labels = labels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        whole = x.shape[1] // self.channels * self.channels
        groups = torch.split(x[:, :whole], self.channels, 1) if whole else ()
        outputs = [self.prior(group, t) for group in groups]
        if whole < x.shape[1]:
            shift = shift_of(self.path, self.parametrization, self.channels, t)
            outputs += [self.alone(plane, shift) for plane in torch.split(x[:, whole:], 1, 1)]
        return torch.cat(outputs, 1)

    def alone(self, plane: Tensor, shift: "Shift") -> Tensor:
        """The output for one channel (B, 1, H, W), from copies of it."""
        scale, noise, kept, gain = (
            value.to(plane).view(-1, 1, 1, 1) for value in (shift.scale, shift.noise, shift.kept, shift.gain)
        )
        extra = differences(self.channels, *plane.shape[2:]).to(plane)
        u = self.prior(scale * plane + noise * extra, shift.time.to(plane))
        return kept * plane + gain * u.mean(1, keepdim=True)


@dataclass(frozen=True)
class Shift:
    """From a plane x at times t to n copies of it at later ones, and back: each (B,) float64.

    The network sees `scale` x, and noise of deviation `noise` in the directions in which copies differ, at
    `time`; the output is `kept` x + `gain` times the mean of the network's.
    """

    time: Tensor
    scale: Tensor
    noise: Tensor
    kept: Tensor
    gain: Tensor


def shift_of(path: Path, parametrization: Parametrization, copies: int, t: Tensor) -> Shift:
    """To the noise level that is √copies times that at t, or to the last of the path."""
    t = t.detach().to("cpu", torch.float64)
    a, s = path.a(t), path.s(t)
    ratio = copies**0.5 * s
    time = path.time_of(torch.log(a) - torch.log(ratio))
    noise = path.s(time)
    # At the path's end there is no such level; the mean's noise must not be more than the network expects.
    scale = torch.where(time == path.noise_time, noise / ratio, path.a(time) / a)
    p, q = data_prediction(path, parametrization, t)
    p_there, q_there = data_prediction(path, parametrization, time)
    return Shift(time, scale, noise, kept=(p_there * scale - p) / q, gain=q_there / q)


@lru_cache(maxsize=4)
def differences(copies: int, height: int, width: int) -> Tensor:
    """Standard normal noise (1, copies, H, W), less its mean over the copies; always the same."""
    noise = np.random.default_rng(0).standard_normal((1, copies, height, width))
    return torch.from_numpy(noise - noise.mean(1, keepdims=True))


def grouped(prior: Prior, channels: int | None, of_images: int) -> Prior:
    """The prior for images of so many channels; itself if it takes these. channels: its own, None for any."""
    return prior if channels in (None, of_images) else Grouped(prior, channels)


def said(channels: int | None, of_images: int) -> str:
    """How a network sees images of another number of channels, in words; nothing where it takes them."""
    if channels in (None, of_images):
        return ""
    whole, left = divmod(of_images, channels)
    parts = [f"{whole} × {channels} together" if channels > 1 else "each by itself"] if whole else []
    if left:
        alone = "" if of_images == 1 else "1 by itself, " if left == 1 else f"{left} each by itself, "
        parts.append(f"{alone}shown {channels} times with different noise, and averaged")
    return (
        f"{of_images} channel{'s' if of_images > 1 else ''} by a network for {channels}: {'; '.join(parts)}"
    )
