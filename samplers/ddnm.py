"""DDNM and DDNM+: the measured part of every prediction is replaced by the measurement."""

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from samplers.base import Share
from samplers.descent import Denoiser, Descent, Level, noise_in, renoise
from samplers.problem import Problem


@dataclass(kw_only=True)
class DDNM(Descent):
    """Denoising diffusion null-space model (Wang et al., ICLR 2023, 2212.00490, algorithm 1; DDNM+: §3.3).

    With measurement noise it is DDNM+: each direction takes as much of y as the noise of the next level
    hides. eta: share of fresh noise in a step. No vector-Jacobian products; no time travel.
    """

    eta: Share = 0.85

    def step(self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level) -> Tensor:
        prediction, operator = denoise(x, now), problem.operator
        kept = noise_in(x, prediction, now)
        if problem.sigma_y == 0:
            return renoise(problem, operator.impose(prediction, problem.y), kept, later, self.eta)
        if later.s == 0:  # no noise left to hide that of the measurement
            return prediction
        fresh = later.s * self.eta
        values = operator.singular_values
        # The noise that y brings into the state where it replaces the prediction in full.
        brought = later.a * problem.sigma_y / values
        weight = (fresh / brought).clamp_max(1)  # Σ of the paper; 0 where y is silent
        spread = torch.where(values > 0, fresh**2 - (weight * brought) ** 2, fresh**2).clamp_min(0).sqrt()
        z = problem.draw()
        correction = weight * (problem.known_given(prediction) - operator.to_spectral(prediction))
        change = later.a * correction + (spread - fresh) * operator.to_spectral(z)
        state = later.a * prediction + later.s * (1 - self.eta**2) ** 0.5 * kept + fresh * z
        return state + operator.from_spectral(change)
