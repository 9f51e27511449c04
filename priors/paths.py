"""Gaussian paths x_t = a(t) x₀ + s(t) z: the coefficients and their derivatives at t.

Every function maps a float64 tensor of times to a float64 tensor of the same shape; coefficients
are evaluated on the CPU, once per job, so precision costs nothing.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Path(Protocol):
    """A Gaussian path in its native time."""

    noise_time: float
    """The time of (nearly) pure noise."""
    data_time: float
    """The time of clean data."""

    def a(self, t: Tensor) -> Tensor:
        """The signal's factor, of t's shape."""

    def s(self, t: Tensor) -> Tensor:
        """The noise's standard deviation, of t's shape."""

    def da(self, t: Tensor) -> Tensor:
        """da/dt, of t's shape."""

    def ds(self, t: Tensor) -> Tensor:
        """ds/dt, of t's shape."""

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which log(a/s) has the given value, clamped to the path's range."""
        ...


@dataclass(frozen=True)
class VariancePreserving:
    """Score-SDE's VP path (Song et al. 2021): β(t) = β_min + t (β_max − β_min), t = 0 data, 1 noise."""

    noise_time, data_time = 1.0, 0.0
    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        """The rate β(t), linear in t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def integrated_beta(self, t: Tensor) -> Tensor:
        """b(t) = ∫₀ᵗ β."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def a(self, t: Tensor) -> Tensor:
        """exp(−b/2) of the integrated rate b."""
        return torch.exp(-0.5 * self.integrated_beta(t))

    def s(self, t: Tensor) -> Tensor:
        """√(1 − exp(−b)) of the integrated rate b."""
        # expm1: 1 − e^{-b} loses half its digits near t = 0.001.
        return torch.sqrt(-torch.expm1(-self.integrated_beta(t)))

    def da(self, t: Tensor) -> Tensor:
        """−β a / 2."""
        return -0.5 * self.beta(t) * self.a(t)

    def ds(self, t: Tensor) -> Tensor:
        """β a² / (2 s)."""
        return 0.5 * self.beta(t) * self.a(t) ** 2 / self.s(t)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The root in [0, 1] of the quadratic integrated rate."""
        # a²/s² = 1/(eᵇ − 1), hence b = log(1 + e^{-2 log_snr}), and b is quadratic in t.
        return self.time_at(torch.nn.functional.softplus(-2 * log_snr))

    def time_at(self, b: Tensor) -> Tensor:
        """The time at which the integrated rate is b."""
        slope = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 + 2 * slope * b)
        return (2 * b / (self.beta_min + root)).clamp(0, 1)


@dataclass(frozen=True)
class SubVariancePreserving(VariancePreserving):
    """Score-SDE's sub-VP path: the signal of the VP path, and the square of its noise (equation 14)."""

    def s(self, t: Tensor) -> Tensor:
        """1 − exp(−b) of the integrated rate b."""
        return -torch.expm1(-self.integrated_beta(t))

    def ds(self, t: Tensor) -> Tensor:
        """β a²."""
        return self.beta(t) * self.a(t) ** 2

    def time_of(self, log_snr: Tensor) -> Tensor:
        """By a, the positive root of a² + r a = 1 where r = s/a."""
        ratio = torch.exp(-log_snr)
        # −2 log a for a = 2 / (r + √(r² + 4)), exactly near a = 1, too.
        return self.time_at(2 * torch.asinh(ratio / 2))


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path of rectified flow and optimal transport: t = 0 noise, 1 data."""

    noise_time, data_time = 0.0, 1.0

    def a(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def s(self, t: Tensor) -> Tensor:
        """1 − t."""
        return 1 - t

    def da(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def ds(self, t: Tensor) -> Tensor:
        """−1."""
        return -torch.ones_like(t)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The logistic function of log(a/s)."""
        return torch.sigmoid(log_snr)


class VarianceExploding:
    """The VE path of Song et al. 2021 and of EDM (Karras et al. 2022), x₀ + σ z; native time is σ.

    It goes from sigma_max to clean data, though networks are trained from some smallest σ on.
    """

    data_time = 0.0

    def __init__(self, sigma_max: float = 80.0):
        self.noise_time = sigma_max

    def a(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def s(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def da(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def ds(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """exp(−log_snr), at most the time of noise."""
        return torch.exp(-log_snr).clamp(0, self.noise_time)


class DDPM:
    """The discrete path of DDPM (Ho et al. 2020); native time is the label 0 … steps − 1.

    The betas (steps,) are linear from beta_first to beta_last, or those given, all inside (0, 1). Between
    labels the log-SNR is interpolated linearly, so any fractional label is a point of the path.
    """

    data_time = 0.0

    def __init__(
        self,
        beta_first: float = 1e-4,
        beta_last: float = 0.02,
        steps: int = 1000,
        *,
        betas: Tensor | None = None,
    ):
        if betas is None:
            betas = torch.linspace(beta_first, beta_last, steps, dtype=torch.float64)
        log_alpha_bar = torch.log1p(-betas.double()).cumsum(0)
        self.log_snr_table = 0.5 * (log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar)))
        self.noise_time = float(len(betas) - 1)

    def log_snr(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log(a/s) and its derivative at t."""
        left = t.floor().clamp(0, len(self.log_snr_table) - 2).long()
        slope = self.log_snr_table[left + 1] - self.log_snr_table[left]
        return self.log_snr_table[left] + (t - left) * slope, slope

    def a(self, t: Tensor) -> Tensor:
        """The square root of the logistic function of 2 log(a/s), interpolated in the table."""
        return torch.sigmoid(2 * self.log_snr(t)[0]).sqrt()

    def s(self, t: Tensor) -> Tensor:
        """The square root of the logistic function of −2 log(a/s)."""
        return torch.sigmoid(-2 * self.log_snr(t)[0]).sqrt()

    def da(self, t: Tensor) -> Tensor:
        """a s² times the slope of log(a/s)."""
        # a² = sigmoid(2ℓ) gives da/dℓ = a s².
        return self.a(t) * self.s(t) ** 2 * self.log_snr(t)[1]

    def ds(self, t: Tensor) -> Tensor:
        """−s a² times the slope of log(a/s)."""
        return -self.s(t) * self.a(t) ** 2 * self.log_snr(t)[1]

    def time_of(self, log_snr: Tensor) -> Tensor:
        """By linear interpolation in the table, from 0 to the time of noise."""
        descending = self.log_snr_table
        right = torch.searchsorted(-descending, -log_snr.contiguous()).clamp(1, len(descending) - 1)
        upper, lower = descending[right - 1], descending[right]
        return (right - 1 + (upper - log_snr) / (upper - lower)).clamp(0, self.noise_time)


def log_snr(path: Path, t: Tensor) -> Tensor:
    """log(a/s): −∞ at pure noise and +∞ at clean data, where a path reaches them."""
    return torch.log(path.a(t)) - torch.log(path.s(t))
