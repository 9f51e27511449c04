"""Linear operators without a decomposition to write down: H⁺ by conjugate gradients."""

from abc import abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor

from kintsugi.numerics import Map, conjugate_gradients, larger
from kintsugi.operators.base import Linear

TOLERANCE, SINGLE = 1e-6, 1e-3
"""On the relative residual of a solution, in float64, and at most in float32, where rounding limits it."""
MOST = 1000
"""Iterations at most."""


def white(squared: Tensor) -> Tensor:
    """The power of white noise: 1 at every squared frequency."""
    return torch.ones_like(squared)


class Solved(Linear):
    """y = H x, of which only H and Hᵀ are known.

    H⁺ is Hᵀ (H Hᵀ + λ)⁻¹ with λ = threshold²: along a singular direction s / (s² + λ) in place of 1/s, at
    threshold 0 the pseudo-inverse itself. It is solved for by preconditioned conjugate gradients, in as many
    iterations as bring the relative residual of a white measurement below `TOLERANCE`. They are counted when
    the operator is built, and are then always the same: a result does not depend on the batch, and nothing
    waits for the device. H loses nothing to the threshold.

    V is not known: the spectral form is that of another operator. A class sets `ridge` and `lipschitz`, says
    what it has for a preconditioner, and calls `count` for its `iterations`.

    Attributes:
        ridge: λ. iterations: of conjugate gradients, of each sample or of all. lipschitz: a bound on ‖H‖.
    """

    decomposed: ClassVar[bool] = False
    ridge: float
    iterations: tuple[int, ...]
    lipschitz: float | Tensor

    @abstractmethod
    def preconditioner(self, ridge: float | Tensor, density: Map) -> Map:
        """About (H C Hᵀ + ridge)⁻¹, symmetric and positive definite, for measurements (B, …).

        Args:
            density: the power of C, which is stationary, at squared frequencies in (cycles per pixel)².
        """

    def count(self, shape: tuple[int, int, int], tolerance: float = TOLERANCE) -> int | None:
        """The iterations that a solution to `tolerance` takes, and an eighth more; float32 must bear them.

        None: `MOST` iterations do not converge, or not in float32.

        Args:
            shape: of a measurement, perhaps with one channel where each is by itself.
        """
        v = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).double()
        single = deepcopy(self).float()
        reached = [self.reaches(v, tolerance), single.reaches(v.float(), SINGLE)]
        if None in reached:
            return None
        count = max(filter(None, reached))
        count += count // 8 + 1
        found, _ = next(islice(single.iterates(v.float(), self.ridge), count - 1, None))
        left = v - self.forward(self.adjoint(found.double())) - self.ridge * found.double()
        return count if left.norm() <= SINGLE * v.norm() else None

    def reaches(self, v: Tensor, tolerance: float) -> int | None:
        """Which iterate, from 1, is the first whose relative residual is within `tolerance`, if any."""
        residuals = (residual.norm() for _, residual in islice(self.iterates(v, self.ridge), MOST))
        limit = tolerance * v.norm()
        return next((number for number, left in enumerate(residuals, 1) if left <= limit), None)

    def solve(self, v: Tensor, ridge: float | Tensor = 0.0) -> Tensor:
        """Hᵀ (H Hᵀ + max(ridge, λ))⁻¹ v, (B, *measurement_shape) → (B, C, H, W).

        With ridge = σ²/r², perhaps (B, 1, 1, 1): the shift of an image of variance r² per pixel towards a
        measurement that differs from its own by v and has noise of variance σ².
        """
        iterates, most = self.iterates(v, larger(ridge, self.ridge)), max(self.iterations)
        own = torch.tensor(self.iterations).view(-1, 1, 1, 1).to(v.device)
        found = torch.zeros_like(v)
        for number, (latest, _) in enumerate(islice(iterates, most)):
            found = torch.where(number < own, latest, found)
        return self.adjoint(found)

    def iterates(
        self,
        v: Tensor,
        ridge: float | Tensor,
        covariance: Map = lambda x: x,
        density: Map = white,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Better and better (H C Hᵀ + ridge)⁻¹ v, each with its residual.

        Args:
            covariance: C, a map of images; the identity unless given. density: as of `preconditioner`.
        """

        def matrix(z: Tensor) -> Tensor:
            return self.forward(covariance(self.adjoint(z))) + ridge * z

        return conjugate_gradients(matrix, self.preconditioner(ridge, density), v)

    def pinv(self, y: Tensor) -> Tensor:
        """Hᵀ (H Hᵀ + λ)⁻¹ y."""
        return self.solve(y)
