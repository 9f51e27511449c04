"""One task of a suite: its methods on the images that all of them restored, with ranks and differences."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.analysis.compare import Paired, pair
from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.compare_rows import Shared, find_shared
from kintsugi.pipeline.analysis.compare_runs import (
    Cost,
    Described,
    RunNumbers,
    describe,
    run_numbers,
    set_warnings,
    without_network,
)
from kintsugi.pipeline.analysis.measures import badness_of, better, count_of, limited
from kintsugi.pipeline.analysis.ranks import fronts, ranks
from kintsugi.pipeline.analysis.set_metrics import set_metrics
from kintsugi.pipeline.analysis.suite_notes import (
    left_out_of,
    other_measurements,
    without_ranks,
    worse_than_nothing,
)
from kintsugi.pipeline.metrics.registry import BASELINES, baseline_column
from kintsugi.samplers.base import COUNTS

SHOWN = 8  # images, at most


@dataclass(frozen=True)
class Standing:
    """A method in a task.

    Attributes:
        numbers: means over the images that are compared; of several runs together. runs: how many.
        distortion, perception: ranks, 1 the best; equal ones share the mean of their places.
        by_evaluations, by_seconds: whether no method that costs at most as much is at least as good in both
            and better in one; None where that is not known.
    """

    numbers: RunNumbers
    runs: int
    distortion: float | None
    perception: float | None
    by_evaluations: bool | None
    by_seconds: bool | None


@dataclass(frozen=True)
class Task:
    """What the methods make of one task.

    Attributes:
        images: those that all methods restored; only these are compared.
        against: the method that others are compared with; None where it is not there.
        standings: by rank in distortion. baselines: what the measurements give without a network.
        measures: that any method has, of single images and of the set.
        paired: other methods less `against`; p-values are corrected for the tests of all tasks.
        shown: by key, of the first images, the distortion by method.
        notes: what is left out, and what must be read with care.
    """

    name: str
    images: int
    against: str | None
    standings: list[Standing]
    baselines: list[RunNumbers]
    measures: list[str]
    paired: list[Paired]
    shown: dict[str, dict[str, float]]
    notes: list[str]


@dataclass(frozen=True)
class Axes:
    """The measures of the ranks, those that are tested, and the method that others are compared with.

    Attributes:
        draws: as of `paired_p_value`.
    """

    distortion: str
    perception: str | None
    family: tuple[str, ...]
    against: str | None
    draws: int


@dataclass(frozen=True)
class Method:
    """A method in a task: what it is by itself, of how many runs, and the values of the images by measure."""

    numbers: RunNumbers
    runs: int
    values: dict[str, np.ndarray]

    @property
    def label(self) -> str:
        """Its name."""
        return self.numbers.label


def summarize_task(name: str, inputs: Sequence[Input], tables: Sequence[pa.Table], by: Axes) -> Task:
    """A task, of runs that restored at least one image each.

    Args:
        inputs: those with the same label are seeds of one method. tables: all rows of each.
    """
    if not inputs:
        return Task(name, 0, None, [], [], [], [], {}, ["no run is finished"])
    try:
        shared = find_shared(inputs, tables)
    except JobError as error:
        return Task(name, 0, None, [], [], [], [], {}, [redacted(str(error))])
    inputs, unknown = with_sets(inputs)
    methods = gather(inputs, shared)
    standings = rank(methods, by)
    best = None if standings[0].distortion is None else standings[0].numbers.label
    against = by.against or best
    base = next((one for one in methods if one.label == against), None)
    runs, first = [one.numbers for one in methods], shared.first[:SHOWN]
    sets = dict.fromkeys(of for run in runs for of in run.sets)
    measures = [of for of in shared.having if better(of) is not None and of != "seconds"]
    baselines = baselines_of(shared, measures)
    axes = [of for of in (by.distortion, by.perception) if of is not None]
    notes = [
        *without_ranks(runs, axes),
        *([f"nothing is compared with {against}, which is not there"] if against and base is None else []),
        *other_measurements(inputs),
        *unknown,
        *set_warnings(runs),
        *left_out_of(runs, len(shared)),
        *worse_than_nothing(runs, baselines, axes),
    ]
    return Task(
        name,
        len(shared),
        None if base is None else base.label,
        standings,
        baselines,
        [*measures, *sets],
        [] if base is None else differences(base, methods, by),
        {
            key: {
                one.label: float(one.values[by.distortion][i])
                for one in methods
                if by.distortion in one.values
            }
            for i, key in zip(first, shared.keys(first), strict=True)
        },
        notes,
    )


def with_sets(inputs: Sequence[Input]) -> tuple[list[Input], list[str]]:
    """The runs with their metrics of sets in the report, and which of them cannot be computed."""
    found, notes = [], []
    for one in inputs:
        sets: dict[str, Any] = {}
        try:
            if one.run is not None:
                sets = {name: asdict(result) for name, result in set_metrics(one.run).items()}
        except JobError as error:
            notes.append(redacted(f"{one.label}: {error}"))
        found.append(replace(one, report={"sets": sets}))
    return found, notes


def gather(inputs: Sequence[Input], shared: Shared) -> list[Method]:
    """The runs by method, in order; several of one are averaged."""
    methods = []
    for label in dict.fromkeys(shared.labels):
        of = [i for i, one in enumerate(inputs) if one.label == label]
        values = {i: {name: shared.values(i, name) for name in shared.measures(i)} for i in of}
        each = [run_numbers(inputs[i], shared, i, described(values[i])) for i in of]
        mean = averaged(list(values.values()))
        methods.append(Method(together(each, mean), len(of), mean))
    return methods


def described(values: Mapping[str, np.ndarray]) -> dict[str, Described]:
    """Each measure by itself."""
    return {name: describe(name, of) for name, of in values.items()}


def averaged(values: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The mean of each image over runs, in the measures that all have; of several as `limited` says."""
    if len(values) == 1:
        return dict(values[0])
    with np.errstate(invalid="ignore"):
        return {
            name: np.mean([limited(name, of[name]) for of in values], axis=0)
            for name in values[0]
            if all(name in of for of in values)
        }


