"""Comparison of runs on the same images: paired differences, wins, cost, and where they differ most."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.compare_inputs import (
    Input,
    Shared,
    can_be_ranked,
    find_baselines,
    find_shared,
    load,
    means_alone,
    same_degradation,
    warnings,
)
from kintsugi.pipeline.analysis.compare_runs import (
    Cost,
    RunNumbers,
    common_edges,
    describe,
    listed_numbers,
    run_numbers,
    set_warnings,
)
from kintsugi.pipeline.analysis.intervals import DRAWS, holm, paired_p_value
from kintsugi.pipeline.analysis.measures import (
    bare,
    better,
    counted,
    difference,
    limited,
    pairs_of,
    share_better,
)
from kintsugi.pipeline.metrics import IMAGE

ALL_PAIRS = 4  # runs of which every pair is compared; of more, each with the first
SHOWN = 8  # images: the first ones, and as many that differ most


@dataclass(frozen=True)
class Paired:
    """`other` less `baseline` in one measure.

    Attributes:
        n: pairs from which the difference, its 95 % interval and p come.
        infinite: how many of them have an infinite value, which counts as `measures.limited` says.
        p, corrected: of the sign-flip test; corrected for the number of tests of the metrics that were asked
            for, and None of what nobody asked for, such as the residual.
        wins: share of all pairs in which `other` is better, ties counted half; None where no image has
            the measure in both.
    """

    measure: str
    baseline: str
    other: str
    n: int
    infinite: int
    difference: float | None
    low: float | None
    high: float | None
    p: float
    corrected: float | None
    wins: float | None


@dataclass(frozen=True)
class ShownImage:
    """An image whose pictures are shown.

    Attributes:
        place: among the rows of the first run. differs: whether it is one of those that differ most.
        values: by measure, of each run. spreads: by measure, how much the runs differ.
    """

    key: str
    place: int
    differs: bool
    values: dict[str, list[float]]
    spreads: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What `compare` finds.

    Attributes:
        images: samples that are restored in all runs; only these are compared.
        listed: what is known by its means alone, and so has no differences and no rank.
        baselines: what the same measurements give without a network; several of a kind where the runs
            restored different ones. against: the runs less these.
        ranked: whether all restored the same degradation, so that one can be said to be the best.
        not_shared: measures that not all runs have, and the runs that have them.
        by: the measure by which images are chosen.
        shown: the first images, and those that differ most.
    """

    images: int
    runs: list[RunNumbers]
    listed: list[RunNumbers]
    baselines: list[RunNumbers]
    ranked: bool
    measures: list[str]
    not_shared: dict[str, list[str]]
    paired: list[Paired]
    against: list[Paired]
    warnings: list[str]
    by: str
    shown: list[ShownImage]

    @property
    def differing(self) -> dict[str, dict[str, float]]:
        """The images in which the runs differ most, the first most of all, and their values by run."""
        most = sorted(
            (one for one in self.shown if one.differs), key=lambda one: (-one.spreads[self.by], one.key)
        )
        labels = [run.label for run in self.runs]
        return {one.key: dict(zip(labels, one.values[self.by], strict=True)) for one in most}

    @property
    def differences(self) -> list[Paired]:
        """Of runs from each other, and from what needs no network, by measure."""
        return sorted([*self.paired, *self.against], key=lambda one: self.measures.index(one.measure))

    @property
    def set_names(self) -> list[str]:
        """The metrics of sets that any run has."""
        return list(dict.fromkeys(name for run in [*self.runs, *self.listed] for name in run.sets))


def compare(inputs: Sequence[Input], by: str | None = None) -> Comparison:
    """Compare runs on the images that all of them restored, paired by key; those with means alone are listed.

    Args:
        by: the measure for the images that are shown; the default is psnr, or the first that all have.

    Raises:
        JobError: they have no key, or no measure, in common; `by` is none of these; a key occurs twice.
    """
    listed = [one for one in inputs if not one.has_images]
    inputs = [one for one in inputs if one.has_images]
    tables = [load(one) for one in inputs]
    shared = find_shared(inputs, tables)
    tables = [table.select(["key", "status", "error"]) for table in tables]  # the values are in `shared`
    measures, by = choose_measures(shared.names, by)
    stacked = {name: np.stack([of[name] for of in shared.values]) for name in shared.names}
    edges = {name: common_edges(np.sort(counted(name, of))) for name, of in stacked.items()}
    keys = len(pa.chunked_array([chunk for table in tables for chunk in table["key"].chunks]).unique())
    runs = [
        run_numbers(one, table, keys - len(table), compared, describe(values, edges))
        for one, table, compared, values in zip(inputs, tables, shared.tables, shared.values, strict=True)
    ]
    baselines = find_baselines(shared, measures)
    against = [
        pair(name, label, shared.labels[run], of[name], shared.values[run][name])
        for name in measures
        for label, (restored_by, of) in baselines.items()
        if name in of
        for run in restored_by
    ]
    spreads = {name: disagreement(name, stacked[name]) for name in dict.fromkeys([by, *measures])}
    shown = choose_images(shared, stacked, spreads, by)
    return Comparison(
        images=len(shared.places),
        runs=runs,
        listed=[listed_numbers(one) for one in listed],
        baselines=[
            RunNumbers(label, "", len(shared.places), 0, 0, *describe(of, edges), {}, [], Cost())
            for label, (_, of) in baselines.items()
        ],
        ranked=can_be_ranked(inputs),
        measures=measures,
        not_shared={name: of for name, of in shared.having.items() if of != shared.labels},
        paired=correct(pair_runs(inputs, stacked, measures)),
        against=correct(against),
        warnings=[
            *warnings(inputs),
            *(line for one in listed for line in means_alone(inputs[0], one)),
            *set_warnings(runs),
            *worse_than_nothing(against),
        ],
        by=by,
        shown=shown,
    )


