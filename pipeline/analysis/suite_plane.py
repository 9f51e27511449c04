"""The plane of distortion and perception, as shapes that a page draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kintsugi.pipeline.analysis.compare_runs import Estimate
from kintsugi.pipeline.analysis.suite_task import Task

WIDTH, HEIGHT = 360.0, 240.0  # of the plot, without what is written beside it
MARGIN = 0.06  # of the extent, beyond the outermost ends
TICKS = 5  # at most, on an axis


@dataclass(frozen=True)
class Point:
    """A method: its place in the leaderboard, and its name.

    Attributes:
        x, y: the means. across, up: either end of their intervals.
        front: whether it is on that by evaluations.
    """

    place: int
    label: str
    x: float
    y: float
    across: tuple[float, float]
    up: tuple[float, float]
    front: bool


@dataclass(frozen=True)
class Plane:
    """Points, and the ticks of either axis with what is written at them; from the upper left corner."""

    points: list[Point]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]


@dataclass(frozen=True)
class Scale:
    """From values to places on an axis; what is `up` begins at the lower end."""

    low: float
    high: float
    length: float
    up: bool

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.length * (1 - share if self.up else share), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers, and their places."""
        least = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(least))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
        found = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self(n * step), f"{n * step:.6g}") for n in found]


def plane(task: Task, distortion: str, perception: str) -> Plane | None:
    """The methods of a task that have both measures; None where there are none."""
    known = []
    for place, one in enumerate(task.standings, 1):
        first, second = one.numbers.estimate(distortion), one.numbers.estimate(perception)
        if first[0] is not None and second[0] is not None:
            known.append((place, one, first, second))
    if not known:
        return None
    x = scale([first for *_, first, _ in known], WIDTH, up=False)
    y = scale([second for *_, second in known], HEIGHT, up=True)
    points = []
    for place, one, first, second in known:
        at_x, left, right = map(x, filled(first))
        at_y, below, above = map(y, filled(second))
        front = one.by_evaluations is True
        points.append(Point(place, one.numbers.label, at_x, at_y, (left, right), (below, above), front))
    return Plane(points, x.ticks(), y.ticks())


def filled(estimate: Estimate) -> tuple[float, float, float]:
    """Value, low and high, the value where there is no interval."""
    value, low, high = estimate
    assert value is not None
    return value, value if low is None else low, value if high is None else high


def scale(estimates: Sequence[Estimate], length: float, up: bool) -> Scale:
    """An axis on which all intervals have room."""
    ends = [end for of in estimates for end in filled(of)]
    low, high = min(ends), max(ends)
    room = MARGIN * (high - low) or MARGIN * abs(high) or 1.0
    return Scale(low - room, high + room, length, up)
