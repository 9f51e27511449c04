"""A sweep: one job with several settings on the images for tuning, and which of them is best.

Each setting is a trial, an ordinary run. Successive halving (Jamieson and Talwalkar, AISTATS 2016): all
trials do a few images, the better ones go on. A trial goes on by doing further units of its own run, so
nothing is done twice, and all that is known of it is in its rows. Trials are compared on the same images, in
pairs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.intervals import mean_interval
from kintsugi.pipeline.analysis.measures import badness, better, bounds, count_of, limited
from kintsugi.pipeline.analysis.rows import committed
from kintsugi.pipeline.analysis.sweep_settings import Rung, Settings, name_of
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import IMAGE
from kintsugi.pipeline.metrics.registry import BASELINES, baseline_column


@dataclass(frozen=True)
class Measured:
    """The metric by which trials are compared."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in IMAGE:
            raise JobError(
                f"--by: {self.name!r} is no metric of single images, by which trials are compared in pairs; "
                f"choose from {', '.join(sorted(IMAGE))}"
            )
        if better(self.name) is None:
            raise JobError(f"--by: of {self.name} neither high nor low values are better; choose another")

    @property
    def title(self) -> str:
        """What the distances are."""
        metric = IMAGE[self.name]
        return f"|log {metric.title}|" if metric.better == "one" else metric.title

    @property
    def sign(self) -> int:
        """1 where more is better, else −1."""
        return 1 if better(self.name) == "higher" else -1

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest of the distances."""
        return (0.0, math.inf) if better(self.name) == "one" else bounds(self.name)

    def distances(self, values: np.ndarray) -> np.ndarray:
        """The values; of a ratio that is best at 1 how far its logarithm is from 0; NaN where undefined."""
        values = limited(self.name, values)
        if better(self.name) == "one":
            values = badness(self.name, values)
        return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True)
class Trial:
    """Settings, and the job that has them."""

    settings: Settings
    job: Job

    @property
    def name(self) -> str:
        """Its folder's."""
        return name_of(self.settings)


