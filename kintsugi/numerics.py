"""Numerics that operators, priors and samplers share."""

import torch
from torch import Tensor


def reflect(positions: Tensor, n: int) -> Tensor:
    """Fold positions outside 0…n−1 back, the border pixel itself repeated: … 1 0 | 0 1 …"""
    folded = positions.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n), a frequency per row."""
    frequencies, positions = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 0.5
    matrix = torch.cos(torch.pi * frequencies * positions / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix
