"""DiffPIR: half-quadratic splitting with the diffusion prior as the denoiser."""

from pydantic import PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Share
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in, renoise
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DiffPIR(Stepwise):
    """Diffusion plug-and-play image restoration (Zhu et al., CVPRW 2023, 2305.08995, algorithm 1).

    The prediction is moved to argmin ‖y − Hx‖² + λ σ_y² (a/s)² ‖x − x̂₀‖², in closed form; then the
    state is renoised with a share ζ of fresh variance. Without noise λ has no effect: what is measured is
    replaced. No vector-Jacobian products.
    """

    lam: PositiveFloat = 8.0
    zeta: Share = 0.3

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The proximal point of the prediction under y, then noise of the next level, a share ζ of it new."""
        consistent = problem.moved(denoise(x, now), now.sigma**2 / self.lam)
        kept = noise_in(x, consistent, now)
        return renoise(problem, consistent, kept, later, self.zeta**0.5), consistent
