"""Operators as matrices."""

import torch

SHAPE = (3, 8, 16)


def channel_mask():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.6


def draw(operator, shape, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator).to(operator.singular_values)


def dense(function, shape):
    """The matrix of a linear function, from the images of the unit vectors."""
    n = int(torch.tensor(shape).prod())
    return function(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T
