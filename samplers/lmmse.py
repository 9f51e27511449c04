"""The linear MMSE estimate of a natural image: E[x | y] under a Gaussian with a 1/f² spectrum."""

from functools import lru_cache
from itertools import islice
from math import prod

import torch
from torch import Tensor

from kintsugi.numerics import conjugate_gradients, cosines
from kintsugi.operators import Operator, Solved
from kintsugi.operators.base import Factored

PIXEL_VARIANCE = 0.25
"""Of natural images on the [-1, 1] scale."""
TRUST = 0.01
"""Standard deviation ascribed to a noiseless known coefficient; conditions the system."""
ITERATIONS, SOLVED_ITERATIONS = 30, 100


def linear_mmse(operator: Operator, known: Tensor, sigma_y: float | Tensor) -> Tensor:
    """Solve (V W Vᵀ + C⁻¹) x = V W Vᵀ H⁺y by conjugate gradients, preconditioned in the DCT.

    W = 1 / (σ_y²/S² + 0.01²) is the precision of the known coefficients, C the covariance of a
    stationary image with spectrum 1/f², diagonal in the DCT, in whose coefficients all is computed.
    The number of iterations is fixed. `known` is Vᵀ H⁺y, (B, …); x is (B, C, H, W). σ_y may be (B, 1, 1, 1).
    """
    values = operator.singular_values
    precision = torch.where(values > 0, 1 / ((sigma_y / values) ** 2 + TRUST**2), 0)
    _, height, width = operator.image_shape
    rows, columns = (cosines(n).to(known) for n in (height, width))
    prior_precision = (1 / spectrum(height, width)).to(known)
    # The average of W over all directions: exact where W is constant.
    everywhere = precision.expand(precision.shape[:-3] + known.shape[1:])
    mean = everywhere.sum((-3, -2, -1), keepdim=True) / prod(operator.image_shape)
    inverse = 1 / (mean + prior_precision)
    if isinstance(
        operator, Factored
    ):  # V's two factors in the DCT: smaller products than one after the other
        left, right = rows @ operator.rows_right, columns @ operator.columns_right

        def to_spectral(x: Tensor) -> Tensor:
            return left.mT @ x @ right

        def from_spectral(c: Tensor) -> Tensor:
            return left @ c @ right.mT
    else:

        def to_spectral(x: Tensor) -> Tensor:
            return operator.to_spectral(rows.T @ x @ columns)

        def from_spectral(c: Tensor) -> Tensor:
            return rows @ operator.from_spectral(c) @ columns.T

    def matrix(x: Tensor) -> Tensor:
        return from_spectral(precision * to_spectral(x)) + prior_precision * x

    iterates = conjugate_gradients(matrix, lambda r: inverse * r, from_spectral(precision * known))
    x, _ = next(islice(iterates, ITERATIONS - 1, None))
    return rows.T @ x @ columns


def solved_mmse(operator: Solved, y: Tensor, sigma_y: float | Tensor) -> Tensor:
    """C Hᵀ (H C Hᵀ + σ_y² + 0.01²)⁻¹ y: without a decomposition the 0.01 is that of a measured pixel.

    C as of `linear_mmse`. By a fixed number of conjugate gradients among the measurements. y is
    (B, *measurement_shape), the result (B, C, H, W).
    """
    _, height, width = operator.image_shape
    rows, columns = (cosines(n).to(y) for n in (height, width))
    variances = spectrum(height, width)

    def covariance(x: Tensor) -> Tensor:
        return rows.T @ (on_device * (rows @ x @ columns.T)) @ columns

    def density(squared: Tensor) -> Tensor:
        squared = squared.clone()
        squared[0, 0] = (0.25 / max(squared.shape)) ** 2
        return variances[-1, -1].item() * highest / squared

    on_device = variances.to(y)
    highest = (0.5 * (height - 1) / height) ** 2 + (0.5 * (width - 1) / width) ** 2
    iterates = operator.iterates(y, sigma_y**2 + TRUST**2, covariance, density)
    z, _ = next(islice(iterates, SOLVED_ITERATIONS - 1, None))
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
