"""RED-diff: variational inference, an optimiser on the image with the prior as a regulariser."""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Strength
from kintsugi.samplers.descent import Denoiser, Descent, Level, noise_in
from kintsugi.samplers.problem import Problem

Weighting = Literal["linear", "sqrt", "square", "constant"]
POWERS: dict[Weighting, float] = {"linear": 1.0, "sqrt": 0.5, "square": 2.0, "constant": 0.0}
Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(kw_only=True, frozen=True)
class REDdiff(Descent):
    """Regularisation by denoising diffusion (Mardani et al., ICLR 2024, 2305.04391, algorithm 1).

    Adam on ½‖y − H(μ)‖² + λ (s/a)^power (ẑ − z)ᵀ μ, the noise estimate ẑ held fixed, at x = a μ + s z
    with fresh z; from noisy levels to clean ones. weighting: the power, linear 1, sqrt ½, square 2,
    constant 0. The true gradient, also of a non-linear operator. No vector-Jacobian products.
    """

    steps: PositiveInt = 1000
    lam: Strength = 0.25
    lr: PositiveFloat = 0.1
    betas: tuple[Momentum, Momentum] = (0.9, 0.99)
    weighting: Weighting = "linear"

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """The images (B, C, H, W), moved by Adam once for each level."""
        # Adam works on each pixel by itself, so a sample's result does not depend on its batch.
        image = problem.estimate(self.init, 1.0).clone()
        optimiser = torch.optim.Adam([image], lr=self.lr, betas=self.betas)
        for level in levels[:-1]:
            image.grad = self.gradient(problem, denoise, image, level)
            optimiser.step()
        return image

    def gradient(self, problem: Problem, denoise: Denoiser, image: Tensor, level: Level) -> Tensor:
        """The misfit's gradient at `image`, and λ times the weighted error of the predicted noise."""
        z = problem.draw()
        noisy = level.a * image + level.s * z
        estimate = noise_in(noisy, denoise(noisy, level), level)
        misfit = problem.operator.forward(image) - problem.y
        strength = self.lam * level.sigma ** POWERS[self.weighting]
        return problem.operator.vjp(image, misfit) + strength * (estimate - z)
