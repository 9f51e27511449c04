"""A sweep: one job with several settings on the images for tuning, and which of them is best.

Each setting is a trial, an ordinary run. Successive halving (Jamieson and Talwalkar, AISTATS 2016): all
trials do a few images, the better ones go on. A trial goes on by doing further units of its own run, so
nothing is done twice, and all that is known of it is in its rows. Trials are compared on the same images, in
pairs.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis import tables
from kintsugi.pipeline.analysis.aggregate import bounds, committed, limited
from kintsugi.pipeline.analysis.intervals import mean_interval
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import BASELINES, IMAGE, baseline_column
from kintsugi.pipeline.storage import Location, publish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Settings = dict[str, Any]
SMALLEST = 8  # images of the first rung: with fewer the order is a matter of luck
MAX_NAME = 60  # characters of a trial's settings in its name


@dataclass(frozen=True)
class Range:
    """Values between two numbers, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, generator: np.random.Generator) -> float:
        """One of them, to four digits, so that names and job files can be read."""
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        return float(f"{value:.4g}")


Choices = list[Any] | Range


def grid(vary: Mapping[str, list[Any]]) -> list[Settings]:
    """Every combination; the last field changes fastest."""
    return [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]


def random_settings(vary: Mapping[str, Choices], count: int, seed: int) -> list[Settings]:
    """`count` combinations at random; the first ones of more are the same."""

    def draw(number: int) -> Settings:
        generator = np.random.default_rng([seed, number])
        return {
            field: choices.draw(generator)
            if isinstance(choices, Range)
            else choices[int(generator.integers(len(choices)))]
            for field, choices in vary.items()
        }

    return [draw(number) for number in range(count)]


def name_of(settings: Settings) -> str:
    """The folder of a trial: its settings in short, and a hash of them."""
    short = "_".join(f"{field.rpartition('.')[2]}={value}" for field, value in settings.items())
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.=_+-]+', '-', short)[:MAX_NAME]}-{digest[:8]}"


@dataclass(frozen=True)
class Rung:
    """So many trials, each on the first so many images."""

    trials: int
    images: int


