"""Operators that mix channels."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from kintsugi.operators.base import Linear, reciprocal, truncated_svd

LUMA = (0.299, 0.587, 0.114)
"""BT.601: the weights of red, green and blue in the luminance."""


class Channels(Linear):
    """y = M x in every pixel, M (m, C) float64: its decomposition is that of M."""

    per_sample: ClassVar = {"singular_values": 3, "left": 2, "right": 2}
    left: Tensor
    right: Tensor

    def __init__(self, matrix: Tensor, height: int, width: int):
        u, s, v = truncated_svd(matrix)
        m, channels = matrix.shape
        super().__init__((channels, height, width), (m, height, width), s[:, None, None])
        self.register_buffer("left", u)
        self.register_buffer("right", v)

    @property
    def matrix(self) -> Tensor:
        """The mixing matrix M, of as many rows as y has channels and columns as x has."""
        return self.left * self.singular_values[..., 0].mT @ self.right.mT

    def forward(self, x: Tensor) -> Tensor:
        """M x at every pixel."""
        return mix(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Mᵀy at every pixel."""
        return mix(self.matrix.mT, y)

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverse of M at every pixel."""
        return mix(self.right * reciprocal(self.singular_values[..., 0].mT) @ self.left.mT, y)

    def to_spectral(self, x: Tensor) -> Tensor:
        """The channels in M's right singular vectors, at every pixel."""
        return mix(self.right.mT, x)

    def from_spectral(self, c: Tensor) -> Tensor:
        """The channels back from M's right singular vectors."""
        return mix(self.right, c)


def mix(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (m, C), or one for each sample, times the channels of x (B, C, H, W)."""
    mixed = matrix @ x.flatten(2)
    return mixed.view(*mixed.shape[:2], *x.shape[2:])


def colorize(image_shape: tuple[int, int, int], *, weights: Literal["mean", "luma"] = "mean") -> Channels:
    """The mean of the channels, (B, 1, H, W), as in DDRM (2201.11793) and DDNM, or their BT.601 luma."""
    channels, height, width = image_shape
    if weights == "mean":
        return Channels(torch.full((1, channels), 1 / channels, dtype=torch.float64), height, width)
    if channels != 3:
        raise ValueError(f"weights: luma is for images of 3 channels, these have {channels}")
    return Channels(torch.tensor([LUMA], dtype=torch.float64), height, width)
