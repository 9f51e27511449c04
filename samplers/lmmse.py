"""The linear MMSE estimate of a natural image: E[x | y] under a Gaussian with a 1/f² spectrum."""

from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from kintsugi.numerics import cosines
from kintsugi.operators import Operator
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
    Every sample has step sizes of its own, so the result does not depend on the batch; the number of
    iterations is fixed, so nothing waits for the device. `known` is Vᵀ H⁺y, (B, …); x is (B, C, H, W).
    """
    values = operator.singular_values
    precision = torch.where(values > 0, 1 / ((sigma_y / values) ** 2 + TRUST**2), 0)
    _, height, width = operator.image_shape
    rows, columns = (cosines(n).to(known) for n in (height, width))
    prior_precision = (1 / spectrum(height, width)).to(known)
    # The average of W over all directions: exact where W is constant.
    mean = precision.expand(known.shape[1:]).sum() / prod(operator.image_shape)
    inverse = 1 / (mean + prior_precision)
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

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((1, 2, 3), keepdim=True)

    r = from_spectral(precision * known)
    x = torch.zeros_like(r)
    preconditioned = inverse * r
    direction = preconditioned
    energy = inner(r, preconditioned)
    for _ in range(ITERATIONS):
        image = from_spectral(precision * to_spectral(direction)) + prior_precision * direction
        # A sample that has converged has zeros here; it stays where it is.
        step = energy / inner(direction, image).clamp_min(torch.finfo(x.dtype).tiny)
        x = x + step * direction
        r = r - step * image
        preconditioned = inverse * r
        before, energy = energy, inner(r, preconditioned)
        direction = preconditioned + energy / before.clamp_min(torch.finfo(x.dtype).tiny) * direction
    return rows.T @ x @ columns


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
