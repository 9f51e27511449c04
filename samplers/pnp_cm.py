"""PnP-CM: ADMM with a consistency function in the place of the prior's proximal map."""

from collections.abc import Iterator
from math import inf, sqrt
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.priors.paths import Path, VarianceExploding
from kintsugi.samplers.descent import Denoiser, Descent, Level
from kintsugi.samplers.grids import Grid
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class PnPCM(Descent):
    """PnP-CM (Gülle et al., 2025, 2509.22736). Takes consistency functions, for which it was made.

    At each level, with fresh noise n: x̂ = f(z − u + σ n, σ); z = argmin ‖y − Hx‖² / σ_y² + rho ‖x − x̂ − u‖²,
    which without noise is x̂ + u with what is measured replaced; u = u + x̂ − z; then z and u go on by
    Nesterov's share of what they have changed, unless `momentum` is false. The last z is the result. No
    vector-Jacobian products.
    """

    path: ClassVar[Path] = VarianceExploding(inf)
    needs_mean: ClassVar[bool] = False
    steps: PositiveInt = 4
    start: Annotated[float, Field(gt=0, le=1)] = 0.4
    grid: Grid = "karras"
    rho: PositiveFloat = 1.0
    momentum: bool = True

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """From H⁺y, a turn of ADMM for each level."""
        first = levels[0]
        z = z_ahead = problem.estimate(self.init, first.s**2 / (1 + first.s**2))
        u = u_ahead = torch.zeros_like(z)
        for now, share in zip(levels[:-1], nesterov(), strict=False):
            mean = z_ahead - u_ahead
            noisy = problem.around(mean, 1.0, now.s) if now is first else mean + now.s * problem.draw()
            prediction = denoise(noisy, now)
            before = z, u
            z = problem.moved(prediction + u_ahead, 1 / self.rho)
            u = u_ahead + prediction - z
            z_ahead, u_ahead = z, u
            if self.momentum:
                z_ahead, u_ahead = (
                    new + share * (new - old) for new, old in zip((z, u), before, strict=True)
                )
        return z


def nesterov() -> Iterator[float]:
    """The shares of Nesterov's momentum, as in fast ADMM (Goldstein et al. 2014, algorithm 7), from 0 on."""
    weight = 1.0
    while True:
        following = (1 + sqrt(1 + 4 * weight**2)) / 2
        yield (weight - 1) / following
        weight = following
