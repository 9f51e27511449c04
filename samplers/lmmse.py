"""The linear MMSE estimate of a natural image: E[x | y] under a Gaussian with a 1/f² spectrum."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from kintsugi.numerics import Map, conjugate_gradients, cosines, nth
from kintsugi.operators import Operator, Solved
from kintsugi.operators.base import Factored
from kintsugi.operators.convolution import Convolution
from kintsugi.samplers.noise import is_noisy

PIXEL_VARIANCE = 0.25
"""Of natural images on the [-1, 1] scale."""
TRUST = 0.01
"""The least standard deviation of a noisy coefficient, and what is added to a pixel's; it conditions."""
TOLERANCE = 1e-4
"""Of the linear MMSE estimate: less than 0.001 dB."""
ITERATIONS, FEW_ITERATIONS, SOLVED_ITERATIONS = 60, 15, 100


def linear_mmse(operator: Operator, known: Tensor, sigma_y: float | Tensor) -> Tensor:
    """E[x₀ | y] for x₀ ~ N(0, C), C the covariance of a stationary image with spectrum 1/f².

    `known` is Vᵀ H⁺y, (B, …); x is (B, C, H, W). σ_y may be (B, 1, 1, 1).
    """
    # V of outer products nearly has the DCT's waves, and 8 iterations are enough.
    iterations = FEW_ITERATIONS if isinstance(operator, Factored) else ITERATIONS
    variances = spectrum(*operator.image_shape[1:])
    return towards(operator, known, sigma_y, variances, iterations, tolerance=TOLERANCE)


def towards(
    operator: Operator,
    known: Tensor,
    sigma_y: float | Tensor,
    variances: Tensor,
    iterations: int,
    deviation: Tensor | None = None,
    tolerance: float = 0.0,
) -> Tensor:
    """E[x | k] for x ~ N(0, C) and k = Vᵀx + (σ_y/S) n where H sees it, (B, C, H, W).

    C = M Ψᵀ diag(c) Ψ M, Ψ the DCT and M the identity or a factor for each pixel. By a fixed number of
    preconditioned conjugate gradients: with noise for (V W Vᵀ + C⁻¹) x = V W k, W = S²/σ_y², at most 1/0.01²;
    without, for what H does not see given k. There C itself preconditions well, without which a large hole is
    not filled in hundreds of iterations. Where H is alike in all directions, and M the identity, all of this
    is diagonal in the DCT, and nothing is iterated.

    Args:
        known: k (B, …). sigma_y: a number, or (B, 1, 1, 1).
        variances: c (H, W) float64, positive. deviation: M (B, 1, H, W), positive.
        tolerance: as of `conjugate_gradients`.
    """
    space = Coordinates(operator, variances.to(known), deviation)
    seen = (operator.singular_values > 0).to(known)

    def unseen(x: Tensor) -> Tensor:
        return x - space.from_spectral(seen * space.to_spectral(x))

    def within(x: Tensor) -> Tensor:
        return unseen(space.covariance(x))

    if not is_noisy(sigma_y):
        told = space.from_spectral(seen * known)
        if operator.isotropic:
            return space.to_image(told)
        # Twice, since what it leaves of an image that it takes away whole is rounding, of which H sees much.
        pulled = -unseen(unseen(space.precision(told)))
        found = told + nth(
            conjugate_gradients(lambda x: unseen(space.precision(x)), within, pulled, tolerance), iterations
        )
        return space.to_image(found)
    values = operator.singular_values
    noise = ((sigma_y / values) ** 2).clamp_min(TRUST**2)
    weight = torch.where(values > 0, 1 / noise, 0).to(known)
    shrink = space.nearly_inverse(weight.expand(weight.shape[:-3] + known.shape[1:]))
    b = space.from_spectral(weight * known)
    if operator.isotropic and deviation is None:
        return space.to_image(shrink(b))

    def matrix(x: Tensor) -> Tensor:
        return space.from_spectral(weight * space.to_spectral(x)) + space.precision(x)

    def inverse(x: Tensor) -> Tensor:
        return shrink(x) + within(unseen(x))

    return space.to_image(nth(conjugate_gradients(matrix, inverse, b, tolerance), iterations))


