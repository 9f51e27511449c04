"""Blurs with a stated kernel and boundary."""

import math
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveFloat
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.operators.base import Factored, Linear, Separable
from kintsugi.operators.convolution import Boundary, convolution, convolution_matrix

Taps = Annotated[int, Field(ge=1, le=1023)]


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