def choose_measures(names: Sequence[str], by: str | None) -> tuple[list[str], str]:
    """Those in which runs are compared, and that by which images are chosen.

    Raises:
        JobError: there are none, or `by` is none of those that all have.
    """
    measures = [name for name in names if better(name) is not None and name != "seconds"]
    if not measures:
        raise JobError(
            "compare: the runs have no measure in common; name metrics in their jobs, or score them"
        )
    if by is None:
        by = "psnr" if "psnr" in measures else measures[0]
    if by not in names:
        raise JobError(f"compare: --by {by}: not a measure of all runs; choose from {', '.join(names)}")
    return measures, by


def pair_runs(
    inputs: Sequence[Input], values: Mapping[str, np.ndarray], measures: Sequence[str]
) -> list[Paired]:
    """Runs that restored the same degradation: each pair of a few, of more each with the first.

    Args:
        values: by measure, (runs, images).
    """
    pairs = list(itertools.combinations(range(len(inputs)), 2))
    if len(inputs) > ALL_PAIRS:
        pairs = pairs[: len(inputs) - 1]  # those with the first come first
    alike = [(i, j) for i, j in pairs if same_degradation(inputs[i], inputs[j])]
    return [
        pair(name, inputs[i].label, inputs[j].label, values[name][i], values[name][j])
        for name in measures
        for i, j in alike
    ]


def pair(
    name: str, baseline: str, other: str, before: np.ndarray, after: np.ndarray, draws: int = DRAWS
) -> Paired:
    """`after`, the values of `other`, less `before`, (images,) each, without a corrected p-value.

    Args:
        draws: as of `paired_p_value`.
    """
    found = difference(name, before, after)
    p = paired_p_value(pairs_of(name, before, after), draws)
    wins = share_better(name, before, after)
    return Paired(
        name, baseline, other, found.n, found.infinite, found.value, found.low, found.high, p, None, wins
    )


def correct(pairs: Sequence[Paired]) -> list[Paired]:
    """With p-values corrected for all tests of metrics; of other measures only where there is no metric."""
    tested = {one.measure for one in pairs}
    tested = tested & IMAGE.keys() or tested
    p_values = iter(holm([one.p for one in pairs if one.measure in tested]))
    return [replace(one, corrected=next(p_values)) if one.measure in tested else one for one in pairs]


def disagreement(name: str, values: np.ndarray) -> np.ndarray:
    """How much the runs differ in each image, −1 where one of them has no value.

    The range of the values; of ratios, which are best at 1, that of their logarithms.

    Args:
        values: (runs, images).
    """
    values = limited(name, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        compared = np.log(values) if better(name) == "one" else values
        low, high = compared.min(0), compared.max(0)
        found = np.where(high == low, 0.0, high - low)  # of two infinite values it is 0
    return np.where(np.isnan(compared).any(0), -1.0, found)


def choose_images(
    shared: Shared, values: Mapping[str, np.ndarray], spreads: Mapping[str, np.ndarray], by: str
) -> list[ShownImage]:
    """The first images in the order of the first run, then those that differ most in `by`.

    Args:
        values: by measure, (runs, images). spreads: by measure, how much the runs differ, (images,).
    """
    most = [i for i in np.argsort(-spreads[by], kind="stable")[:SHOWN].tolist() if spreads[by][i] >= 0]
    first = np.argsort(shared.places)[:SHOWN].tolist()
    return [
        ShownImage(
            shared.tables[0]["key"][i].as_py(),
            int(shared.places[i]),
            i in most,
            {name: values[name][:, i].tolist() for name in spreads},
            {name: float(of[i]) for name, of in spreads.items()},
        )
        for i in dict.fromkeys([*first, *most])
    ]


def worse_than_nothing(against: Iterable[Paired]) -> list[str]:
    """Where restoring lost more often than it won."""
    return [
        f"{one.other}, {bare(one.measure)}: {one.baseline}, which needs no network, does better on "
        f"{100 - 100 * one.wins:.0f} % of the images"
        for one in against
        if one.wins is not None and one.wins < 0.5
    ]
