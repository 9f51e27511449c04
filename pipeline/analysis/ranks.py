"""Ranks, and the Pareto front of two qualities at equal cost."""

from collections.abc import Sequence

Values = Sequence[float | None]
"""Of which lower is better; None where there is none."""


def ranks(values: Values) -> list[float | None]:
    """1 for the lowest; equal ones share the mean of their places."""
    known = [value for value in values if value is not None]
    return [
        None
        if value is None
        else 1 + sum(other < value for other in known) + (sum(other == value for other in known) - 1) / 2
        for value in values
    ]


def fronts(costs: Values, first: Values, second: Values) -> list[bool | None]:
    """Whether none at no more cost is at least as good in both qualities and better in one.

    None where the cost or one of the qualities is not known; such points keep no other from the front.
    """
    points = list(zip(costs, first, second, strict=True))
    known = [(c, x, y) for c, x, y in points if c is not None and x is not None and y is not None]

    def beaten(c: float, x: float, y: float) -> bool:
        return any(a <= c and u <= x and v <= y and (u < x or v < y) for a, u, v in known)

    return [None if c is None or x is None or y is None else not beaten(c, x, y) for c, x, y in points]
