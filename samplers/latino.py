"""LATINO: predict latents, decode them, correct the image by the measurement, encode it."""

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt
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
    """

    takes_latents: ClassVar[bool] = True
    needs_latents: ClassVar[bool] = True
    needs_mean: ClassVar[bool] = False
    steps: PositiveInt = 8
    start: Annotated[float, Field(gt=0, le=1)] = 0.4
    init: Init = "lmmse"
    covariance: str = "wiener"
    eta: Share = 1.0

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
            image = self.belief(errors, now.sigma, shape).correct(
                problem.of_images, seen.reduced(large), None
            )
            if later.s == 0:
                return image
            corrected = seen.encode(seen.enlarged(image, large).clamp(-1, 1))
            z = renoise(problem, corrected, noise_in(z, prediction, now), later, self.eta)
        raise AssertionError("the last level is clean data")

    def belief(self, errors: ErrorVariances, sigma: float, shape: tuple[int, int]) -> Belief:
        """Of decoded predictions at a noise level, kept."""
        return self.remembered(f"belief {sigma}", (errors,), shape, lambda: Belief(errors, sigma, 1.0, shape))

    def shown(self, seen: Decoded, result: Tensor) -> Tensor:
        """It is an image."""
        return result
