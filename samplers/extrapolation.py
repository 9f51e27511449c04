"""Linear extrapolation of a stepwise sampler's corrected predictions, by rows of coefficients.

At step i the corrected prediction x̂ᵢ gives way to

    x̃ᵢ = P Σⱼ γ∥ᵢⱼ x̂ⱼ + (1 − P) Σⱼ γ⊥ᵢⱼ x̂ⱼ,   P = H⁺H,   j = 0 … i

(Zhang et al., NeurIPS 2025, 2503.10103, LLE). The x̂ⱼ are those before extrapolation, which span what the
paper's replaced ones do. `samplers.learning` finds the coefficients.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kintsugi.operators import Operator

Given = float | list[Any]
"""As a spec has it: one β, or a row for each step: γ of the predictions so far, or [γ∥, γ⊥]."""


@dataclass(frozen=True)
class Row:
    """γ∥ and γ⊥ of a step, (i + 1,) each; where they are equal nothing is split."""

    measured: tuple[float, ...]
    free: tuple[float, ...]

    @property
    def split(self) -> bool:
        """Whether it asks for P."""
        return self.measured != self.free

    def used(self) -> Iterator[int]:
        """Which predictions change x̂ᵢ."""
        own = len(self.free) - 1
        pairs = zip(self.measured, self.free, strict=True)
        return (j for j, pair in enumerate(pairs) if pair != (float(j == own),) * 2)

    def change(self, past: Mapping[int, Tensor], operator: Operator) -> Tensor | None:
        """x̃ᵢ − x̂ᵢ, (B, C, H, W), of the predictions by step; None of the identity.

        P is `operator.project`, also where H is not decomposed.
        """
        used = list(self.used())
        if not used:
            return None
        own = len(self.free) - 1
        free = [self.free[j] - (j == own) for j in used]
        found = combined(free, [past[j] for j in used])
        if not self.split:
            return found
        apart = [self.measured[j] - self.free[j] for j in used]
        return found + operator.project(combined(apart, [past[j] for j in used]))


def combined(weights: Sequence[float], images: Sequence[Tensor]) -> Tensor:
    """Σ w x, (B, C, H, W)."""
    return torch.stack([weight * image for weight, image in zip(weights, images, strict=True)]).sum(0)


def rows_of(given: Given, steps: int) -> Sequence[Row]:
    """A row for each step; of β = 0 none.

    Raises:
        ValueError: not a row for each step, or one that has not a finite number for each prediction so far.
    """
    if not isinstance(given, list):
        return [] if given == 0 else [along(given, i) for i in range(steps)]
    if len(given) != steps:
        raise ValueError(f"{len(given)} rows for {steps} steps; give β, or a row for each step")
    return [row_of(row, i) for i, row in enumerate(given)]


def along(beta: float, i: int) -> Row:
    """x̂ᵢ + β (x̂ᵢ − x̂ᵢ₋₁)."""
    weights = (1.0,) if i == 0 else (*[0.0] * (i - 1), -beta, 1 + beta)
    return Row(weights, weights)


def row_of(given: Any, i: int) -> Row:
    """The row of step i, as rows are written; raises as `rows_of`."""
    both = (
        given if isinstance(given, list) and len(given) == 2 and isinstance(given[0], list) else [given] * 2
    )
    for weights in both:
        if not (isinstance(weights, list) and len(weights) == i + 1 and all(map(is_finite, weights))):
            raise ValueError(
                f"row {i}: expected the coefficients of {i + 1} predictions, or two lists of them (measured, "
                "free), finite numbers"
            )
    measured, free = (tuple(map(float, weights)) for weights in both)
    return Row(measured, free)


def is_finite(value: Any) -> bool:
    """Whether it is a number, not infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def last_uses(rows: Sequence[Row]) -> Mapping[int, int]:
    """By prediction, the last step that uses it; nothing of those that only their own uses."""
    return {j: i for i, row in enumerate(rows) for j in row.used()}
