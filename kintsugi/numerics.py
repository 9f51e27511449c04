"""Numerics that operators, priors and samplers share."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

NORMAL_QUARTILE = 0.6744897501960817
DB2 = (-0.48296291314453414, 0.8365163037378079, -0.2241438680420134, -0.12940952255126037)
"""The high-pass filter of Daubechies' wavelet with two vanishing moments."""


def reflect(positions: Tensor, n: int) -> Tensor:
    """Fold positions outside 0…n−1 back, the border pixel itself repeated: … 1 0 | 0 1 …"""
    folded = positions.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)


def larger(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The larger of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_min(other)
    return other.clamp_min(one) if isinstance(other, Tensor) else max(one, other)


def smaller(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The smaller of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_max(other)
    return other.clamp_max(one) if isinstance(other, Tensor) else min(one, other)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n), a frequency per row."""
    frequencies, positions = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 0.5
    matrix = torch.cos(torch.pi * frequencies * positions / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], b: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Better and better solutions x of matrix(x) = b, each with its residual b − matrix(x), without end.

    Every sample of b (B, C, H, W) has step sizes of its own, so that none depends on its batch; nothing waits
    for the device. Hestenes & Stiefel 1952.

    Args:
        matrix, inverse: symmetric and positive definite maps of (B, C, H, W); the second preconditions.
    """

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((1, 2, 3), keepdim=True)

    x, r = torch.zeros_like(b), b
    preconditioned = inverse(r)
    direction = preconditioned
    energy = inner(r, preconditioned)
    while True:
        image = matrix(direction)
        # A sample that has converged has zeros here; it stays where it is.
        step = energy / inner(direction, image).clamp_min(torch.finfo(x.dtype).tiny)
        x = x + step * direction
        r = r - step * image
        yield x, r
        preconditioned = inverse(r)
        before, energy = energy, inner(r, preconditioned)
        direction = preconditioned + energy / before.clamp_min(torch.finfo(x.dtype).tiny) * direction


def diagonal_details(planes: Tensor) -> Tensor:
    """The finest diagonal wavelet coefficients of planes (C, h, w), beyond whose borders is their mirror."""
    filters = planes.new_tensor(DB2)
    for axis in (1, 2):
        n = planes.shape[axis]
        outputs = 2 * torch.arange((n + 3) // 2)[:, None] + 1 - torch.arange(4)
        folded = reflect(outputs, n).to(planes.device)
        planes = (planes.movedim(axis, -1)[..., folded] @ filters).movedim(-1, axis)
    return planes


def noise_in_details(details: Tensor) -> Tensor:
    """σ of the noise in planes, a number: their mean, of the `diagonal_details` (C, h, w) that are not 0.

    The median absolute value over that of a standard normal variable (Donoho & Johnstone 1994), as
    `skimage.restoration.estimate_sigma` has it; 0 where there are none.
    """
    return torch.stack([median_level(plane[plane != 0]) for plane in details]).mean()


def median_level(details: Tensor) -> Tensor:
    """σ of normal variables of which a few are not: their median absolute value over a standard one's."""
    if details.numel() == 0:
        return details.new_zeros(())
    return details.abs().quantile(0.5) / NORMAL_QUARTILE
