"""PnP-Flow: steps towards the measurement, noise, and the network as the denoiser, in turn."""

from itertools import pairwise
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, broadcast_to

from kintsugi.operators import Nonlinear, Solved
from kintsugi.priors.paths import Path, RectifiedFlow
from kintsugi.samplers.base import Strength
from kintsugi.samplers.descent import Denoiser, Descent, Level, check_divides
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class PnPFlow(Descent):
    """Plug-and-play with flow matching (Martin et al., ICLR 2025, 2410.02423, algorithm 3).

    At each of steps / draws levels of the flow path: the image is given the noise of the level `draws`
    times, the mean of the predictions is the next image, and lr (1 − t)^alpha / ‖H‖² times the gradient of
    ½‖y − H(x)‖² is taken off it, where t is the flow's time of the level that follows. The last is a mean of
    predictions. The true gradient, also of a non-linear operator; the noise of y plays no part. No
    vector-Jacobian products.
    """

    path: ClassVar[Path] = RectifiedFlow()
    steps: PositiveInt = 500
    draws: PositiveInt = 5
    lr: Strength = 1.0
    alpha: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        check_divides("draws", self.draws, self.steps)

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """The images (B, C, H, W): denoised at each level, and moved towards y before the next."""
        operator, first = problem.operator, levels[0]
        image = problem.estimate(self.init, first.s**2 / (first.a**2 + first.s**2))
        rate = self.lr / squared_norm(problem)
        for now, later in pairwise(levels[:: self.draws]):
            predictions = [denoise(now.a * image + now.s * problem.draw(), now) for _ in range(self.draws)]
            image = sum(predictions[1:], predictions[0]) / self.draws
            gradient = operator.vjp(image, operator.forward(image) - problem.y)
            image = image - rate * later.s**self.alpha * gradient
        return image


def squared_norm(problem: Problem) -> float | Tensor:
    """‖H‖², or a bound on it: a number, or one for each sample, (B, 1, 1, 1)."""
    operator = problem.operator
    if isinstance(operator, Nonlinear | Solved):
        return operator.lipschitz**2
    values = broadcast_to(operator.singular_values, problem.known.shape)
    return values.flatten(1).amax(1).view(-1, 1, 1, 1) ** 2
