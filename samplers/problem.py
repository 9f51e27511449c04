"""One batch to restore: the measurement, what is known of the image from it, and the sample's noise."""

from concurrent.futures import Future
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from kintsugi.device import sent
from kintsugi.operators import Operator, Solved
from kintsugi.operators.base import reciprocal
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.lmmse import linear_mmse, solved_mmse
from kintsugi.samplers.noise import KeyedNoise, Noise, is_noisy, threads

Init = Literal["pinv", "lmmse"]


class Problem:
    """y = H(x₀) + σ_y n for a batch, and where its noise comes from.

    Args:
        y: (B, *operator.measurement_shape). noise: see `samplers.base.Sampler`.
        sigma_y: see there.

    Attributes:
        noisy: whether there is measurement noise: in all samples, or in none.

    Raises:
        ValueError: of noise levels of samples one is not positive, or they are not (B, 1, 1, 1).
    """

    def __init__(self, operator: Operator, y: Tensor, noise: Noise, sigma_y: float | Tensor):
        self.operator, self.y, self.noise = operator, y, noise
        self.sigma_y, self.noisy = level_of_noise(sigma_y, y), is_noisy(sigma_y)
        self._draws = 0
        self._ahead: tuple[tuple[int, ...], Future[Tensor]] | None = None

    @cached_property
    def pinv(self) -> Tensor:
        """H⁺y, (B, C, H, W)."""
        return self.operator.pinv(self.y)

    @cached_property
    def of_images(self) -> "Problem":
        """Of a problem of latents the same of images."""
        operator = self.operator
        assert isinstance(operator, Decoded)
        return Problem(operator.operator, self.y, self.noise, self.sigma_y)

    @cached_property
    def known(self) -> Tensor:
        """Vᵀ H⁺y: what the measurement says, in spectral coordinates."""
        return self.operator.to_spectral(self.pinv)

    def known_given(self, prediction: Tensor, variance: float | None = None) -> Tensor:
        """`known`; without a decomposition x̂₀ + H⁺(y) − H⁺(H(x̂₀)), what y makes of a prediction.

        Args:
            variance: r² of the factor g that the caller applies to what differs from x̂₀. Where y is noisy and
                solved for, g times it is then r² Hᵀ (r² H Hᵀ + σ_y²)⁻¹ (y − H x̂₀), where g > 0.
        """
        operator = self.operator
        if operator.decomposed:
            return self.known
        if variance is None or not self.noisy or not isinstance(operator, Solved):
            return operator.to_spectral(operator.impose(prediction, self.y))
        shift = operator.solve(self.y - operator.forward(prediction), self.sigma_y**2 / variance)
        scaled = reciprocal(self.factor(variance)) * operator.to_spectral(shift)
        return operator.to_spectral(prediction) + scaled

    def factor(self, variance: float) -> Tensor:
        """g = S² r² / (S² r² + σ_y²): the trust in y beside a prediction of variance r², per direction."""
        values = self.operator.singular_values
        if not self.noisy:
            return (values > 0).to(values)
        squared = values**2
        return squared * variance / (squared * variance + self.sigma_y**2)

    def moved(self, prediction: Tensor, variance: float) -> Tensor:
        """The mean of N(x̂₀, variance · I) given y, (B, C, H, W); without noise x̂₀ with y where measured."""
        residual = self.known_given(prediction, variance) - self.operator.to_spectral(prediction)
        return prediction + self.operator.from_spectral(self.factor(variance) * residual)

    def estimate(self, init: Init, variance: float) -> Tensor:
        """The image that a warm start starts from, (B, C, H, W).

        "lmmse": the linear MMSE estimate. "pinv": H⁺y, less the directions in which it amplifies the
        measurement noise beyond `variance`; those are left to the prior. Of latents it is that of the image.
        """
        if isinstance(self.operator, Decoded):
            return self.operator.latents_of(self.of_images.estimate(init, variance))
        if init == "lmmse":
            if isinstance(self.operator, Solved):
                return solved_mmse(self.operator, self.y, self.sigma_y)
            return linear_mmse(self.operator, self.known, self.sigma_y)
        if not self.noisy:
            return self.pinv
        if isinstance(self.operator, Solved):
            return self.operator.solve(self.y, self.sigma_y**2 / variance)
        return self.operator.from_spectral(self.factor(variance) * self.known)

    def start(self, init: Init, a: float, s: float) -> Tensor:
        """The state x = a m + s z that a warm start begins with, m the estimate, (B, C, H, W)."""
        return self.around(self.estimate(init, s**2 / (a**2 + s**2)), a, s)

    def around(self, mean: Tensor, a: float, s: float) -> Tensor:
        """The state a m + s z, z the noise of the start, (B, C, H, W)."""
        if isinstance(self.noise, Tensor):
            z = self.noise
        else:
            z = self.noise.normal("start", self.operator.image_shape)
        if z.shape != mean.shape:
            raise ValueError(f"noise has shape {tuple(z.shape)}, expected {tuple(mean.shape)}")
        return a * mean + s * sent(z, mean.device).to(mean)

    def draw(self, shape: tuple[int, int, int] | None = None) -> Tensor:
        """Fresh standard normal noise, (B, C, H, W) unless `shape` says (B, *shape): a stream for each call.

        That of the next call is drawn meanwhile, where the device leaves this thread time for it.

        Raises:
            ValueError: the problem came with a tensor, which is the noise of the start only.
        """
        if not isinstance(self.noise, KeyedNoise):
            raise ValueError("noise: this sampler draws noise in its steps; pass a KeyedNoise, not a tensor")
        self._draws += 1
        shape = shape or self.operator.image_shape
        if self._ahead is not None and self._ahead[0] == shape:
            z = self._ahead[1].result()
        else:
            z = self.noise.normal(f"step-{self._draws}", shape)
        if draws_ahead(self.y.device):
            drawing = threads("ahead", 1).submit(self.noise.normal, f"step-{self._draws + 1}", shape)
            self._ahead = shape, drawing
        return sent(z, self.y.device).to(self.y)


def draws_ahead(device: torch.device) -> bool:
    """Whether noise is drawn while the device works: not where the device is what would draw it."""
    return device.type != "cpu"


def level_of_noise(sigma_y: float | Tensor, y: Tensor) -> float | Tensor:
    """The noise level of measurements y: a number, or one for each sample, like y; raises as `Problem`."""
    if not isinstance(sigma_y, Tensor):
        return sigma_y
    if sigma_y.shape != (len(y), 1, 1, 1):
        raise ValueError(f"sigma_y: shape {tuple(sigma_y.shape)}, expected {(len(y), 1, 1, 1)}")
    if not (sigma_y > 0).all():
        raise ValueError(
            "sigma_y: a noise level for each sample must be positive; restore samples without noise by "
            "themselves, with sigma_y=0.0"
        )
    return sigma_y.to(y)


def check_project(project: bool, sigma_y: float | Tensor) -> None:
    """Raise a ValueError for `project` with measurement noise."""
    if project and is_noisy(sigma_y):
        largest = sigma_y.max().item() if isinstance(sigma_y, Tensor) else sigma_y
        raise ValueError(
            f"project: imposing a measurement with noise (σ = {largest:g} on [-1, 1]) would put "
            "the noise into the image; use project: false"
        )
