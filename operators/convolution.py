"""Convolutions: along one axis as a matrix, in two dimensions by the Fourier transform."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kintsugi.numerics import cosines, reflect
from kintsugi.operators.base import Factored, Linear, reciprocal

Boundary = Literal["reflect", "zero", "circular"]
Edge = Literal["circular", "reflect", "zero", "valid"]
"""A boundary, or none: the measurement is smaller."""


def convolution_matrix(n: int, kernel: Tensor, boundary: Edge, centre: int | None = None) -> Tensor:
    """The (n, n) matrix of a convolution along an axis; "valid", (n − k + 1, n), is without borders.

    Args:
        kernel: (k,). centre: index of its origin, k // 2 unless given.
    """
    k = len(kernel)
    before = k - 1 - (k // 2 if centre is None else centre)
    outputs = torch.arange(n - k + 1) + before if boundary == "valid" else torch.arange(n)
    positions = outputs[:, None] + torch.arange(k) - before
    weights = kernel.flip(0).expand(len(outputs), k).contiguous()
    if boundary == "zero":
        weights = torch.where((positions >= 0) & (positions < n), weights, 0)
    folded = reflect(positions, n) if boundary == "reflect" else positions.remainder(n)
    return torch.zeros(len(outputs), n, dtype=kernel.dtype).scatter_add_(1, folded, weights)


class Convolution(Linear):
    """y = k ∗ x with circular boundary, the same kernel for every channel: H = F* diag(k̂) F.

    k is real, so |k̂| is even and the real Hartley transform, Re F − Im F, serves as Vᵀ: it is its own
    inverse, and S = |k̂|.

    Args:
        kernel: k (H, W) float64, its centre at [0, 0].
        threshold: values of |k̂| below it are set to zero, in every method alike.
    """

    per_sample: ClassVar = {"singular_values": 3, "parts": 4}
    parts: Tensor

    def __init__(self, channels: int, kernel: Tensor, *, threshold: float = 0.0):
        transfer = torch.fft.fft2(kernel)
        size = transfer.abs()
        # |k̂| at −u, so that rounding cannot keep one of a conjugate pair and drop the other.
        size = torch.maximum(size, size.flip(0, 1).roll((1, 1), (0, 1)))
        kept = size >= max(threshold, size.max().item() * 1e-12)
        if not kept.any():
            raise ValueError(f"threshold: {threshold} is above every singular value, nothing is measured")
        height, width = kernel.shape
        shape = (channels, height, width)
        super().__init__(shape, shape, torch.where(kept, size, 0))
        half = torch.where(kept, transfer, 0)[:, : width // 2 + 1]
        # As pairs of reals: a module changes the precision of complex buffers to that of real ones.
        self.register_buffer("parts", torch.view_as_real(half).contiguous())

    @property
    def transfer(self) -> Tensor:
        """k̂ for the frequencies of `rfft2`, (H, W // 2 + 1) complex."""
        return torch.view_as_complex(self.parts)

    @property
    def kernel(self) -> Tensor:
        """The periodic kernel in pixels, of the image's height and width, its centre at (0, 0)."""
        return torch.fft.irfft2(self.transfer, s=self.image_shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """A product with the transfer function, by FFT."""
        return multiply(self.transfer, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A product with the conjugate of the transfer function."""
        return multiply(self.transfer.conj(), y)

    def pinv(self, y: Tensor) -> Tensor:
        """A division by the transfer function; zero where that is zero."""
        return multiply(reciprocal(self.transfer), y)

    def to_spectral(self, x: Tensor) -> Tensor:
        """The orthonormal Hartley transform: real, and its own inverse."""
        frequencies = torch.fft.fft2(x, norm="ortho")
        return frequencies.real - frequencies.imag

    def from_spectral(self, c: Tensor) -> Tensor:
        """The Hartley transform again."""
        return self.to_spectral(c)


class Mirrored(Factored):
    """y = k ∗ x with reflected borders, k even along both axes: diagonal in the DCT, S = |k̂|.

    Args:
        kernel: k (h, w) float64 of odd sides, its centre in the middle, equal to both its mirror images.
        threshold: values of |k̂| below it are set to zero, in every method alike.
    """

    per_sample: ClassVar = {**Factored.per_sample, "transfer": 3}
    transfer: Tensor

    def __init__(self, image_shape: tuple[int, int, int], kernel: Tensor, *, threshold: float = 0.0):
        channels, *sides = image_shape
        # Σ k_i cos(π u i / n), u = 0 … n − 1.
        waves = [
            torch.cos(torch.pi / n * (torch.arange(n)[:, None] * (torch.arange(k) - k // 2)).double())
            for n, k in zip(sides, kernel.shape, strict=True)
        ]
        transfer = waves[0] @ kernel @ waves[1].T
        kept = transfer.abs() >= max(threshold, transfer.abs().max().item() * 1e-12)
        if not kept.any():
            raise ValueError(f"threshold: {threshold} is above every singular value, nothing is measured")
        transfer = torch.where(kept, transfer, 0)
        rows, columns = (cosines(n).T for n in sides)
        super().__init__(channels, (rows, rows), (columns, columns), transfer.abs())
        self.register_buffer("transfer", transfer)

    def forward(self, x: Tensor) -> Tensor:
        """A product with k̂ in the DCT."""
        return self.from_spectral(self.transfer * self.to_spectral(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """As `forward`: the blur is symmetric."""
        return self.forward(y)

    def pinv(self, y: Tensor) -> Tensor:
        """A division by k̂ in the DCT; zero where that is zero."""
        return self.from_spectral(reciprocal(self.transfer) * self.to_spectral(y))


def multiply(transfer: Tensor, x: Tensor) -> Tensor:
    """Images (B, C, H, W) whose spectrum is multiplied by `transfer`, of rfft2's shape (…, H, W//2 + 1)."""
    return torch.fft.irfft2(transfer * torch.fft.rfft2(x), s=x.shape[-2:])


def convolution(
    image_shape: tuple[int, int, int],
    kernel: Tensor,
    boundary: Boundary,
    threshold: float,
) -> Convolution:
    """The convolution with any kernel, its centre in the middle; one larger than the image wraps around."""
    if boundary != "circular":
        raise ValueError(
            f"boundary: {boundary!r} has no decomposition for a kernel that is not separable; use circular"
        )
    channels, height, width = image_shape
    rows, columns = kernel.shape
    return Convolution(
        channels, wrapped(kernel, (rows // 2, columns // 2), (height, width)), threshold=threshold
    )


def wrapped(kernel: Tensor, centre: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The kernel (h, w) as a periodic image of `size`, its origin, at `centre` of the kernel, at [0, 0]."""
    rows, columns = (
        (torch.arange(k, device=kernel.device) - c).remainder(n)
        for k, c, n in zip(kernel.shape, centre, size, strict=True)
    )
    image = kernel.new_zeros(size)
    return image.index_put_((rows[:, None], columns), kernel, accumulate=True)
