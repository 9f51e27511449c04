"""Downsampling operators: one matrix for the rows and one for the columns."""

from collections.abc import Callable
from math import ceil
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.numerics import reflect
from kintsugi.operators.base import Separable

Kernel = Literal["cubic", "box", "linear", "lanczos3"]

THRESHOLD = 3e-2
"""On the singular values of one axis, as DDRM's super-resolution operator has it."""


def bicubic(image_shape: tuple[int, int, int], *, factor: PositiveInt = 4) -> Separable:
    """Antialiased bicubic downsampling: a = −0.5, 4·factor taps, reflected borders.

    Source: Keys 1981 for the kernel; the super-resolution operator of DDRM (2201.11793) and ΠGDM.
    """
    check_divides(factor, image_shape)
    return resize(image_shape, factor=factor)


def average_pool(image_shape: tuple[int, int, int], *, factor: PositiveInt = 4) -> Separable:
    """Mean over factor × factor blocks. Source: DDRM (2201.11793), DDNM (2212.00490)."""
    check_divides(factor, image_shape)
    return resize(image_shape, factor=factor, kernel="box")


def resize(
    image_shape: tuple[int, int, int],
    *,
    factor: Annotated[float, Field(ge=1)] = 4.0,
    kernel: Kernel = "cubic",
) -> Separable:
    """Antialiased downsampling by any factor: sides become round(side / factor), borders are reflected.

    cubic has a = −0.5 (Keys 1981); box averages, linear is the triangle, lanczos3 has three lobes (Duchon
    1979).
    """
    channels, height, width = image_shape
    if factor > 2 * min(height, width):
        raise ShapeError(f"factor: {factor} leaves nothing of images of {height}×{width}")
    rows, columns = (resize_matrix(n, round(n / factor), kernel) for n in (height, width))
    return Separable(channels, rows, columns, threshold=THRESHOLD)


def check_divides(factor: int, image_shape: tuple[int, int, int]) -> None:
    """Raise a ShapeError that names the side if a factor does not divide both sides of the image."""
    for side in image_shape[1:]:
        if side % factor:
            raise ShapeError(f"factor: {factor} does not divide the image side {side}")


def resize_matrix(n: int, m: int, kernel: Kernel) -> Tensor:
    """The (m, n) matrix that resizes n samples to m ≤ n: output i is centred at (i + ½) n/m − ½.

    The kernel is stretched by n/m against aliasing, rows sum to 1, and positions beyond the border
    are reflected.
    """
    support, function = KERNELS[kernel]
    reach = ceil(support * n / m)
    outputs = torch.arange(m)[:, None]
    positions = (2 * outputs + 1) * n // (2 * m) + torch.arange(-reach - 1, reach + 1)
    # In whole numbers, so that a box counts a sample on its edge the same on both sides.
    distances = ((2 * positions + 1) * m - (2 * outputs + 1) * n).abs().double() / (2 * n)
    weights = function(distances)
    weights /= weights.sum(1, keepdim=True)
    matrix = torch.zeros(m, n, dtype=torch.float64)
    return matrix.scatter_add_(1, reflect(positions, n), weights)


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic, a = −0.5, at distances x ≥ 0 in pixels; zero from 2 on."""
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def box(x: Tensor) -> Tensor:
    """1 below half a pixel, ½ at it, 0 beyond; x ≥ 0."""
    return ((x < 0.5).double() + (x <= 0.5).double()) / 2


def linear(x: Tensor) -> Tensor:
    """1 − x, zero from a pixel on; x ≥ 0."""
    return (1 - x).clamp_min(0)


def lanczos3(x: Tensor) -> Tensor:
    """sinc(x) sinc(x/3), zero from 3 pixels on; x ≥ 0."""
    return torch.where(x < 3, torch.sinc(x) * torch.sinc(x / 3), 0)


KERNELS: dict[Kernel, tuple[float, Callable[[Tensor], Tensor]]] = {
    "cubic": (2, cubic),
    "box": (0.5, box),
    "linear": (1, linear),
    "lanczos3": (3, lanczos3),
}
"""How far each kernel reaches, and its values at distances x ≥ 0, in samples of the result."""
