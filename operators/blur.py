"""Blurs with a stated kernel and boundary."""

import math
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.operators.base import Factored, Linear, Separable
from kintsugi.operators.bordered import Bordered
from kintsugi.operators.convolution import (
    Boundary,
    Convolution,
    Edge,
    Mirrored,
    convolution,
    convolution_matrix,
    wrapped,
)
from kintsugi.operators.kernels import SUMS_TO_ZERO, kernel_of

Taps = Annotated[int, Field(ge=1, le=1023)]
ROUNDING = 1e-7
"""Relative to the kernel: what float32 leaves of a kernel that is a product, or symmetric."""


def blur(
    image_shape: tuple[int, int, int],
    *,
    kernel: Tensor | str | list[list[FiniteFloat]],
    variable: str | None = None,
    normalise: bool = True,
    centre: tuple[NonNegativeInt, NonNegativeInt] | None = None,
    boundary: Edge = "circular",
    threshold: NonNegativeFloat = 3e-2,
) -> Linear:
    """Convolution y = k ∗ x with a kernel of one's own, the same for every channel.

    kernel: rows of numbers, a tensor, or a file: npy, npz, mat (up to version 7) or a grey png; `variable`
    names an array of an npz or mat that has several. Sides of 1 to 1023, even ones too. normalise: the kernel
    is divided by its sum; false takes it as it is. centre: (row, column) of its origin, by default
    (h // 2, w // 2); a kernel that lies beside its origin shifts the image, and is not moved. boundary:
    "reflect" (the border pixel is repeated), "zero", "circular", or "valid": only pixels whose whole
    neighbourhood is in the image are measured, (H − h + 1, W − w + 1), as by a camera.

    Setting: kernels of cameras, as those of Levin et al. (CVPR 2009), which come as .mat files.

    Exact are a kernel of rank 1 (threshold: on each axis), the circular boundary, and with "reflect" a kernel
    that both mirrors leave as it is; what is below the threshold is then lost in y, too. For other kernels H⁺
    is solved for, Hᵀ (H Hᵀ + threshold²)⁻¹ to a relative residual of 1e-6: see docs/operators.md.
    """
    channels, height, width = image_shape
    taps = kernel_of(kernel, variable, normalise)
    h, w = taps.shape
    if boundary == "valid" and (h > height or w > width):
        raise ShapeError(f"boundary: a kernel of {h}×{w} fits nowhere into images of {height}×{width}")
    if centre is not None and boundary == "valid":
        raise ValueError('centre: "valid" measures where the whole kernel fits, wherever its origin is')
    row, column = centre or (h // 2, w // 2)
    if row >= h or column >= w:
        raise ValueError(f"centre: {(row, column)} is outside of a kernel of {h}×{w}")
    operator: Linear
    if factors := of_rank_one(taps):
        rows = convolution_matrix(height, factors[0], boundary, row)
        columns = convolution_matrix(width, factors[1], boundary, column)
        operator = Separable(channels, rows, columns, threshold=threshold)
    elif boundary == "circular":
        periodic = wrapped(taps, (row, column), (height, width))
        operator = Convolution(channels, periodic, threshold=threshold)
    elif boundary == "reflect" and is_mirrored(taps, (row, column)):
        operator = Mirrored(image_shape, taps, threshold=threshold)
    else:
        operator = Bordered(image_shape, taps, (row, column), boundary, threshold)
    if boundary == "valid":
        operator.border = (h - 1, w - 1)
    return operator


def of_rank_one(kernel: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two factors of a kernel (h, w) that is their outer product but for rounding, if there are any.

    Their sums are equal, or if these are zero their norms, so that a threshold treats both alike.
    """
    u, s, vt = torch.linalg.svd(kernel, full_matrices=False)
    if len(s) > 1 and s[1] > ROUNDING * s[0]:
        return None
    vertical, horizontal = u[:, 0] * s[0].sqrt(), vt[0] * s[0].sqrt()
    sums = vertical.sum().abs(), horizontal.sum().abs()
    if sums[0] * sums[1] <= SUMS_TO_ZERO * kernel.abs().sum():
        return vertical, horizontal
    scale = (sums[1] / sums[0]).sqrt()
    return vertical * scale, horizontal / scale


def is_mirrored(kernel: Tensor, centre: tuple[int, int]) -> bool:
    """Whether both mirrors through the origin leave a kernel as it is, but for rounding."""
    middle = tuple((k - 1) / 2 for k in kernel.shape)
    error = max((kernel - kernel.flip(axis)).abs().max().item() for axis in (0, 1))
    return centre == middle and error <= ROUNDING * kernel.abs().max().item()


def gaussian_blur(
    image_shape: tuple[int, int, int],
    *,
    sigma: PositiveFloat = 3.0,
    taps: Taps = 61,
    boundary: Boundary = "reflect",
    threshold: NonNegativeFloat = 3e-2,
) -> Separable:
    """Separable Gaussian blur of standard deviation `sigma` pixels, `taps` wide per axis.

    Singular values of the one-dimensional blur below `threshold` are zero: frequencies that the blur
    attenuates more than 1/threshold times are not measured. Setting and task: C-ΠGDM (2405.17673).
    """
    kernel = gaussian(taps, sigma)
    return separable(image_shape, kernel, kernel, boundary, threshold)


def uniform_blur(
    image_shape: tuple[int, int, int],
    *,
    taps: Taps = 9,
    boundary: Boundary = "reflect",
    threshold: NonNegativeFloat = 3e-2,
) -> Separable:
    """The mean over taps × taps pixels, centred. Setting: DDRM (2201.11793), 9 taps."""
    kernel = torch.ones_like(offsets(taps)) / taps
    return separable(image_shape, kernel, kernel, boundary, threshold)


def anisotropic_blur(
    image_shape: tuple[int, int, int],
    *,
    sigmas: tuple[PositiveFloat, PositiveFloat] = (20.0, 1.0),
    angle: FiniteFloat = 0.0,
    taps: Taps = 9,
    boundary: Boundary | None = None,
    threshold: NonNegativeFloat = 3e-2,
) -> Linear:
    """Gaussian blur of two standard deviations, σ_x and σ_y, turned by `angle` degrees counter-clockwise.

    At multiples of 90° the blur is separable and takes any boundary (reflect unless given); at other
    angles only the circular one has a decomposition. Setting: DDRM (2201.11793), σ 20 and 1, 9 taps.
    """
    if angle % 90 == 0:
        horizontal, vertical = (gaussian(taps, sigma) for sigma in sigmas)
        if angle % 180:
            horizontal, vertical = vertical, horizontal
        return separable(image_shape, vertical, horizontal, boundary or "reflect", threshold)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = offsets(taps), -offsets(taps)[:, None]  # rows count downwards
    u, v = cos * x + sin * y, cos * y - sin * x
    kernel = torch.exp(-0.5 * ((u / sigmas[0]) ** 2 + (v / sigmas[1]) ** 2))
    return convolution(image_shape, kernel / kernel.sum(), boundary or "circular", threshold)


def gaussian_blur_rediff(image_shape: tuple[int, int, int]) -> Factored:
    """The released deblurring operator of RED-diff (2305.04391) and C-ΠGDM, for their tables only.

    It is not the blur of σ = 3 and 61 taps that it is said to be (18 % away on random 32² images in
    [0, 1], 16 % on a 256² photograph): the singular values, sorted and repeated per channel, meet vectors
    whose channels are interleaved, so that the k-th largest direction of channel c gets the value of
    rank (C k + c) mod n². Part of those directions are null vectors of the one-dimensional blur, which
    are whatever the SVD at hand returns. Do not mix it with `gaussian_blur` in a table.
    """
    channels, n, width = image_shape
    if n != width:
        raise ShapeError(f"image_shape: gaussian_blur_rediff needs square images, these are {n}×{width}")
    # The released kernel lacks its last tap, which is 3e-23 and changes nothing.
    u, s, vt = torch.linalg.svd(convolution_matrix(n, gaussian(61, 3.0), "zero"))
    s = torch.where(s < 3e-2, 0, s)
    ordered = torch.outer(s, s).flatten().sort(descending=True, stable=True)
    rank = torch.arange(n * n)
    values = torch.empty(channels, n * n, dtype=torch.float64)
    values[:, ordered.indices] = torch.stack(
        [ordered.values[(channels * rank + c) % n**2] for c in range(channels)]
    )
    return Factored(channels, (u, vt.T), (u, vt.T), values.view(channels, n, n))


def offsets(taps: int) -> Tensor:
    """−taps // 2 … taps // 2."""
    if taps % 2 == 0:
        raise ValueError(f"taps: must be odd so that the kernel has a centre, got {taps}")
    return torch.arange(taps, dtype=torch.float64) - taps // 2


def gaussian(taps: int, sigma: float) -> Tensor:
    """A Gaussian of `sigma` pixels at the offsets of (taps,) taps, which sum to 1."""
    kernel = torch.exp(-0.5 * (offsets(taps) / sigma) ** 2)
    return kernel / kernel.sum()


def separable(
    image_shape: tuple[int, int, int],
    vertical: Tensor,
    horizontal: Tensor,
    boundary: Boundary,
    threshold: float,
) -> Separable:
    """The blur with one kernel along columns and one along rows, both (taps,), of every channel."""
    channels, height, width = image_shape
    rows = convolution_matrix(height, vertical, boundary)
    columns = convolution_matrix(width, horizontal, boundary)
    return Separable(channels, rows, columns, threshold=threshold)
