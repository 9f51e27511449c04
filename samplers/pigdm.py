"""ΠGDM: integrated as an ODE, which is a setting of `samplers.conjugate`, and the discrete one with η."""

from dataclasses import field
from typing import ClassVar

from pydantic import FiniteFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Share, Strength
from kintsugi.samplers.coefficients import Absorb
from kintsugi.samplers.conjugate import Conjugate
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, ancestral, noise_in, renoise
from kintsugi.samplers.guidance import Schedule
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class PiGDM(Conjugate):
    """ΠGDM (Song et al., ICLR 2023) as released with 2405.17673, ΠGFM on flows: guidance as an Euler term.

    `conjugate` with absorb: unconditional and schedule: pigdm.
    """

    w: Strength = 4.0
    lam: FiniteFloat = field(default=0.0, init=False)
    absorb: Absorb = field(default="unconditional", init=False)
    schedule: Schedule = field(default="pigdm", init=False)
    order: int = field(default=1, init=False)


@dataclass(kw_only=True, frozen=True)
class DiscretePiGDM(Stepwise):
    """ΠGDM by DDIM steps with noise η (Song et al., ICLR 2023, algorithm 1).

    x' = a' x̂₀ + DDIM's noise + w a (∂x̂₀/∂x)ᵀ G (H⁺y − x̂₀) with r² = s². w = 1 as published.
    """

    differentiates: ClassVar[bool] = True
    w: Strength = 1.0
    eta: Share = 1.0

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """An ancestral step and w a times ΠGDM's guidance, back through the network."""
        prediction, pullback = denoise.with_pullback(x, now)
        operator = problem.operator
        residual = problem.known_given(prediction, now.s**2) - operator.to_spectral(prediction)
        guidance = pullback(operator.from_spectral(problem.factor(now.s**2) * residual))
        moved = renoise(
            problem, prediction, noise_in(x, prediction, now), later, ancestral(now, later, self.eta)
        )
        guidance = self.w * now.a * guidance
        return moved + guidance, prediction + guidance / later.a
