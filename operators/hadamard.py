"""Compressed sensing: some coefficients of the Walsh–Hadamard transform."""

import math
from functools import reduce
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.operators.base import Linear


class Hadamard(Linear):
    """y (B, C, 1, m): the coefficients `kept` of W_h x W_wᵀ, W orthonormal, so that Hᵀ = H⁺ = V and S = 1.

    Args:
        rows: W_h (H, H); columns: W_w (W, W); symmetric and orthonormal.
        kept: m positions in the flattened coefficients.
    """

    pixels = False
    per_sample: ClassVar = {"rows": 3, "columns": 3, "kept": 3}
    rows: Tensor
    columns: Tensor
    kept: Tensor

    def __init__(self, channels: int, rows: Tensor, columns: Tensor, kept: Tensor):
        ones = torch.ones(1, len(kept), dtype=torch.float64)
        super().__init__((channels, len(rows), len(columns)), (channels, *ones.shape), ones)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.register_buffer("kept", kept)

    def forward(self, x: Tensor) -> Tensor:
        """The kept coefficients of the 2-D transform, (B, C, 1, m)."""
        coefficients = (self.rows @ x @ self.columns).flatten(-2)[..., None, :]
        return coefficients.gather(-1, self.kept.expand(*x.shape[:2], 1, -1))

    def adjoint(self, y: Tensor) -> Tensor:
        """The transform of the kept coefficients, zero for the others."""
        coefficients = y.new_zeros(*y.shape[:2], *self.image_shape[1:])  # of any number of channels
        coefficients.flatten(-2)[..., None, :].scatter_(-1, self.kept.expand(y.shape), y)
        return self.rows @ coefficients @ self.columns

    def pinv(self, y: Tensor) -> Tensor:
        """The adjoint: the rows are orthonormal."""
        return self.adjoint(y)

    def to_spectral(self, x: Tensor) -> Tensor:
        """The measurement itself: all its singular values are 1."""
        return self.forward(x)

    def from_spectral(self, c: Tensor) -> Tensor:
        """The adjoint."""
        return self.adjoint(c)


def compressed_sensing(
    image_shape: tuple[int, int, int],
    *,
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.5,
    block: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
) -> Hadamard:
    """A random share `ratio` of the Walsh–Hadamard coefficients, the same ones for every channel.

    Without `block` the transform is that of the whole image, with it that of every block × block square,
    and every square keeps the same coefficients. The coefficients are drawn with equal chances, the mean
    among them, as in DDRM (2201.11793) and DDNM (2212.00490).
    """
    channels, *shape = image_shape
    sides = [block or n for n in shape]
    for side, n in zip(sides, shape, strict=True):
        if side & (side - 1):
            unfit = ValueError if block else ShapeError
            raise unfit(f"block: must be a power of two, and without it the image's sides; got {side}")
        if n % side:
            raise ShapeError(f"block: {side} does not divide the image side {n}")
    coefficients = math.prod(sides)
    count = round(ratio * coefficients)
    if count == 0:
        raise ShapeError(f"ratio: {ratio} keeps none of {coefficients} coefficients")
    rng = np.random.Generator(np.random.Philox(seed))
    chosen = torch.from_numpy(rng.permutation(coefficients) < count).view(sides)
    repeats = [n // side for n, side in zip(shape, sides, strict=True)]
    rows, columns = (
        torch.kron(torch.eye(times), walsh_hadamard(side)) for side, times in zip(sides, repeats, strict=True)
    )
    return Hadamard(channels, rows, columns, chosen.repeat(repeats).flatten().nonzero()[:, 0])


def walsh_hadamard(n: int) -> Tensor:
    """The orthonormal (n, n) Walsh–Hadamard matrix in natural order, n a power of two."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5
    return reduce(torch.kron, [two] * (n.bit_length() - 1), torch.ones(1, 1, dtype=torch.float64))
