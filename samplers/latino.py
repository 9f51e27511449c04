"""LATINO: predict latents, decode them, correct the image by the measurement, encode it."""

from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.priors.base import Prior
from kintsugi.samplers.base import Share
from kintsugi.samplers.covariance import Belief
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import Denoiser, Descent, Level, noise_in, renoise
from kintsugi.samplers.errors import ErrorVariances, check_covariance, errors_of
from kintsugi.samplers.problem import Init, Problem


@dataclass(kw_only=True, frozen=True)
class Latino(Descent):
    """LATINO (Spagnoletti et al., ICCV 2025, 2503.12615), with a covariance in place of its step sizes.

    At each level the predicted latents are decoded, the image x is corrected to x + C Hᵀ (H C Hᵀ + σ_y²)⁻¹
    (y − H x), C that of the errors of decoded predictions, and encoded; then noise of the next level. The
    last corrected image is the result: it agrees with y, whatever an autoencoder loses. No vector-Jacobian
    products. Takes consistency functions, too, as published.

    Args:
        covariance: C at each noise level: `wiener`, of the best linear denoiser of natural images; `natural`,
            measured on the embedded prior of latents; or a file that `kintsugi calibrate` wrote.
        eta: the share of fresh noise; 1 as published.
        trust: λ, by which C is multiplied in all steps but the last where y is noisy, as `covariance` has it.
            What y's noise makes of the latents, by a draw of it that goes the same way and one encoding more,
            counts as noise of the next level, of which less is added. Ours; not with a non-linear operator.
    """

    takes_latents: ClassVar[bool] = True
    needs_latents: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False
    steps: PositiveInt = 8
    start: Annotated[float, Field(gt=0, le=1)] = 0.4
    init: Init = "lmmse"
    covariance: str = "wiener"
    eta: Share = 1.0
    trust: PositiveFloat = 10.0

    def __post_init__(self) -> None:
        check_covariance(self.covariance)

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> list[Level]:
        """The levels for a job; see `samplers.base.Sampler`."""
        levels = super().prepare(prior, operator, sigma_y, like)
        self.errors(prior)
        return levels

    def errors(self, prior: Prior) -> ErrorVariances:
        """c(σ, |f|) of decoded predictions; raises a ValueError that begins with the field."""
        return self.remembered("errors", (prior,), (), lambda: errors_of(self.covariance, prior))

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """From E(x) + noise to an image (B, C, H, W) that agrees with y."""
        seen, errors = problem.operator, self.errors(denoise.prior)
        assert isinstance(seen, Decoded)
        shape = seen.operator.image_shape[1:]
        z = problem.start(self.init, levels[0].a, levels[0].s)
        for now, later in pairwise(levels):
            prediction = denoise(z, now)
            large = seen.decode(prediction)
            counted = problem.noisy and seen.operator.linear and later.s > 0
            belief = self.belief(errors, now.sigma, self.trust if counted else 1.0, shape)
            image = belief.correct(problem.of_images, seen.reduced(large), None)
            if later.s == 0:
                return image
            corrected = seen.encode(seen.enlarged(image, large).clamp(-1, 1))
            state = renoise(problem, corrected, noise_in(z, prediction, now), later, self.eta)
            if counted:
                noisier = image + belief.correct(noise_of(problem), torch.zeros_like(image), None)
                moved = seen.encode(seen.enlarged(noisier, large).clamp(-1, 1)) - corrected
                state = torch.lerp(later.a * corrected, state, fresh_share(moved, later.sigma))
            z = state
        raise AssertionError("the last level is clean data")

    def belief(self, errors: ErrorVariances, sigma: float, trust: float, shape: tuple[int, int]) -> Belief:
        """Of decoded predictions at a noise level, kept."""
        return self.remembered(
            f"belief {sigma} {trust}", (errors,), shape, lambda: Belief(errors, sigma, trust, shape)
        )

    def shown(self, seen: Decoded, result: Tensor) -> Tensor:
        """It is an image."""
        return result


def noise_of(problem: Problem) -> Problem:
    """Of images: a measurement of nothing but noise, a draw of that of y."""
    seen, y = problem.operator, problem.y
    assert isinstance(seen, Decoded)
    noise = problem.draw(seen.measurement_shape).to(y) * problem.sigma_y
    return Problem(seen.operator, noise, problem.noise, problem.sigma_y)


def fresh_share(moved: Tensor, sigma: float) -> Tensor:
    """√(1 − v/σ²) (B, c, 1, 1), v the mean square of what a draw of y's noise moved the latents by."""
    return (1 - moved.square().mean((2, 3), keepdim=True) / sigma**2).clamp_min(0).sqrt()
