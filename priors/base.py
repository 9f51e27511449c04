"""What a prior is: a network output u(x, t), the path it was trained on, and what u predicts."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kintsugi.priors.paths import Path

Parametrization = Literal["eps", "v", "x0"]
Prediction = Literal["mean", "endpoint"]
"""What x̂₀ is: E[x₀ | x], or, of a consistency function, where the probability-flow ODE from x ends."""


class Prior(Protocol):
    """Any object with these three members is a prior.

    One whose x̂₀ is not E[x₀ | x] says so by a fourth, `prediction`, and one that evaluates its network
    several times in a call how many by `evaluations`.
    """

    path: Path
    parametrization: Parametrization

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The network output u (B, C, H, W) at x (B, C, H, W) and native times t (B,).

        Differentiable in x: guided samplers need its vector-Jacobian product.
        """
        ...


class NetworkPrior(Prior, Protocol):
    """What `priors.load` returns: a prior with a network from a file.

    Attributes:
        network: what the prior calls as `self.network(x, t, ...)`; see `priors.speed`.
        sha256: checksum of the file.
    """

    network: nn.Module
    sha256: str


@runtime_checkable
class ClassConditional(Protocol):
    """A prior that may need the class of every image.

    Attributes:
        classes: number of classes, None where the network has none.
        label: the class of all images, where one was given.
        labels: otherwise the classes (B,) int64 of the images of the next calls.
    """

    classes: int | None
    label: int | None
    labels: Tensor | None


@runtime_checkable
class Prompted(Protocol):
    """A prior that may need the prompt of every image.

    Attributes:
        prompted: whether it does; then `labels`, as of `ClassConditional`, are places in the prompts that
            were set.
    """

    prompted: bool

    def set_prompts(self, prompts: Sequence[str]) -> None:
        """The prompts of the images of the next calls; raises a SpecError for one that cannot be used."""


class Autoencoder(Protocol):
    """Between images x (B, C, H, W) on [-1, 1] and latents z (B, channels, H/factor, W/factor) of a prior.

    Both ways are differentiable, and z is scaled as the prior's network knows it.

    Attributes:
        factor: sides of images over those of latents. channels: of latents.
        enlarge: how many times as large as a job's images its images are.
    """

    factor: int
    channels: int
    enlarge: int

    def encode(self, x: Tensor) -> Tensor:
        """z of images, the mode where the encoder gives a distribution."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The images of latents, not clipped."""
        ...


@runtime_checkable
class Latent(Protocol):
    """A prior of latents, not of pixels: x of `Prior` are then z of its autoencoder."""

    autoencoder: Autoencoder


class Described(Protocol):
    """What a prior with weights in files is, before they are loaded."""

    @property
    def multiple(self) -> int:
        """What the sides of images must be divisible by."""

    @property
    def parameters(self) -> int:
        """How many the network has."""

    @property
    def files(self) -> Sequence[FilePath]:
        """All that decides what the prior computes."""


def channels_of(described: Described) -> int | None:
    """The channels that it takes, None for any; one that does not say `image_channels` is of RGB."""
    channels: int | None = getattr(described, "image_channels", 3)
    return channels


def innermost(prior: Any) -> Any:
    """The prior within those that show it tiles or groups, time it or reuse its features."""
    while hasattr(prior, "prior"):
        prior = prior.prior
    return prior


def autoencoder_of(prior: Any) -> Autoencoder | None:
    """Of a prior of latents, or (without weights) of a described one; None of one of pixels."""
    found: Autoencoder | None = getattr(innermost(prior), "autoencoder", None)
    return found


def prediction_of(prior: Prior | Described) -> Prediction:
    """What the x̂₀ of a prior, or of a described one, is; of one that does not say, E[x₀ | x]."""
    found: Prediction = getattr(innermost(prior), "prediction", "mean")
    return found


def evaluations_of(prior: Prior) -> int:
    """How many evaluations of its network a call of the prior is; of one that does not say, 1."""
    found: int = getattr(innermost(prior), "evaluations", 1)
    return found


def data_prediction(path: Path, parametrization: Parametrization, t: Tensor) -> tuple[Tensor, Tensor]:
    """p and q at t such that the prediction of the clean image is x̂₀ = p x + q u."""
    a, s = path.a(t), path.s(t)
    if parametrization == "eps":
        return 1 / a, -s / a
    if parametrization == "v":
        da, ds = path.da(t), path.ds(t)
        wronskian = a * ds - da * s
        return ds / wronskian, -s / wronskian
    return torch.zeros_like(a), torch.ones_like(a)
