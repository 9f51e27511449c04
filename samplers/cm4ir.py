"""CM4IR: few steps of a consistency function, back-projection, and noise that is not what was predicted."""

from dataclasses import field, replace
from itertools import pairwise
from math import inf
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.priors.paths import Path, VarianceExploding
from kintsugi.samplers.base import Share, Strength
from kintsugi.samplers.descent import PATH, Denoiser, Descent, Level, noise_in, renoise
from kintsugi.samplers.grids import Grid
from kintsugi.samplers.problem import Problem

CLEANEST = 0.9999
"""ᾱ that no level exceeds: σ is 0.01 or more."""
Delta = Annotated[float, Field(gt=-1, allow_inf_nan=False)]


@dataclass(kw_only=True, frozen=True)
class CM4IR(Descent):
    """CM4IR (Garber & Tirer, CVPR 2025, 2412.20596). Takes consistency functions, for which it was made.

    The state is x₀ + σ z. At each level x̂ = f(x, (1 + δ) σ), then back-projection, x̂ − μ Hᵀ(HHᵀ + ζ σ_y²)⁻¹
    (H x̂ − y), then noise of the next level: a share eta of it new, the rest the opposite of what f removed.
    With noise of y the last x̂ is the result. No vector-Jacobian products.

    start: VP time of the first level, σ² = 1 − ᾱ there. gamma: ᾱ grows by the factor 1 + gamma from level to
    level. mu, zeta: μ and ζ; ζ = 0 is H⁺. delta: δ, how much more noise the network is told of than there
    is, a number or one for each step.
    """

    path: ClassVar[Path] = VarianceExploding(inf)
    needs_mean: ClassVar[bool] = False
    steps: PositiveInt = 4
    start: Annotated[float, Field(gt=0, le=1)] = 0.25
    end: float = field(default=0.0, init=False)
    grid: Grid = field(default="uniform", init=False)
    gamma: PositiveFloat = 0.2
    eta: Share = 0.1
    mu: Share = 1.0
    zeta: Strength = 0.0
    delta: Delta | list[Delta] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.delta, list) and len(self.delta) != self.steps:
            raise ValueError(f"delta: {len(self.delta)} numbers for {self.steps} steps")

    def sigmas(self) -> Tensor:
        """σ of each level, (steps,) float64."""
        first = PATH.a(torch.tensor(self.start, dtype=torch.float64)) ** 2
        growing = first * (1 + self.gamma) ** torch.arange(self.steps, dtype=torch.float64)
        return (1 - growing.clamp(max=CLEANEST)).sqrt()

    def times(self) -> Tensor:
        """What the network is told, (1 + δ) σ, (steps,)."""
        return self.sigmas() * (1 + torch.tensor(self.delta, dtype=torch.float64))

    def start_level(self) -> float:
        """σ at the start."""
        return float(self.sigmas()[0])

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """From H⁺y + σ z, a prediction, back-projection and noise for each level."""
        sigmas = [*self.sigmas().tolist(), 0.0]
        x = problem.start(self.init, 1.0, sigmas[0])
        for told, (sigma, later) in zip(levels, pairwise(sigmas), strict=False):
            prediction = denoise(x, told)
            if later == 0 and problem.noisy:
                return prediction
            now, following = (replace(told, s=level) for level in (sigma, later))
            opposite = -noise_in(x, prediction, now)
            projected = prediction + self.mu * (self.projected(problem, prediction) - prediction)
            x = renoise(problem, projected, opposite, following, self.eta)
        return x

    def projected(self, problem: Problem, prediction: Tensor) -> Tensor:
        """x̂ − Hᵀ(HHᵀ + ζ σ_y²)⁻¹ (H x̂ − y), (B, C, H, W)."""
        if self.zeta == 0:
            return problem.operator.impose(prediction, problem.y)
        return problem.moved(prediction, 1 / self.zeta)
