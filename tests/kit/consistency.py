"""A consistency function with a closed form: what samplers that take one are tried with."""

import torch
from kit.operators import dense
from torch import Tensor

from kintsugi.priors.analytic import natural_spectrum
from kintsugi.priors.paths import VarianceExploding

LEAST = 0.002
"""σ at which it is the identity."""


class GaussianEndpoint:
    """Where the probability-flow ODE of N(mean, covariance) on the VE path ends, at σ = LEAST.

    Along a direction of variance c the ODE is dx/dσ = σ (x − m) / (c + σ²), so x − m goes as √(c + σ²).

    Args:
        mean: (C, H, W). covariance: (D, D) of the flattened images.
    """

    path, parametrization, prediction = VarianceExploding(), "x0", "endpoint"

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, (self.variances, self.directions) = mean, torch.linalg.eigh(covariance)

    def matrix(self, sigma: float) -> Tensor:
        """The linear map of x − m at a level, (D, D)."""
        gain = ((self.variances + LEAST**2) / (self.variances + sigma**2)).sqrt()
        return self.directions * gain @ self.directions.T

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        variances, directions = self.variances.to(x), self.directions.to(x)
        gain = ((variances + LEAST**2) / (variances + t[:, None] ** 2)).sqrt()
        away = (x - self.mean.to(x)).flatten(1) @ directions
        return self.mean.to(x) + (gain * away @ directions.T).view_as(x)


def natural_endpoint(shape: tuple[int, int, int], seed: int = 0) -> GaussianEndpoint:
    """That of a texture with a 1/f² spectrum around a mean, (1, H, W)."""
    power = 0.25 * natural_spectrum(*shape[1:])
    covariance = dense(lambda x: torch.fft.ifft2(power * torch.fft.fft2(x)).real, shape)
    generator = torch.Generator().manual_seed(seed)
    return GaussianEndpoint(0.3 * torch.randn(shape, generator=generator, dtype=torch.float64), covariance)
