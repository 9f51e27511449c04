"""Priors whose denoiser E[x₀ | x_t] is a closed form: the ground truth of the sampler tests."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from kintsugi.priors.base import Parametrization, data_prediction
from kintsugi.priors.paths import Path, VariancePreserving


class Analytic(ABC):
    """A prior defined by its exact denoiser, on any path and in any parametrisation."""

    def __init__(self, path: Path | None = None, parametrization: Parametrization = "eps"):
        self.path: Path = path or VariancePreserving()
        self.parametrization: Parametrization = parametrization

    @abstractmethod
    def denoise(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """E[x₀ | a x₀ + s z = x], with a and s of shape (B, 1, 1, 1)."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        time = t.detach().to("cpu", torch.float64)
        p, q = data_prediction(self.path, self.parametrization, time)
        a, s, p, q = (value.to(x).view(-1, 1, 1, 1) for value in (self.path.a(time), self.path.s(time), p, q))
        return (self.denoise(x, a, s) - p * x) / q


class StandardNormal(Analytic):
    """x₀ ~ N(0, I)."""

    def denoise(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """a x / (a² + s²), at every pixel."""
        return a / (a**2 + s**2) * x


class StationaryGaussian(Analytic):
    """x₀ ~ N(0, F* diag(power) F), F the orthonormal 2-D Fourier transform: a random texture.

    Args:
        power: (H, W) power spectrum, symmetric under frequency negation; see `natural_spectrum`.
    """

    def __init__(self, power: Tensor, path: Path | None = None, parametrization: Parametrization = "eps"):
        super().__init__(path, parametrization)
        self.power = power

    def denoise(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The Wiener filter: a gain for each frequency."""
        power = self.power.to(x)
        gain = a * power / (a**2 * power + s**2)
        return torch.fft.ifft2(gain * torch.fft.fft2(x)).real


def natural_spectrum(height: int, width: int) -> Tensor:
    """The 1/f² power spectrum of natural images, (H, W), with mean 1 (unit pixel variance)."""
    fy = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    fx = torch.fft.fftfreq(width, dtype=torch.float64)
    squared = fy**2 + fx**2
    # The mean has infinite power under 1/f²; it gets that of half the lowest frequency.
    squared[0, 0] = 0.25 / max(height, width) ** 2
    power = 1 / squared
    return power / power.mean()


class LowRankMixture(Analytic):
    """x₀ ~ Σᵢ πᵢ N(μᵢ, Wᵢ Wᵢᵀ + τ² I): several modes, each with a few directions of variation.

    Args:
        means: (K, C, H, W); factors: (K, R, C, H, W), rows orthogonal to each other within a mode.
        tau: standard deviation of the isotropic part, positive.
        weights: (K,) mixture weights, summing to 1.
    """

    def __init__(
        self,
        means: Tensor,
        factors: Tensor,
        tau: float,
        weights: Tensor,
        path: Path | None = None,
        parametrization: Parametrization = "eps",
    ):
        super().__init__(path, parametrization)
        self.means, self.factors, self.tau, self.weights = means, factors, tau, weights

    def denoise(self, x: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """The components' means given x, weighted by their probabilities given x."""
        means, factors, weights = (v.to(x) for v in (self.means, self.factors, self.weights))
        rank = factors.shape[1]
        flat = x.flatten(1)
        mu, basis = means.flatten(1), factors.flatten(2)
        strength = basis.square().sum(-1)  # (K, R): variance along each direction
        unit = basis / strength.sqrt().clamp_min(1e-30)[..., None]
        a, s = a.view(-1, 1), s.view(-1, 1)
        noise = (a**2 * self.tau**2 + s**2)[..., None]  # (B, 1, 1): variance of x off the directions
        centred = flat[:, None] - a[..., None] * mu  # (B, K, D)
        along = torch.einsum("bkd,krd->bkr", centred, unit)
        variance = noise + a[..., None] ** 2 * strength  # (B, K, R)
        off = centred.square().sum(-1) - along.square().sum(-1)
        log_density = (
            weights.log()
            - 0.5 * (off / noise[..., 0] + (along**2 / variance).sum(-1))
            - 0.5 * (variance.log().sum(-1) + (flat.shape[1] - rank) * noise[..., 0].log())
        )
        responsibility = torch.softmax(log_density, dim=1)
        # Posterior mean within a mode: shrink along the directions and, differently, off them.
        gain_off = a[..., None] * self.tau**2 / noise
        gain_along = a[..., None] * (strength + self.tau**2) / variance
        shift = (gain_along - gain_off) * along
        within = mu + gain_off * centred + torch.einsum("bkr,krd->bkd", shift, unit)
        return torch.einsum("bk,bkd->bd", responsibility, within).view_as(x)
