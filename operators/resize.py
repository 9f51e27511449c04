"""Downsampling operators: antialiased bicubic, and averaging over blocks."""

import torch
from pydantic import PositiveInt
from torch import Tensor

from operators.base import Separable

CUBIC_A = -0.5


def bicubic(image_shape: tuple[int, int, int], *, factor: PositiveInt = 4) -> Separable:
    """Antialiased bicubic downsampling: a = −0.5, 4·factor taps, reflected borders.

    Source: Keys 1981 for the kernel; the super-resolution operator of DDRM (2201.11793) and ΠGDM.
    """
    channels, height, width = image_shape
    rows, columns = (decimation(n, cubic_taps(factor), factor) for n in (height, width))
    return Separable(channels, rows, columns, threshold=3e-2)


def average_pool(image_shape: tuple[int, int, int], *, factor: PositiveInt = 4) -> Separable:
    """Mean over factor × factor blocks. Source: DDRM (2201.11793), DDNM (2212.00490)."""
    channels, height, width = image_shape
    taps = torch.full((factor,), 1 / factor, dtype=torch.float64)
    rows, columns = (decimation(n, taps, factor) for n in (height, width))
    return Separable(channels, rows, columns)


def cubic_taps(factor: int) -> Tensor:
    """The normalised taps of the cubic kernel stretched by `factor`, centred on the block.

    4·factor taps between pixels for even factors; for odd ones, whose blocks have a central pixel,
    4·factor − 1 taps on pixels.
    """
    count = 4 * factor - factor % 2
    x = ((torch.arange(count, dtype=torch.float64) - (count - 1) / 2) / factor).abs()
    inner = (CUBIC_A + 2) * x**3 - (CUBIC_A + 3) * x**2 + 1
    outer = CUBIC_A * (x**3 - 5 * x**2 + 8 * x - 4)
    taps = torch.where(x <= 1, inner, outer)
    return taps / taps.sum()


def decimation(n: int, taps: Tensor, factor: int) -> Tensor:
    """The (n / factor, n) matrix that filters with `taps` around each block, borders reflected."""
    if n % factor:
        raise ValueError(f"factor: {factor} does not divide the image side {n}")
    k = len(taps)
    first = factor * torch.arange(n // factor) - (k - factor) // 2
    positions = reflect(first[:, None] + torch.arange(k), n)
    matrix = torch.zeros(n // factor, n, dtype=torch.float64)
    return matrix.scatter_add_(1, positions, taps.expand(n // factor, k).contiguous())


def reflect(positions: Tensor, n: int) -> Tensor:
    """Fold positions outside 0…n−1 back, the border pixel itself repeated: … 1 0 | 0 1 …"""
    folded = positions.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)
