"""Convolutions whose borders leave no decomposition to write down."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from kintsugi.numerics import Map, cosines, reflect
from kintsugi.operators.convolution import Convolution, Edge, multiply, wrapped
from kintsugi.operators.solved import Solved


class Bordered(Solved):
    """y = k ∗ x with reflected, zero or no borders: x is extended, convolved by FFT, and cut.

    `singular_values`, `to_spectral`, `from_spectral` and `spectral_map` are those of the circular blur with
    the same kernel, which differs at the borders, less what is below the threshold.

    Args:
        kernel: k (h, w) float64. centre: (row, column) of its origin; "valid" does not depend on it.
        threshold: √λ.

    Raises:
        ValueError: the iterations do not converge, or all is below the threshold.
    """

    per_sample: ClassVar = dict.fromkeys(("singular_values", "rows", "columns", "power", "lipschitz"), 3) | {
        "parts": 4,
        "iterations": 0,
    }
    parts: Tensor
    rows: Tensor
    columns: Tensor
    power: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        kernel: Tensor,
        centre: tuple[int, int],
        edge: Edge,
        threshold: float,
    ):
        channels, height, width = image_shape
        (kh, kw), valid = kernel.shape, edge == "valid"
        h, w = (height - kh + 1, width - kw + 1) if valid else (height, width)
        circular = Convolution(channels, wrapped(kernel, centre, (height, width)), threshold=threshold)
        super().__init__(image_shape, (channels, h, w), circular.singular_values)
        self.circular, self.ridge, self.edge = circular, threshold**2, edge
        # The pixels and what is beyond the borders, on a grid which is fast to transform and wraps nowhere:
        # with its origin at its last tap the kernel reaches down and to the right of a measured pixel.
        self.grid = (fast(h + kh - 1), fast(w + kw - 1))
        last = (kh - 1, kw - 1)
        above, left = (0, 0) if valid else (kh - 1 - centre[0], kw - 1 - centre[1])
        self.register_buffer("rows", extension(height, h + kh - 1, above, edge, self.grid[0]))
        self.register_buffer("columns", extension(width, w + kw - 1, left, edge, self.grid[1]))
        transfer = torch.fft.rfft2(wrapped(kernel, last, self.grid))
        self.register_buffer("parts", torch.view_as_real(transfer).contiguous())
        power = cosine_power(kernel, height, width) if edge == "reflect" else transfer.abs() ** 2
        self.register_buffer("power", power)
        # EᵀE is diagonal: how often each pixel is seen.
        copies = self.rows.sum(0).max() * self.columns.sum(0).max()
        self.lipschitz = transfer.abs().max().item() * copies.item() ** 0.5
        if (count := self.count((1, h, w))) is None:
            raise ValueError(
                f"threshold: at {threshold:g} conjugate gradients do not solve for this kernel with "
                f"boundary {edge!r}; raise it, or use circular"
            )
        self.iterations = (count,)

    def preconditioner(self, ridge: float | Tensor, density: Map) -> Map:
        """The inverse of the reflecting blur in the DCT, of others that of the whole grid, cut."""
        inverse = 1 / (density(self.squared_frequencies()) * self.power + ridge)
        if self.edge == "reflect":
            rows, columns = (cosines(n).to(inverse) for n in self.image_shape[1:])
            return lambda r: rows.T @ (inverse * (rows @ r @ columns.T)) @ columns
        return lambda r: self.cut(multiply(inverse, self.embed(r)))

    def squared_frequencies(self) -> Tensor:
        """f² in (cycles per pixel)² at the entries of `power`: of the image's DCT, or of the grid's rfft."""
        if self.edge == "reflect":
            y, x = (torch.arange(n) / (2 * n) for n in self.image_shape[1:])
        else:
            y, x = torch.fft.fftfreq(self.grid[0]), torch.fft.rfftfreq(self.grid[1])
        return (y.double()[:, None] ** 2 + x.double() ** 2).to(self.power)

    @property
    def transfer(self) -> Tensor:
        """k̂ on the grid, for the frequencies of `rfft2`, complex."""
        return torch.view_as_complex(self.parts)

    def cut(self, image: Tensor) -> Tensor:
        """The measured part of the grid."""
        return image[..., : self.measurement_shape[1], : self.measurement_shape[2]]

    def embed(self, y: Tensor) -> Tensor:
        """A measurement on the grid, among zeros."""
        (height, width), (_, h, w) = self.grid, self.measurement_shape
        return pad(y, (0, width - w, 0, height - h))

    def forward(self, x: Tensor) -> Tensor:
        """The extended image, convolved, and of that the measured part."""
        return self.cut(multiply(self.transfer, self.rows @ x @ self.columns.mT))

    def adjoint(self, y: Tensor) -> Tensor:
        """A correlation on the grid, whose copies of a pixel are summed."""
        return self.rows.mT @ multiply(self.transfer.conj(), self.embed(y)) @ self.columns

    def to_spectral(self, x: Tensor) -> Tensor:
        """The coordinates of the circular blur."""
        return self.circular.to_spectral(x)

    def from_spectral(self, c: Tensor) -> Tensor:
        """Back from the coordinates of the circular blur."""
        return self.circular.from_spectral(c)


def extension(n: int, size: int, before: int, edge: Edge, grid: int) -> Tensor:
    """The (grid, n) matrix of zeros and ones that puts n samples, and what is beyond them, on a grid.

    Args:
        size: samples and what is beyond, before and after them. before: what is before them.
    """
    positions = torch.arange(size) - before
    inside = (positions >= 0) & (positions < n)
    seen = inside if edge != "reflect" else torch.ones_like(inside)
    matrix = torch.zeros(grid, n, dtype=torch.float64)
    matrix[torch.arange(size)[seen], reflect(positions, n)[seen]] = 1
    return matrix


def cosine_power(kernel: Tensor, height: int, width: int) -> Tensor:
    """|k̂|² at the frequencies of the DCT, (height, width), the mean of both diagonal directions."""
    power = torch.fft.fft2(wrapped(kernel, (0, 0), (2 * height, 2 * width))).abs() ** 2
    return (power + power.flip(0).roll(1, 0))[:height, :width] / 2


def fast(n: int) -> int:
    """The smallest product of twos, threes and fives from n on."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else fast(n + 1)
