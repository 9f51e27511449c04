"""Properties that every operator, sampler and prior has, to be asserted in a test of one's own.

    def test_mine():
        kintsugi.testing.check_sampler({"name": "mine"})

Each function raises an AssertionError for a property that does not hold, and a SpecError for a spec that
cannot be built. Kintsugi's own are tested by the same functions.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close

from kintsugi import operators, priors, samplers
from kintsugi.operators import Linear, Operator
from kintsugi.priors import Prior
from kintsugi.priors.analytic import LowRankMixture
from kintsugi.priors.base import Parametrization
from kintsugi.priors.paths import Path, VariancePreserving
from kintsugi.samplers import KeyedNoise, Restoration, Sampler

Spec = Mapping[str, Any]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}
DEGRADATIONS: tuple[Spec, ...] = (
    {"name": "inpaint", "mask": "random"},
    {"name": "gaussian_blur"},
    {"name": "hdr"},
    {"name": "phase_retrieval"},
)
"""Operators with which a sampler is tried: linear with and without small singular values, and non-linear."""
SHAPE = (1, 8, 8)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers of a shape, the same for a seed in both precisions up to rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def check_operator(spec: Spec, image_shape: tuple[int, int, int] = (3, 8, 16)) -> None:
    """What every operator is, in both precisions; of a linear one, that its decomposition is exact.

    Shapes and types, independence of the batch, f = 1 in the spectrum is the identity, a consistent image
    stays; if linear: the adjoint, the conditions of Moore and Penrose, an orthogonal projection, H⁺ imposes,
    and orthonormal singular vectors with the stated singular values.

    Args:
        image_shape: (C, H, W) of the images it is tried with.
    """
    for dtype in TOLERANCE:
        operator = operators.build(spec, image_shape, dtype=dtype)
        check_any(operator, dtype)
        if isinstance(operator, Linear):
            check_linear(operator, dtype)


def check_any(operator: Operator, dtype: torch.dtype) -> None:
    """What holds for non-linear operators, too."""
    limit = TOLERANCE[dtype]
    x = draw(5, *operator.image_shape, dtype=dtype)
    y, v = operator.forward(x), draw(5, *operator.measurement_shape, seed=1, dtype=dtype)
    assert y.shape == v.shape, f"forward gives {tuple(y.shape)}, measurement_shape says {tuple(v.shape)}"
    spectral = operator.to_spectral(x)
    images = [operator.pinv(y), operator.project(x), operator.impose(x, y), operator.vjp(x, y)]
    images.append(operator.from_spectral(spectral))
    assert all(image.shape == x.shape for image in images)
    assert all(result.dtype == dtype for result in (y, spectral, *images))
    assert (operator.singular_values * spectral).shape == spectral.shape
    for function, arguments in (
        (operator.forward, (x,)),
        (operator.pinv, (v,)),
        (operator.project, (x,)),
        (operator.vjp, (x, v)),
        (operator.impose, (x, v)),
        (operator.to_spectral, (x,)),
    ):
        alone = function(*(argument[3:4] for argument in arguments))
        assert_close(alone, function(*arguments)[3:4], rtol=limit, atol=limit)
    assert_close(operator.spectral_map(torch.ones_like, x), x, rtol=limit, atol=limit)
    assert_close(operator.impose(x, y), x, rtol=limit, atol=limit)


def check_linear(h: Linear, dtype: torch.dtype) -> None:
    """What holds for y = H x."""

    def close(one: Tensor, other: Tensor) -> None:
        assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    x, z = (draw(3, *h.image_shape, seed=seed, dtype=dtype) for seed in (0, 1))
    y, w = (draw(3, *h.measurement_shape, seed=seed, dtype=dtype) for seed in (1, 2))
    close((h.forward(x) * y).sum(), (x * h.adjoint(y)).sum())
    assert torch.equal(h.vjp(x, y), h.adjoint(y))
    # H H⁺ H = H, H⁺ H H⁺ = H⁺, and H H⁺ is symmetric; H⁺ H below.
    close(h.forward(h.pinv(h.forward(x))), h.forward(x))
    close(h.pinv(h.forward(h.pinv(y))), h.pinv(y))
    close((h.forward(h.pinv(y)) * w).sum(), (y * h.forward(h.pinv(w))).sum())
    projected = h.project(x)
    close(projected, h.spectral_map(lambda s: (s > 0).to(s), x))
    close(h.project(projected), projected)
    close((projected * z).sum(), (x * h.project(z)).sum())
    seen = h.forward(z)
    imposed = h.impose(x, seen)
    close(h.forward(imposed), seen)
    close(imposed - h.project(imposed), x - projected)
    close(h.spectral_map(torch.square, x), h.adjoint(h.forward(x)))
    c = draw(3, *h.to_spectral(x).shape[1:], seed=1, dtype=dtype)
    close(h.to_spectral(h.from_spectral(c)), c)
    close(h.from_spectral(c).square().flatten(1).sum(1), c.square().flatten(1).sum(1))
    close(h.forward(h.from_spectral(h.to_spectral(x))), h.forward(x))


class Counting:
    """A prior that counts its evaluations and the vector-Jacobian products through it, per sample.

    Attributes:
        recorded: of each evaluation, whether autograd recorded it.
    """

    def __init__(self, prior: Prior):
        self.prior, self.path, self.parametrization = prior, prior.path, prior.parametrization
        self.forwards = self.vjps = 0
        self.recorded: list[bool] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (len(x),)
        self.forwards += len(x)
        self.recorded.append(torch.is_grad_enabled())
        u = self.prior(x, t)
        if u.requires_grad:
            u.register_hook(self.count_vjp)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return u

    def count_vjp(self, cotangent: Tensor) -> None:
        """Count a product of a batch (B, C, H, W)."""
        self.vjps += len(cotangent)


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


def check_sampler(spec: Spec) -> None:
    """What every sampler does, with `DEGRADATIONS`, noiseless and noisy.

    Its samples depend on seed and key, and on nothing else: not on the batch, its order, or the job before.
    They are finite. Network evaluations and vector-Jacobian products are as many as it says, a graph is
    recorded for nothing else, and the callback is called once an evaluation with (step, x, x̂₀).
    """
    used = samplers.build(spec)
    for of in DEGRADATIONS:
        operator = operators.build(of, SHAPE, dtype=torch.float64)
        for sigma_y in (0.0, 0.1):
            y = operator.forward(draw(3, *SHAPE) / 4)
            y = y + sigma_y * draw(*y.shape, seed=2)
            check_samples(used, samplers.build(spec), operator, y, sigma_y)
            check_counts(used, operator, y, sigma_y)


def check_samples(used: Sampler, new: Sampler, operator: Operator, y: Tensor, sigma_y: float) -> None:
    """The samples of three measurements depend on their keys alone; `used` did other jobs before."""
    keys, prior = ["a", "b", "c"], mixture()

    def restore(sampler: Sampler, y: Tensor, keys: list[str], seed: int = 0) -> Tensor:
        return sampler(prior, operator, y, KeyedNoise(seed, keys), sigma_y=sigma_y).image

    together = restore(used, y, keys)
    assert together.shape == (len(y), *operator.image_shape)
    assert together.dtype == y.dtype
    assert torch.isfinite(together).all()
    assert torch.equal(restore(new, y, keys), together), "it keeps something of the job before"
    assert_close(restore(used, y[1:2], ["b"])[0], together[1], rtol=1e-9, atol=1e-9)
    assert_close(restore(used, y.flip(0), keys[::-1]).flip(0), together, rtol=1e-9, atol=1e-9)
    if operator.linear:
        for other in (restore(used, y, ["d", "e", "f"]), restore(used, y, keys, seed=1)):
            assert not torch.equal(other, together), "another key or seed gives the same sample"


def check_counts(sampler: Sampler, operator: Operator, y: Tensor, sigma_y: float) -> None:
    """What a restoration says that it cost is what it cost, and the callback sees each evaluation."""
    prior, seen = Counting(mixture()), []

    def callback(step: int, x: Tensor, prediction: Tensor) -> None:
        assert x.shape == prediction.shape == (len(y), *operator.image_shape)
        seen.append(step)

    noise = KeyedNoise(0, ["a", "b", "c"])
    result: Restoration = sampler(prior, operator, y, noise, sigma_y=sigma_y, callback=callback)
    assert (prior.forwards, prior.vjps) == (len(y) * result.forwards, len(y) * result.vjps)
    assert sum(prior.recorded) == result.vjps, "a graph is recorded that nobody needs"
    assert len(seen) == result.forwards, "the callback is called once an evaluation"
    assert not result.image.requires_grad


def check_prior(spec: Spec, image_shape: tuple[int, int, int] | None = None) -> None:
    """What every prior is: as `describe` says it, a function of each image alone, and differentiable in it.

    Args:
        image_shape: (C, H, W), by default the smallest of three channels that it takes, at least 16 pixels.
    """
    found, prior = priors.describe(spec), priors.load(spec)
    side = found.multiple * -(-16 // found.multiple)
    shape = image_shape or (3, side, side)
    assert prior.sha256 == priors.examine(spec, shape).sha256, "the checksum is not of the files described"
    assert not any(weight.requires_grad for weight in prior.network.parameters())
    assert not prior.network.training
    path, x = prior.path, draw(3, *shape, dtype=torch.float32)
    t = path.data_time + torch.tensor([0.2, 0.5, 0.8]) * (path.noise_time - path.data_time)
    with torch.no_grad():
        u = prior(x, t)
        assert torch.equal(prior(x, t), u)
        assert_close(prior(x[1:2], t[1:2])[0], u[1], rtol=1e-4, atol=1e-4)
    assert u.shape == x.shape
    assert u.dtype == x.dtype
    assert torch.isfinite(u).all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(leaf, t).sum(), leaf)
    assert torch.isfinite(gradient).all()