def rungs(trials: int, images: int, halve: int, unit: int) -> list[Rung]:
    """Of all trials 1/halve go on with halve times as many images, up to all; two at least see all of them.

    Args:
        halve: 1 lets every trial do all images.
        unit: images that are committed together: a rung has whole units.
    """
    sizes = [images]
    while halve > 1 and trials > halve ** len(sizes):
        smaller = -(-(sizes[0] // halve) // unit) * unit
        if sizes[0] // halve < SMALLEST or smaller >= sizes[0]:
            break
        sizes.insert(0, smaller)
    return [Rung(-(-trials // halve**number), size) for number, size in enumerate(sizes)]


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
        if IMAGE[self.name].better is None:
            raise JobError(f"--by: of {self.name} neither high nor low values are better; choose another")

    @property
    def title(self) -> str:
        metric = IMAGE[self.name]
        return f"|log {metric.title}|" if metric.better == "one" else metric.title

    @property
    def sign(self) -> int:
        """1 where more is better, else −1."""
        return 1 if IMAGE[self.name].better == "higher" else -1

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and largest of the distances."""
        return (0.0, math.inf) if IMAGE[self.name].better == "one" else bounds(self.name)

    def distances(self, values: np.ndarray) -> np.ndarray:
        """The values; of a ratio that is best at 1 how far its logarithm is from 0; NaN where undefined."""
        values = limited(self.name, values)
        if IMAGE[self.name].better == "one":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.abs(np.log(values))
        return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True)
class Trial:
    """Settings, and the job that has them."""

    settings: Settings
    job: Job

    @property
    def name(self) -> str:
        return name_of(self.settings)


@dataclass(frozen=True)
class Result:
    """What a trial came to on its first images.

    Attributes:
        values: the metric of each restored image, by key. failed: images that were not restored, or whose
            metric is undefined.
        then: mean of the metric that decides among trials that are alike in the first.
        evaluations: of the network per image, forwards and vector-Jacobian products.
        seconds: of the sampler per image.
        without_network: by baseline, the metric of each image by key; none in rows of earlier versions.
    """

    trial: Trial
    by: Measured
    values: dict[str, float]
    failed: int
    then: float
    evaluations: int
    seconds: float
    without_network: dict[str, dict[str, float]]

    @cached_property
    def mean(self) -> float:
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
        evaluations=max((row["forwards"] + row["vjps"] for row in ok), default=0),
        seconds=sum(row["seconds"] for row in ok) / max(len(ok), 1),
        without_network={name: found for name, column in beside.items() if (found := by_key(column))},
    )


def mean_of(values: Mapping[str, float]) -> float:
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

    def edges(self) -> list[str]:
        """In words, where the chosen value of a field is the smallest or largest that was tried."""
        found = []
        for field, value in self.chosen.trial.settings.items():
            tried = [result.trial.settings[field] for result in self.results]
            if not all(map(number, tried)) or len(set(tried)) < 3:  # two values have no middle
                continue
            if value in (min(tried), max(tried)):
                where, beyond = ("smallest", "below") if value == min(tried) else ("largest", "above")
                found.append(
                    f"{field} = {value:g} is the {where} that was tried; the best may lie {beyond} it"
                )
        return found


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_csv(outcome: Outcome, target: Location) -> None:
    """A line for each trial, in the order of the trials."""
    by = outcome.by.name
    then = [] if outcome.then == outcome.by else [outcome.then.name]
    figures = ["images", "failed", by, "low", "high", "difference", "difference_low", "difference_high"]
    fields = list(outcome.best.trial.settings)
    beside = list(outcome.best.without_network)
    columns = [baseline_column(by, name) for name in beside]
    head = ["trial", *fields, *figures, *then, "alike", "chosen", "evaluations", "seconds", *columns]
    lines = [
        [
            result.trial.name,
            *result.trial.settings.values(),
            len(result.values) + result.failed,
            result.failed,
            result.mean,
            *result.interval,
            differs.mean,
            differs.low,
            differs.high,
            *(result.then for _ in then),
            int(place in outcome.alike),
            int(result is outcome.chosen),
            result.evaluations,
            result.seconds,
            *(mean_of(result.without_network.get(name, {})) for name in beside),
        ]
        for place, (result, differs) in enumerate(zip(outcome.results, outcome.differences, strict=True))
    ]
    with publish(target) as temporary, temporary.open("w", newline="") as file:
        tables.write_csv(file, [head, *lines])


def draw(outcome: Outcome, target: Location) -> None:
    """An SVG of differences from the best trial: a line for one field, a map for two, else a panel each.

    Differences are paired, so trials that stopped early are shown on the same footing as the others.
    """
    import matplotlib
    from matplotlib.figure import Figure

    fields = list(outcome.best.trial.settings)
    tried = [distinct(result.trial.settings[field] for result in outcome.results) for field in fields]
    whole_grid = len(outcome.results) == math.prod(map(len, tried))
    as_map = len(fields) == 2 and whole_grid
    with matplotlib.rc_context({"svg.hashsalt": "kintsugi", "font.size": 9}):
        figure = Figure(figsize=(4.5 if as_map else 4 * len(fields), 3.5), layout="constrained")
        if as_map:
            heat_map(figure.subplots(), outcome, fields, tried)
        else:
            for axes, field, values in zip(
                np.atleast_1d(figure.subplots(1, len(fields))), fields, tried, strict=True
            ):
                panel(axes, outcome, field, values)
        beside = [
            f"{label} {difference(it, outcome.best).mean:+.3g}"
            for label, it in outcome.without_network.items()
        ]
        without = f"\nwithout a network: {', '.join(beside)}" if beside else ""
        figure.suptitle(f"{outcome.by.title}, paired difference from the best{without}")
        with publish(target) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def distinct(values: Any) -> list[Any]:
    """Each value once: numbers in order, others as they come."""
    found = list({str(value): value for value in values}.values())
    return sorted(found) if all(map(number, found)) else found


def panel(axes: "Axes", outcome: Outcome, field: str, values: list[Any]) -> None:
    """Difference against the values of a field, with intervals; a ring marks the chosen trial."""
    numeric = all(map(number, values))
    place = {str(value): value if numeric else i for i, value in enumerate(values)}
    x = np.array([place[str(result.trial.settings[field])] for result in outcome.results], float)
    y = np.array([[it.mean, it.low, it.high] for it in outcome.differences])
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    spread = np.nan_to_num(np.stack([y[:, 0] - y[:, 1], y[:, 2] - y[:, 0]]))
    joined = (
        "-" if len(outcome.results) == len(values) else ""
    )  # where other fields vary, a line says nothing
    axes.errorbar(x, y[:, 0], spread, fmt=f"o{joined}", markersize=4, capsize=3, linewidth=1)
    ring = place[str(outcome.chosen.trial.settings[field])], difference(outcome.chosen, outcome.best).mean
    axes.plot(*ring, "o", markersize=11, fillstyle="none", color="tab:red")
    axes.axhline(0, linewidth=0.5, color="grey")
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value)[:20] for value in values])
    axes.set_xlabel(field)


def heat_map(axes: "Axes", outcome: Outcome, fields: list[str], tried: list[list[Any]]) -> None:
    """Difference for every pair of values; ★ marks the chosen trial, ≈ those that are like the best."""
    columns, rows = tried
    shown = np.full((len(rows), len(columns)), np.nan)
    for place, (result, differs) in enumerate(zip(outcome.results, outcome.differences, strict=True)):
        x, y = (values.index(result.trial.settings[it]) for values, it in zip(tried, fields, strict=True))
        shown[y, x] = differs.mean
        mark = "★" if result is outcome.chosen else "≈" if place in outcome.alike else ""
        behind = {"boxstyle": "round", "facecolor": "white", "alpha": 0.7, "linewidth": 0}
        axes.text(x, y, f"{differs.mean:.3g}{mark}", ha="center", va="center", fontsize=8, bbox=behind)
    good = "viridis" if outcome.by.sign > 0 else "viridis_r"
    axes.imshow(shown, cmap=good, aspect="auto", origin="lower")
    axes.set_xticks(range(len(columns)), [str(value)[:20] for value in columns])
    axes.set_yticks(range(len(rows)), [str(value)[:20] for value in rows])
    axes.set_xlabel(fields[0])
    axes.set_ylabel(fields[1])
