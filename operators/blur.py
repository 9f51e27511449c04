"""Blurs with a stated kernel and boundary."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from operators.base import Separable
from operators.resize import reflect

Boundary = Literal["reflect", "zero", "circular"]


def gaussian_blur(
    image_shape: tuple[int, int, int],
    *,
    sigma: PositiveFloat = 3.0,
    taps: PositiveInt = 61,
    boundary: Boundary = "reflect",
    threshold: NonNegativeFloat = 3e-2,
) -> Separable:
    """Separable Gaussian blur of standard deviation `sigma` pixels, `taps` wide per axis.

    Singular values of the one-dimensional blur below `threshold` are zero: frequencies that the blur
    attenuates more than 1/threshold times are not measured. Setting and task: C-ΠGDM (2405.17673).
    """
    if taps % 2 == 0:
        raise ValueError(f"taps: must be odd so that the kernel has a centre, got {taps}")
    channels, height, width = image_shape
    offsets = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    rows, columns = (convolution(n, kernel, boundary) for n in (height, width))
    return Separable(channels, rows, columns, threshold=threshold)


def convolution(n: int, kernel: Tensor, boundary: Boundary) -> Tensor:
    """The (n, n) matrix of a centred convolution with a symmetric kernel of odd length."""
    k = len(kernel)
    positions = torch.arange(n)[:, None] + torch.arange(k) - k // 2
    weights = kernel.expand(n, k).contiguous()
    if boundary == "zero":
        weights = torch.where((positions >= 0) & (positions < n), weights, 0)
    folded = reflect(positions, n) if boundary == "reflect" else positions.remainder(n)
    return torch.zeros(n, n, dtype=kernel.dtype).scatter_add_(1, folded, weights)
