"""Numerics that operators, priors and samplers share."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def reflect(positions: Tensor, n: int) -> Tensor:
    """Fold positions outside 0…n−1 back, the border pixel itself repeated: … 1 0 | 0 1 …"""
    folded = positions.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)


def larger(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The larger of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_min(other)
    return other.clamp_min(one) if isinstance(other, Tensor) else max(one, other)


def smaller(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The smaller of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_max(other)
    return other.clamp_max(one) if isinstance(other, Tensor) else min(one, other)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n), a frequency per row."""
    frequencies, positions = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 0.5
    matrix = torch.cos(torch.pi * frequencies * positions / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor], b: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Better and better solutions x of matrix(x) = b, each with its residual b − matrix(x), without end.

    Every sample of b (B, C, H, W) has step sizes of its own, so that none depends on its batch; nothing waits
    for the device. Hestenes & Stiefel 1952.

    Args:
        matrix, inverse: symmetric and positive definite maps of (B, C, H, W); the second preconditions.
    """

    def inner(one: Tensor, other: Tensor) -> Tensor:
        return (one * other).sum((1, 2, 3), keepdim=True)

    x, r = torch.zeros_like(b), b
    preconditioned = inverse(r)
    direction = preconditioned
    energy = inner(r, preconditioned)
    while True:
        image = matrix(direction)
        # A sample that has converged has zeros here; it stays where it is.
        step = energy / inner(direction, image).clamp_min(torch.finfo(x.dtype).tiny)
        x = x + step * direction
        r = r - step * image
        yield x, r
        preconditioned = inverse(r)
        before, energy = energy, inner(r, preconditioned)
        direction = preconditioned + energy / before.clamp_min(torch.finfo(x.dtype).tiny) * direction