class Coordinates:
    """Where images are reckoned with: by their DCT, in which C is diagonal, or by pixels if it is not.

    Args:
        variances: c (H, W). deviation: M (B, 1, H, W), or None.
    """

    def __init__(self, operator: Operator, variances: Tensor, deviation: Tensor | None):
        self.operator, self.variances, self.deviation = operator, variances, deviation
        self.rows, self.columns = (cosines(n).to(variances) for n in variances.shape)
        self.factors = None  # V's two in the DCT: smaller products than one after the other
        if isinstance(operator, Factored):
            self.factors = self.rows @ operator.rows_right, self.columns @ operator.columns_right

    def to_image(self, x: Tensor) -> Tensor:
        """An image from its coordinates."""
        return x if self.deviation is not None else self.rows.T @ x @ self.columns

    def from_image(self, x: Tensor) -> Tensor:
        """The coordinates of an image."""
        return x if self.deviation is not None else self.rows @ x @ self.columns.T

    def to_spectral(self, x: Tensor) -> Tensor:
        """Vᵀ x."""
        if self.factors is None or self.deviation is not None:
            return self.operator.to_spectral(self.to_image(x))
        left, right = self.factors
        return left.mT @ x @ right

    def from_spectral(self, c: Tensor) -> Tensor:
        """V c."""
        if self.factors is None or self.deviation is not None:
            return self.from_image(self.operator.from_spectral(c))
        left, right = self.factors
        return left @ c @ right.mT

    def covariance(self, x: Tensor) -> Tensor:
        """C x."""
        return self.stationary(self.variances, x)

    def precision(self, x: Tensor) -> Tensor:
        """C⁻¹ x."""
        if self.deviation is None:
            return x / self.variances
        whole = self.rows @ (x / self.deviation) @ self.columns.T / self.variances
        return self.rows.T @ whole @ self.columns / self.deviation

    def nearly_inverse(self, weight: Tensor) -> Map:
        """About (V W Vᵀ + C⁻¹)⁻¹: a diagonal in the Fourier transform if that is V, otherwise in the DCT.

        Args:
            weight: W (…, C, h, w).
        """
        if isinstance(self.operator, Convolution):
            # The wave u of the Fourier transform has the frequency of the DCT's 2u.
            rows, columns = (
                (2 * torch.minimum(torch.arange(n), n - torch.arange(n))).clamp_max(n - 1)
                for n in self.variances.shape
            )
            gains = 1 / (weight + 1 / self.variances[rows[:, None], columns])
            scale = 1 if self.deviation is None else self.deviation
            return lambda x: scale * self.from_spectral(gains * self.to_spectral(scale * x))
        if self.factors is not None:
            left, right = self.factors
            diagonal = left**2 @ weight @ (right**2).mT
        else:
            diagonal = weight.sum((-3, -2, -1), keepdim=True) / prod(self.operator.image_shape)
        gains = 1 / (diagonal + 1 / self.variances)
        return lambda x: self.stationary(gains, x)

    def stationary(self, gains: Tensor, x: Tensor) -> Tensor:
        """M Ψᵀ diag(gains) Ψ M x."""
        return gains * x if self.deviation is None else stationary(gains, self.deviation)(x)


def stationary(gains: Tensor, deviation: Tensor | None) -> Map:
    """x ↦ M Ψᵀ diag(gains) Ψ M x for images; gains (…, H, W), deviation: M (B, 1, H, W) or the identity."""
    rows, columns = (cosines(n).to(gains) for n in gains.shape[-2:])
    scale = 1 if deviation is None else deviation
    return lambda x: scale * (rows.T @ (gains * (rows @ (scale * x) @ columns.T)) @ columns)


def solved_mmse(operator: Solved, y: Tensor, sigma_y: float | Tensor) -> Tensor:
    """C Hᵀ (H C Hᵀ + σ_y² + 0.01²)⁻¹ y: without a decomposition the 0.01 is that of a measured pixel.

    C as of `linear_mmse`. By a fixed number of conjugate gradients among the measurements. y is
    (B, *measurement_shape), the result (B, C, H, W).
    """
    _, height, width = operator.image_shape
    variances = spectrum(height, width)
    covariance = stationary(variances.to(y), None)

    def density(squared: Tensor) -> Tensor:
        squared = squared.clone()
        squared[0, 0] = (0.25 / max(squared.shape)) ** 2
        return variances[-1, -1].item() * highest / squared

    highest = (0.5 * (height - 1) / height) ** 2 + (0.5 * (width - 1) / width) ** 2
    return solved_towards(operator, y, sigma_y, covariance, density)


def solved_towards(
    operator: Solved, v: Tensor, sigma_y: float | Tensor, covariance: Map, density: Map
) -> Tensor:
    """C Hᵀ (H C Hᵀ + σ_y² + 0.01²)⁻¹ v, (B, *measurement_shape) → (B, C, H, W); iterations are fixed.

    Args:
        covariance: C. density: its power at squared frequencies.
    """
    z = nth(operator.iterates(v, sigma_y**2 + TRUST**2, covariance, density), SOLVED_ITERATIONS)
    return covariance(operator.adjoint(z))


@lru_cache
def spectrum(height: int, width: int) -> Tensor:
    """Variances (H, W) of the DCT coefficients of natural images: ∝ 1/f², mean `PIXEL_VARIANCE`."""
    fy = torch.arange(height, dtype=torch.float64)[:, None] / (2 * height)
    fx = torch.arange(width, dtype=torch.float64) / (2 * width)
    squared = fy**2 + fx**2
    # The mean has infinite power under 1/f²; it gets that of half the lowest frequency.
    squared[0, 0] = (0.25 / max(height, width)) ** 2
    power = 1 / squared
    return PIXEL_VARIANCE * power / power.mean()
