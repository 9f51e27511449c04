"""CDIM: as many guidance steps as it takes for the state's misfit to be what noise alone would leave."""

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.descent import Denoiser, Descent, Level, noise_in, renoise
from kintsugi.samplers.mmps import linear_part
from kintsugi.samplers.problem import Problem

SLACK = 1e-4
"""Of ρ: what rounding may leave of a misfit that was brought there."""


@dataclass(kw_only=True, frozen=True)
class CDIM(Descent):
    """Linearly constrained diffusion implicit models (Jayaram et al., NeurIPS 2025, 2411.00359, algorithm 1).

    Of x = a x₀ + s z the misfit R = ‖y − Hx‖² has a known mean μ and deviation τ (equations 14 and 15). After
    every step of DDIM, while R > ρ = μ + c τ: x ← x − η ∇ₓ ‖y − H x̂₀(x)‖², with the smallest η > 0 that makes
    R equal to ρ, or else the one that makes it least.

    steps: those of DDIM. projections: at most so many guidance steps after each, with an evaluation and a
    vector-Jacobian product apiece. margin: c. How many a sample takes is its own, and it is counted so; a
    batch is evaluated until all of its samples are done, which the host has to read after each.
    """

    differentiates: ClassVar[bool] = True
    steps: PositiveInt = 25
    projections: PositiveInt = 20
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """Steps of DDIM; the state after each but the last is brought as near to y as a noisy image is."""
        x = problem.start(self.init, levels[0].a, levels[0].s)
        y = problem.operator.forward(problem.pinv)  # without noise where H says nothing
        for now, later in pairwise(levels):
            prediction = denoise(x, now)
            x = renoise(problem, prediction, noise_in(x, prediction, now), later, 0.0)
            if later.s > 0:
                bound = self.bound(problem, y, later)
                x = self.projected(problem, denoise, x, y, later, bound)
        return x

    def projected(
        self, problem: Problem, denoise: Denoiser, x: Tensor, y: Tensor, level: Level, bound: Tensor
    ) -> Tensor:
        """The state x after guidance steps, at most `projections`, until its misfit is within `bound`."""
        wanted = torch.ones_like(bound, dtype=torch.bool)
        for _ in range(self.projections):
            seen, push, _ = linear_part(problem.operator, x)
            misfit = seen - y
            excess = inner(misfit, misfit) - bound
            wanted = wanted & (excess > SLACK * bound)
            if not wanted.any():
                break
            prediction, pullback = denoise.with_pullback(x, level, each=wanted.flatten().long())
            error = problem.operator.forward(prediction) - y
            gradient = pullback(problem.operator.vjp(prediction, error))
            step = step_to(misfit, push(gradient), excess)
            x = torch.where(wanted, x - step * gradient, x)
            wanted = wanted & (step > 0)
        return x

    def bound(self, problem: Problem, y: Tensor, level: Level) -> Tensor:
        """ρ (B, 1, 1, 1), of y's mean square and of H's singular values.

        Of an operator that is not linear those of its spectral form, the identity's.
        """
        known, noise = problem.known, problem.sigma_y**2
        values = problem.operator.singular_values.to(known).expand_as(known)
        squares, seen = values.square(), (values > 0).to(known)
        size, trace, fourth = inner(seen, seen), inner(values, values), inner(squares, squares)
        energy, again = inner(y, y), inner(squares * known, squares * known)
        shrunk, s2 = (1 - level.a) ** 2, level.s**2
        mean = shrunk * energy + s2 * trace + (1 - shrunk) * noise * size
        variance = 2 * (s2**2 * fourth + 2 * s2 * noise * trace + noise**2 * size)
        variance = variance + 4 * shrunk * (s2 * (again - noise * trace) + noise * (energy - noise * size))
        return mean + self.margin * variance.clamp_min(0) ** 0.5


def inner(one: Tensor, other: Tensor) -> Tensor:
    """⟨·, ·⟩ of each sample, (B, 1, 1, 1)."""
    return (one * other).flatten(1).sum(1).view(-1, 1, 1, 1)


def step_to(misfit: Tensor, seen: Tensor, excess: Tensor) -> Tensor:
    """The smallest η > 0 with ‖misfit − η seen‖² less by `excess`, or that which makes it least; else 0.

    With no way down, which is where misfit and `seen` point apart, that is 0.
    """
    square, slope = inner(seen, seen), inner(misfit, seen).clamp_min(0)
    root = (slope.square() - square * excess).clamp_min(0) ** 0.5
    return (slope - root) / square.clamp_min(torch.finfo(square.dtype).tiny)