@dataclass(frozen=True)
class Result:
    """What a trial came to on its first images.

    Attributes:
        values: the metric of each restored image, by key. failed: images that were not restored, or whose
            metric is undefined.
        then: mean of the metric that decides among trials that are alike in the first.
        evaluations: of the network per image, forwards and vector-Jacobian products, as `count_of` has them.
        seconds: of the sampler per image.
        without_network: by baseline, the metric of each image by key; none in rows of earlier versions.
    """

    trial: Trial
    by: Measured
    values: dict[str, float]
    failed: int
    then: float
    evaluations: float
    seconds: float
    without_network: dict[str, dict[str, float]]

    @cached_property
    def mean(self) -> float:
        """Of the restored images; NaN where there are none."""
        return mean_of(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean."""
        return interval(np.array(list(self.values.values())), self.by.bounds)

    @property
    def rank(self) -> tuple[int, float]:
        """Less is better. Failures count first: those images, perhaps hard ones, are not in the mean."""
        return self.failed, -self.by.sign * self.mean if self.values else math.inf


def result_of(run: Run, trial: Trial, by: Measured, then: Measured, images: int) -> Result:
    """What the committed rows say of a trial's first images, whatever else it has done."""
    units = {unit.unit for unit in run.units() if unit.first < images}
    beside = {baseline: baseline_column(by.name, baseline) for baseline in BASELINES}
    columns = ["key", "status", "forwards", "vjps", "seconds", by.name, then.name, *beside.values()]
    tables = [table for table, commit in committed(run, list(dict.fromkeys(columns))) if commit.unit in units]
    rows = [row for table in tables for row in table.to_pylist()]
    ok = [row for row in rows if row["status"] == "ok"]

    def by_key(column: str) -> dict[str, float]:
        distances = by.distances(np.array([row[column] for row in ok], float)).tolist()
        return {row["key"]: value for row, value in zip(ok, distances, strict=True) if value == value}

    other = then.distances(np.array([row[then.name] for row in ok], float))
    values = by_key(by.name)
    return Result(
        trial,
        by,
        values,
        failed=len(rows) - len(values),
        then=float(np.nanmean(other)) if np.isfinite(other).any() else math.nan,
        evaluations=count_of([row["forwards"] + row["vjps"] for row in ok]) or 0,
        seconds=sum(row["seconds"] for row in ok) / max(len(ok), 1),
        without_network={name: found for name, column in beside.items() if (found := by_key(column))},
    )


def mean_of(values: Mapping[str, float]) -> float:
    """NaN of none."""
    return float(np.mean(list(values.values()))) if values else math.nan


def interval(values: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float]:
    """95 % confidence interval of the mean; NaN where it has none."""
    return mean_interval(values, bounds) if len(values) else (math.nan, math.nan)


@dataclass(frozen=True)
class Difference:
    """How much larger a trial's metric is than the best one's: mean of the pairs and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def none(self) -> bool:
        """Whether it cannot be told from 0."""
        return self.low <= 0 <= self.high


def difference(result: Result, best: Result) -> Difference:
    """Over the images that both have restored."""
    keys = sorted(result.values.keys() & best.values.keys())
    pairs = np.array([result.values[key] - best.values[key] for key in keys])
    least, most = best.by.bounds
    ends = interval(pairs, (least - most, most - least))
    return Difference(float(pairs.mean()) if keys else math.nan, *ends)


def climb(
    ladder: Sequence[Rung], do: Callable[[Sequence[int], int], Sequence[Result]]
) -> tuple[list[Result], list[int]]:
    """Take the trials from rung to rung.

    Args:
        do: does what is left of some trials' first images, by the numbers of the trials and of images.

    Returns:
        What every trial came to on all its images, and the numbers of those on the last rung, the best first.
    """
    results: dict[int, Result] = {}
    alive = list(range(ladder[0].trials))
    for rung in ladder:
        alive = alive[: rung.trials]
        results |= zip(alive, do(alive, rung.images), strict=True)
        alive.sort(key=lambda number: (results[number].rank, number))
    return [results[number] for number in sorted(results)], alive


@dataclass(frozen=True)
class Outcome:
    """A finished sweep.

    Attributes:
        results: of every trial on all its images, in the order of the trials.
        last: places in `results` of those that have done all images, the best first.
        then: decides among trials that are alike and cost the same.
        within: means that differ by at most this are alike too.

    Raises:
        JobError: nothing was measured.
    """

    by: Measured
    results: list[Result]
    last: list[int]
    then: Measured
    within: float = 0.0

    def __post_init__(self) -> None:
        if not self.best.values:
            raise JobError(
                f"no trial has a {self.by.title}: all its images failed, or it is undefined for them; "
                "`kintsugi report` on a trial gives the reasons"
            )

    @property
    def best(self) -> Result:
        """The best mean of those that have done all images."""
        return self.results[self.last[0]]

    @cached_property
    def differences(self) -> list[Difference]:
        """Of each result from the best."""
        return [difference(result, self.best) for result in self.results]

    @cached_property
    def alike(self) -> set[int]:
        """Places in `results` of the best, and of those that have done all images, have no more failures,
        and cannot be told from it or are within the tolerance.
        """

        def like_the_best(place: int) -> bool:
            differs, failed = self.differences[place], self.results[place].failed
            near = self.by.sign * differs.mean >= -self.within
            return failed <= self.best.failed and (differs.none or near)

        return {self.last[0], *filter(like_the_best, self.last)}

    @cached_property
    def chosen(self) -> Result:
        """The cheapest of those that are like the best; then by the second metric."""
        final = [self.results[place] for place in self.last if place in self.alike]
        return min(final, key=lambda it: (it.evaluations, math.isnan(it.then), -self.then.sign * it.then))

    @cached_property
    def without_network(self) -> dict[str, Result]:
        """What the measurements of all images have without a network, by its name: no trials, but shown."""
        return {
            BASELINES[name]: replace(self.best, values=values, then=math.nan, evaluations=0, seconds=0.0)
            for name, values in self.best.without_network.items()
        }

    def mark(self, place: int) -> str:
        """★ of the chosen trial, ≈ of those that are like the best."""
        return "★" if self.results[place] is self.chosen else "≈" if place in self.alike else ""

    def edges(self) -> list[str]:
        """In words, where the chosen value of a field is the smallest or largest that was tried."""
        found = []
        for field, value in self.chosen.trial.settings.items():
            tried = [result.trial.settings[field] for result in self.results]
            if not all(map(is_number, tried)) or len(set(tried)) < 3:  # two values have no middle
                continue
            if value in (min(tried), max(tried)):
                where, beyond = ("smallest", "below") if value == min(tried) else ("largest", "above")
                found.append(
                    f"{field} = {value:g} is the {where} that was tried; the best may lie {beyond} it"
                )
        return found


def is_number(value: Any) -> bool:
    """Whether a setting has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)
