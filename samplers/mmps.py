"""MMPS: the prediction moved to E[x₀ | x, y] by the covariance of x₀ given x of Tweedie's formula."""

from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.numerics import Map, linearised
from kintsugi.operators import Linear, Operator
from kintsugi.samplers.base import Share
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, ancestral, noise_in, renoise
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class MMPS(Stepwise):
    """Moment matching posterior sampling (Rozet et al., NeurIPS 2024, 2405.13712).

    x̂₀' = x̂₀ + C Hᵀ u, (σ_y² + H C Hᵀ) u = y − H x̂₀, with C = Cov[x₀ | x] = (s²/a) (∂x̂₀/∂x)ᵀ; then a step of
    DDIM from x̂₀' and the noise that it leaves of the state. Exact for a Gaussian prior. A non-linear H is
    replaced by its linearisation at x̂₀.

    iterations: of the solver, each one vector-Jacobian product. floor: σ_y of measurements without noise.
    eta: DDIM's share of fresh noise, 1 as published.
    """

    differentiates: ClassVar[bool] = True
    iterations: PositiveInt = 3
    floor: PositiveFloat = 0.01
    eta: Share = 1.0

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The posterior mean by a few iterations of the solver, and an ancestral step from it."""
        prediction, pullback = denoise.with_pullback(x, now, self.iterations)
        seen, push, pull = linear_part(problem.operator, prediction)
        variance = problem.sigma_y**2 if problem.noisy else self.floor**2

        def covariance(u: Tensor) -> Tensor:
            return now.s**2 / now.a * pullback(pull(u))

        shift = solved(covariance, push, variance, problem.y - seen, self.iterations)
        mean = prediction + shift
        kept = noise_in(x, mean, now)
        return renoise(problem, mean, kept, later, ancestral(now, later, self.eta)), mean


def linear_part(operator: Operator, x: Tensor) -> tuple[Tensor, Map, Map]:
    """H(x), and v ↦ (∂H/∂x) v and u ↦ (∂H/∂x)ᵀ u there."""
    if isinstance(operator, Linear):
        return operator.forward(x), operator.forward, operator.adjoint
    return linearised(operator.forward, x)


def solved(covariance: Map, push: Map, variance: float | Tensor, misfit: Tensor, iterations: int) -> Tensor:
    """C Hᵀ u, where u minimises ‖misfit − (σ² + H C Hᵀ) u‖ over a Krylov space, for every sample by itself.

    By conjugate residuals with orthogonalisation (GCR; Eisenstat, Elman & Schultz 1983), which in exact
    arithmetic is GMRES: C of a real network is not symmetric, and conjugate gradients divide by what may be
    negative then. C Hᵀ u is summed up as u is, and so costs no product of its own.

    Args:
        covariance: u ↦ C Hᵀ u, asked `iterations` times. push: v ↦ H v. variance: σ².
    """

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).flatten(1).sum(1).view(-1, 1, 1, 1)

    residual, shifts = misfit, []
    before: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(iterations):
        moved = covariance(residual)
        image = variance * residual + push(moved)
        for other_image, other_moved, square in before:
            overlap = inner(image, other_image) / square
            image, moved = image - overlap * other_image, moved - overlap * other_moved
        # A sample that has converged has zeros here; it stays where it is.
        square = inner(image, image).clamp_min(torch.finfo(image.dtype).tiny)
        length = inner(image, residual) / square
        residual = residual - length * image
        shifts.append(length * moved)
        before.append((image, moved, square))
    return torch.stack(shifts).sum(0)
