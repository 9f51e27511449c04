"""DDNM and DDNM+: the measured part of every prediction is replaced by the measurement."""

from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Share
from kintsugi.samplers.ddrm import spectral_step
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in, renoise
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DDNM(Stepwise):
    """Denoising diffusion null-space model (Wang et al., ICLR 2023, 2212.00490, algorithm 1; DDNM+: §3.3).

    With measurement noise it is DDNM+: a direction takes y where the noise of the next level hides that
    of y, and otherwise as much of it as that noise allows, which is DDRM's step with η_b = 1. eta: share
    of fresh noise in a step; 0.85, as published, without measurement noise, and 0 with it, where that has
    more texture at no less PSNR. No vector-Jacobian products; no time travel.
    """

    eta: Share | None = None

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The prediction with its measured part replaced by y's; with noise, DDRM's step with η_b = 1."""
        if problem.noisy:
            return spectral_step(problem, denoise, x, now, later, self.share(problem), eta_b=1.0)
        prediction = denoise(x, now)
        consistent = problem.operator.impose(prediction, problem.y)
        kept = noise_in(x, prediction, now)
        return renoise(problem, consistent, kept, later, self.share(problem)), consistent

    def share(self, problem: Problem) -> float:
        """η for a problem."""
        if self.eta is not None:
            return self.eta
        return 0.0 if problem.noisy else 0.85
