"""DPS and MCG: an unconditional step, then a gradient step on the misfit of the prediction."""

from typing import ClassVar

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Share, Strength
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, ancestral, noise_in, renoise
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DPS(Stepwise):
    """Diffusion posterior sampling (Chung et al., ICLR 2023, 2209.14687, algorithm 1).

    x' = ancestral step − ζ ∇ₓ ‖y − H(x̂₀(x))‖, a norm per sample. The true gradient, also of a
    non-linear operator. eta: DDIM's share of fresh noise, 1 as published.
    """

    differentiates: ClassVar[bool] = True
    takes_latents: ClassVar[bool] = True
    steps: PositiveInt = 1000
    zeta: Strength = 1.0
    eta: Share = 1.0

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """An ancestral step less ζ times the gradient of ‖H(prediction) − y‖, back through the network."""
        prediction, pullback = denoise.with_pullback(x, now)
        misfit = problem.operator.forward(prediction) - problem.y
        gradient = pullback(problem.operator.vjp(prediction, unit(misfit)))
        moved = renoise(
            problem, prediction, noise_in(x, prediction, now), later, ancestral(now, later, self.eta)
        )
        return moved - self.zeta * gradient, prediction - self.zeta / later.a * gradient


@dataclass(kw_only=True, frozen=True)
class MCG(DPS):
    """Manifold constrained gradient (Chung et al., NeurIPS 2022, 2206.00941, algorithm 1).

    The step of DPS; then what the measurement determines is replaced by the measurement with the noise
    of the next level.
    """

    takes_latents: ClassVar[bool] = False

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """A step of DPS, whose measured part is then replaced by y's at the next level's noise."""
        moved, corrected = super().step(problem, denoise, x, now, later)
        operator = problem.operator
        seen, known = operator.singular_values > 0, problem.known_given(moved / later.a)
        measured = later.a * known
        if later.s > 0:
            measured = measured + later.s * operator.to_spectral(problem.draw())
        change = seen * (measured - operator.to_spectral(moved))
        told = seen * (known - operator.to_spectral(corrected))
        return moved + operator.from_spectral(change), corrected + operator.from_spectral(told)


def unit(v: Tensor) -> Tensor:
    """v / ‖v‖ of each sample, detached: the gradient of its norm."""
    v = v.detach()
    return v / v.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
