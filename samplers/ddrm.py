"""DDRM: a diffusion in the spectral coordinates of the operator, a variance for each direction."""

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Share
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DDRM(Stepwise):
    """Denoising diffusion restoration models (Kawar et al., NeurIPS 2022, 2201.11793, equations 7 and 8).

    eta: share of fresh noise where y is silent or noisier than the level; eta_b: weight of y elsewhere.
    No vector-Jacobian products.
    """

    steps: PositiveInt = 20
    eta: Share = 0.85
    eta_b: Share = 1.0

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """One step in the operator's coordinates, with η and η_b."""
        return spectral_step(problem, denoise, x, now, later, self.eta, self.eta_b)


def spectral_step(
    problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level, eta: float, eta_b: float
) -> tuple[Tensor, Tensor]:
    """The state at level `later`: in each direction as noisy as the level, with what y says of it.

    And its mean x̂: a direction where y is sharper than the level has y's value, to the share η_b.
    """
    prediction, operator = denoise(x, now), problem.operator
    # In the paper's scaling, x/a with noise σ = s/a.
    sigma, kept = later.sigma, (1 - eta**2) ** 0.5
    z = problem.draw() if sigma > 0 else torch.zeros_like(x)
    free = prediction + sigma * kept * noise_in(x, prediction, now) + sigma * eta * z
    own, drawn = operator.to_spectral(prediction), operator.to_spectral(z)
    known, values = problem.known_given(prediction), operator.singular_values
    noise = problem.sigma_y / values  # infinite where y is silent, NaN if it is also noiseless
    blurred = own + sigma * kept * (known - own) / noise + sigma * eta * drawn
    spread = (sigma**2 - noise**2 * eta_b**2).clamp_min(0).sqrt()
    mean = torch.lerp(own, known, eta_b)
    measured = torch.where(noise > sigma, blurred, mean + spread * drawn)
    change = torch.where(values > 0, measured - operator.to_spectral(free), 0)
    told = torch.where((values > 0) & (noise <= sigma), mean - own, 0)
    return later.a * (free + operator.from_spectral(change)), prediction + operator.from_spectral(told)
