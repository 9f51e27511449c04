"""Images of any number of channels: a prior that sees them in groups of as many as its network takes.

Whole groups are images to the network. The k channels that are left over, fewer than its n, are one more
group: they are shown as n channels M x₀, one as copies, of two the mean between them, so that equal channels
stay equal. Mx alone would not do: its noise is that of k channels, which no network has seen, and of copies
as strong in their mean as in each, where noise of its own in each would average out. As MᵀM = (n/k) I,
Mx/a = Mx₀ + (s/a) Mz has noise of √(n/k) s/a in every direction of M. It is given the same in the others, and
shown as what it then is: an image with independent noise of √(n/k) s/a in each channel, which says of x₀ what
x says. M⁺ of the prediction is E[x₀ | x] for a network that knows images M x₀.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from kintsugi.errors import SpecError
from kintsugi.numerics import cosines
from kintsugi.priors.base import (
    ClassConditional,
    Described,
    Parametrization,
    Prior,
    autoencoder_of,
    data_prediction,
)
from kintsugi.priors.paths import Path


class Grouped:
    """A prior for images (B, C, H, W) of any number of channels by one for images of n.

    Channels 1 … n are a group, and so on; those left over, fewer than n, are one. Every group takes an
    evaluation of the network. The noise that is given to fewer than n depends on nothing but their size, so
    that a prediction is a smooth function of the image alone.

    Args:
        prior: what predicts the groups; stays at hand as `prior`. channels: n.

    Attributes:
        classes, label, labels: as in `priors.base.ClassConditional`; None where the prior knows no classes.
    """

    def __init__(self, prior: Prior, channels: int):
        self.prior, self.channels = prior, channels
        self.path: Path = prior.path
        self.parametrization: Parametrization = prior.parametrization
        self.sha256: str | None = getattr(prior, "sha256", None)
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
            outputs.append(self.spread(x[:, whole:], t))
        return torch.cat(outputs, 1)

    def spread(self, x: Tensor, t: Tensor) -> Tensor:
        """The output for fewer channels than the network takes, (B, k, H, W)."""
        count, n = x.shape[1], self.channels
        shift = shift_of(self.path, self.parametrization, n / count, t)
        scale, noise, kept, gain = (
            value.to(x).view(-1, 1, 1, 1) for value in (shift.scale, shift.noise, shift.kept, shift.gain)
        )
        frame = frame_of(n, count).to(x)
        shown = torch.einsum("nk,bkhw->bnhw", frame, x)
        extra = lacking(n, count, *x.shape[2:]).to(x)
        u = self.prior(scale * shown + noise * extra, shift.time.to(x))
        return kept * x + gain * torch.einsum("nk,bnhw->bkhw", frame * (count / n), u)


@dataclass(frozen=True)
class Shift:
    """From k channels x at times t to n at later ones, and back: each (B,) float64.

    The network sees `scale` Mx, and noise of deviation `noise` in the directions that this lacks, at `time`;
    the output is `kept` x + `gain` M⁺u of the network's u.
    """

    time: Tensor
    scale: Tensor
    noise: Tensor
    kept: Tensor
    gain: Tensor


def shift_of(path: Path, parametrization: Parametrization, power: float, t: Tensor) -> Shift:
    """To the noise level that is √power times that at t, or to the last of the path."""
    t = t.detach().to("cpu", torch.float64)
    a, s = path.a(t), path.s(t)
    ratio = power**0.5 * s
    time = path.time_of(torch.log(a) - torch.log(ratio))
    noise = path.s(time)
    # At the path's end there is no such level; what M shows must not be noisier than the network expects.
    scale = torch.where(time == path.noise_time, noise / ratio, path.a(time) / a)
    p, q = data_prediction(path, parametrization, t)
    p_there, q_there = data_prediction(path, parametrization, time)
    return Shift(time, scale, noise, kept=(p_there * scale - p) / q, gain=q_there / q)


def frame_of(n: int, count: int) -> Tensor:
    """M (n, count) float64: interpolates by cosines, with MᵀM = (n/count) I and rows that sum to 1."""
    return (n / count) ** 0.5 * cosines(n)[:count].T @ cosines(count)


@lru_cache(maxsize=4)
def lacking(n: int, count: int, height: int, width: int) -> Tensor:
    """Standard normal noise (1, n, H, W), less what of it is in the range of M; always the same."""
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, n, height, width)))
    frame = frame_of(n, count)
    return noise - torch.einsum("nm,bmhw->bnhw", frame @ frame.T * (count / n), noise)


def check_channels(prior: Prior | Described, channels: int | None, of_images: int) -> None:
    """Raise a SpecError for a prior of latents whose autoencoder is for images of other channels."""
    if autoencoder_of(prior) is not None and channels not in (None, of_images):
        raise SpecError(
            f"prior: its autoencoder is for images of {channels} channels; use data.channels={channels}"
        )


def grouped(prior: Prior, channels: int | None, of_images: int) -> Prior:
    """The prior for images of so many channels; itself if it takes these. channels: its own, None for any.

    Raises:
        SpecError: as `check_channels`.
    """
    check_channels(prior, channels, of_images)
    return prior if channels in (None, of_images) else Grouped(prior, channels)


def said(channels: int | None, of_images: int) -> str:
    """How a network sees images of another number of channels, in words; nothing where it takes them."""
    if channels in (None, of_images):
        return ""
    whole, left = divmod(of_images, channels)
    parts = [f"{whole} × {channels} together" if channels > 1 else "each by itself"] if whole else []
    if left == 1:
        alone = "" if of_images == 1 else "1 by itself, "
        parts.append(f"{alone}shown {channels} times with different noise, and averaged")
    elif left:
        parts.append(f"{left} shown as {channels} between them, with the noise that these lack")
    return (
        f"{of_images} channel{'s' if of_images > 1 else ''} by a network for {channels}: {'; '.join(parts)}"
    )
