"""The linear MMSE estimate of a natural image: E[x | y] under a Gaussian with a 1/f² spectrum."""

from collections.abc import Callable
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
ITERATIONS = 30


def linear_mmse(operator: Operator, known: Tensor, sigma_y: float) -> Tensor:
    """Solve (V W Vᵀ + C⁻¹) x = V W Vᵀ H⁺y by conjugate gradients, preconditioned in the DCT.

    W = 1 / (σ_y²/S² + 0.01²) is the precision of the known coefficients, C the covariance of a
    stationary image with spectrum 1/f², diagonal in the DCT, in whose coefficients all is computed.
    For an operator that has no V (`Solved`) P = HᵀH / (σ_y² + 0.01²) stands for V W Vᵀ. The number of
    iterations is fixed. `known` is Vᵀ H⁺y, (B, …); x is (B, C, H, W).
    """
    _, height, width = operator.image_shape
    rows, columns = (cosines(n).to(known) for n in (height, width))
    prior_precision = (1 / spectrum(height, width)).to(known)
    if isinstance(operator, Solved):
        of_data, b, weight = from_measurement(operator, known, sigma_y, rows, columns)
    else:
        of_data, b, weight = from_coefficients(operator, known, sigma_y, rows, columns)
    inverse = 1 / (weight + prior_precision)
    x, _ = next(
        islice(
            conjugate_gradients(lambda d: of_data(d) + prior_precision * d, lambda r: inverse * r, b),
            ITERATIONS - 1,
            None,
        )
    )
    return rows.T @ x @ columns


Data = tuple[Callable[[Tensor], Tensor], Tensor, Tensor]
"""Of a measurement, in the DCT: x ↦ P x with its precision P, P applied to H⁺y, about the diagonal of P."""


def from_coefficients(
    operator: Operator, known: Tensor, sigma_y: float, rows: Tensor, columns: Tensor
) -> Data:
    """P = V W Vᵀ."""
    values = operator.singular_values
    precision = torch.where(values > 0, 1 / ((sigma_y / values) ** 2 + TRUST**2), 0)
    # The average of W over all directions: exact where W is constant.
    mean = precision.expand(known.shape[1:]).sum() / prod(operator.image_shape)
    if isinstance(
        operator, Factored
    ):  # V's two factors in the DCT: smaller products than one after the other
        left, right = rows @ operator.rows_right, columns @ operator.columns_right

        def to_spectral(x: Tensor) -> Tensor:
            return left.T @ x @ right

        def from_spectral(c: Tensor) -> Tensor:
            return left @ c @ right.T
    else:

        def to_spectral(x: Tensor) -> Tensor:
            return operator.to_spectral(rows.T @ x @ columns)

        def from_spectral(c: Tensor) -> Tensor:
            return rows @ operator.from_spectral(c) @ columns.T

    return lambda d: from_spectral(precision * to_spectral(d)), from_spectral(precision * known), mean


def from_measurement(operator: Solved, known: Tensor, sigma_y: float, rows: Tensor, columns: Tensor) -> Data:
    """P = HᵀH / (σ_y² + 0.01²): without a decomposition the 0.01 is of the measured pixels."""
    trust = 1 / (sigma_y**2 + TRUST**2)
    pinv = operator.from_spectral(known)
    # (HᵀH + λ) H⁺y = Hᵀy.
    adjoint = operator.adjoint(operator.forward(pinv)) + operator.ridge * pinv

    def of_data(d: Tensor) -> Tensor:
        return trust * (rows @ operator.adjoint(operator.forward(rows.T @ d @ columns)) @ columns.T)

    return of_data, trust * (rows @ adjoint @ columns.T), trust * operator.cosine_power()


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