def together(each: Sequence[RunNumbers], values: Mapping[str, np.ndarray]) -> RunNumbers:
    """What several runs of one method are; of a metric of the set the mean, which then has no interval."""
    first = each[0]
    if len(each) == 1:
        return first
    sets = {}
    for name in first.sets:
        found = [run.sets[name]["value"] for run in each if name in run.sets]
        known = [value for value in found if value is not None]
        mean = sum(known) / len(each) if len(known) == len(each) else None
        sets[name] = first.sets[name] | {"value": mean, "low": None, "high": None}
    counts = {name: [getattr(run.cost, name) for run in each] for name in COUNTS}
    seconds = [run.cost.seconds for run in each if run.cost.seconds is not None]
    cost = Cost(
        seconds=sum(seconds) / len(each) if len(seconds) == len(each) else None,
        **{name: None if None in of else count_of(of) for name, of in counts.items()},
    )
    return replace(
        first,
        rows=sum(run.rows for run in each),
        failed=sum(run.failed for run in each),
        absent=sum(run.absent for run in each),
        measures={name: describe(name, of)[0] for name, of in values.items()},
        infinite={name: sum(run.infinite.get(name, 0) for run in each) for name in values},
        sets=sets,
        cost=cost,
    )


def rank(methods: Sequence[Method], by: Axes) -> list[Standing]:
    """The methods by rank in distortion, of equal ones by rank in perception; those without one last."""
    runs = [one.numbers for one in methods]
    distortion, perception = (
        [None if name is None else badness_of(name, run.estimate(name)[0]) for run in runs]
        for name in (by.distortion, by.perception)
    )
    on = [
        fronts(costs, distortion, perception)
        for costs in ([run.cost.evaluations for run in runs], [run.cost.seconds for run in runs])
    ]
    places = zip(methods, ranks(distortion), ranks(perception), *on, strict=True)
    found = [Standing(one.numbers, one.runs, first, second, a, b) for one, first, second, a, b in places]

    def place(one: Standing) -> tuple[float, ...]:
        return tuple(len(runs) + 1 if of is None else of for of in (one.distortion, one.perception))

    return sorted(found, key=place)


def differences(base: Method, methods: Sequence[Method], by: Axes) -> list[Paired]:
    """Of the other methods less this one, where there are images that have the measure in both."""
    found = [
        pair(name, base.label, one.label, base.values[name], one.values[name], by.draws)
        for name in by.family
        for one in methods
        if one is not base and name in base.values and name in one.values
    ]
    return [one for one in found if one.n]


def baselines_of(shared: Shared, measures: Sequence[str]) -> list[RunNumbers]:
    """What the measurements give without a network; of several seeds the mean of each image."""
    found = []
    for baseline, label in BASELINES.items():
        columns = {name: baseline_column(name, baseline) for name in measures}
        runs = {run: shared.known(run, columns) for run in range(len(shared.rows))}
        values = {
            name: averaged([{name: shared.values(run, columns[name])} for run in having])[name]
            for name in measures
            if (having := [run for run, names in runs.items() if name in names])
        }
        if values:
            found.append(without_network(label, len(shared), described(values)))
    return found
