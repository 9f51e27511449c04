"""Flower: the prediction, refined by the measurement, goes on along the flow with fresh noise."""

from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.operators import Solved
from kintsugi.priors.paths import Path, RectifiedFlow
from kintsugi.samplers.base import Share
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in, renoise
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class Flower(Stepwise):
    """Flower (Pourya et al., ICLR 2026, 2509.26287, algorithm 1), on the flow path.

    The image is taken for N(x̂₀, r² I), r² = (1 − t)² / (t² + (1 − t)²). The prediction moves to the mean of
    that given y, and by gamma times a deviation drawn from its covariance (published: 0, or 1); then the
    state is renoised in full. No vector-Jacobian products.
    """

    path: ClassVar[Path] = RectifiedFlow()
    gamma: Share = 0.0

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The prediction given y, then noise of the next level, all of it new."""
        prediction = denoise(x, now)
        refined = self.refine(problem, prediction, now.s**2 / (now.a**2 + now.s**2))
        return renoise(problem, refined, noise_in(x, prediction, now), later, 1.0), refined

    def refine(self, problem: Problem, prediction: Tensor, variance: float) -> Tensor:
        """The mean of N(prediction, variance · I) given y, and gamma times a deviation, (B, C, H, W)."""
        operator, spread = problem.operator, self.gamma * variance**0.5
        if isinstance(operator, Solved):
            y = problem.y
            if spread > 0:  # perturb both, and solve: the deviation without a decomposition
                prediction = prediction + spread * problem.draw()
                y = y + self.gamma * problem.sigma_y * problem.draw(operator.measurement_shape)
            ridge = problem.sigma_y**2 / variance
            return prediction + operator.solve(y - operator.forward(prediction), ridge)
        trust = problem.factor(variance)
        residual = problem.known_given(prediction, variance) - operator.to_spectral(prediction)
        refined = prediction + operator.from_spectral(trust * residual)
        if spread == 0:
            return refined
        z = problem.draw()
        less = (1 - trust).sqrt() - 1
        return refined + spread * (z + operator.from_spectral(less * operator.to_spectral(z)))
