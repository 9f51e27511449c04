"""Priors with which samplers are tried: with closed forms, of latents, and one that counts."""

import math
from typing import Any

import torch
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.priors.analytic import LowRankMixture
from kintsugi.priors.base import Parametrization, Prior, prediction_of
from kintsugi.priors.paths import Path, VariancePreserving

SHAPE = (1, 8, 8)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a shape, the same for a seed in both precisions up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


class Coded:
    """A prior of latents that are the images themselves: what decodes and encodes them does nothing."""

    factor = enlarge = 1

    def __init__(self, prior: Prior, channels: int):
        self.of, self.path, self.parametrization = prior, prior.path, prior.parametrization
        self.prediction, self.channels, self.autoencoder = prediction_of(prior), channels, self

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.of(x, t)

    def encode(self, x: Tensor) -> Tensor:
        """x itself."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """z itself."""
        return z


def suited(prior: Prior, sampler: object, operator: Operator) -> Prior:
    """The prior; where a sampler needs one of latents, one whose latents are the operator's images."""
    return Coded(prior, operator.image_shape[0]) if getattr(sampler, "needs_latents", False) else prior


class Counting:
    """A prior that counts its evaluations and the vector-Jacobian products through it, per sample.

    Attributes:
        recorded: of each evaluation, whether autograd recorded it. used: of which there were products.
    """

    def __init__(self, prior: Prior):
        self.prior, self.path, self.parametrization = prior, prior.path, prior.parametrization
        self.forwards = self.vjps = 0
        self.recorded: list[bool] = []
        self.used: set[int] = set()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        self.forwards += len(x)
        self.recorded.append(torch.is_grad_enabled())
        u, place = self.prior(x, t), len(self.recorded) - 1
        if u.requires_grad:
            hook: Any = u.register_hook  # torch does not annotate it
            hook(lambda cotangent: self.count_vjp(cotangent, place))
        return u

    def count_vjp(self, cotangent: Tensor, place: int) -> None:
        """Count a product of a batch (B, C, H, W) through an evaluation."""
        self.vjps += len(cotangent)
        self.used.add(place)


def mixture(
    path: Path | None = None,
    parametrization: Parametrization = "eps",
    shape: tuple[int, int, int] = SHAPE,
) -> LowRankMixture:
    """A prior of three modes, each with two directions of variation: smooth, and far from Gaussian.

    Args:
        path: a variance preserving one by default.
    """
    factors = torch.linalg.qr(draw(3, math.prod(shape), 2, seed=1))[0].mT.reshape(3, 2, *shape)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = 0.6 * draw(3, *shape)
    return LowRankMixture(means, 2 * factors, 0.3, weights, path or VariancePreserving(), parametrization)
