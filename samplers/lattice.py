"""Coefficients for any number of ratios S/σ_y, from those on a fixed lattice of them.

A noisy job has as many coefficients as there are distinct singular values, and a batch whose samples have
blurs or noise levels of their own has new ones every time. They depend on S/σ_y alone, and are analytic in
its logarithm, in a strip of half width π/2 around the real axis, since g is a logistic function of it. So
they are integrated once, on a lattice, and interpolated for what a batch needs. A sample's coefficients do
not depend on its batch: the lattice is always the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

SPACING = 1 / 32
LOWEST, HIGHEST = -20.0, 32.0
"""log(S/σ_y). Below the first g is 0, above the second 1, but for rounding, where r is above 1e-6."""
TAPS = 10
"""Neighbours that an interpolation uses: of degree 9, its error is 872 (SPACING / (π/2))¹⁰ ≈ 1e-14."""
POINTS = round((HIGHEST - LOWEST) / SPACING) + 1


def lattice() -> Tensor:
    """0, and the ratios S/σ_y of the lattice, ascending: (POINTS + 1,) float64."""
    points = torch.exp(LOWEST + SPACING * torch.arange(POINTS, dtype=torch.float64))
    return torch.cat([points.new_zeros(1), points])


def distinct(ratios: Tensor) -> tuple[Tensor, "Interpolation"]:
    """The distinct ones of 0 and of some ratios, ascending: the index of each ratio, of its shape, and how
    values on the lattice are interpolated there."""
    found, index = torch.unique(torch.cat([ratios.new_zeros(1), ratios.flatten()]), return_inverse=True)
    return index[1:].view(ratios.shape), Interpolation.at(found)


@dataclass(frozen=True)
class Interpolation:
    """Where ratios lie on the lattice.

    Attributes:
        rows: (D, TAPS), the entries of `lattice` next to each. weights: (D, TAPS), of their values.
    """

    rows: Tensor
    weights: Tensor

    @classmethod
    def at(cls, ratios: Tensor) -> "Interpolation":
        """For ratios S/σ_y (D,) float64, of which zeros have the values at zero."""
        position = ((ratios.log() - LOWEST) / SPACING).clamp(0, POINTS - 1)
        first = (position.floor().long() - TAPS // 2 + 1).clamp(0, POINTS - TAPS)
        taps = torch.arange(TAPS)
        distances = (position - first)[:, None] - taps
        ones = torch.ones(len(ratios), 1, dtype=distances.dtype)
        # Lagrange's polynomials: products of the distances from all other nodes, over the same at their own.
        before = torch.cat([ones, distances[:, :-1]], dim=1).cumprod(1)
        after = torch.cat([ones, distances.flip(1)[:, :-1]], dim=1).cumprod(1).flip(1)
        between = (taps[:, None] - taps).double().fill_diagonal_(1).prod(1)
        weights, rows = before * after / between, 1 + first[:, None] + taps
        zero = (ratios == 0)[:, None]
        return cls(torch.where(zero, 0, rows), torch.where(zero, 1 / TAPS, weights))

    def __call__(self, values: Tensor) -> Tensor:
        """What has the values (…, POINTS + 1) on the lattice, at the ratios: (…, D)."""
        table = values.reshape(-1, values.shape[-1]).T.contiguous()
        found = embedding_bag(self.rows, table, per_sample_weights=self.weights, mode="sum")
        return found.T.reshape(*values.shape[:-1], -1)
