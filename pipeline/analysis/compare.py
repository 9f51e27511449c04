"""Comparison of runs on the same images: paired differences, wins, cost, and where they differ most."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.compare_inputs import (
    Input,
    can_be_ranked,
    means_alone,
    same_degradation,
    warnings,
)
from kintsugi.pipeline.analysis.compare_rows import (
    Shared,
    Without,
    find_baselines,
    find_shared,
    opened,
)
from kintsugi.pipeline.analysis.compare_runs import (
    Described,
    RunNumbers,
    common_edges,
    describe,
    listed_numbers,
    run_numbers,
    set_warnings,
    without_network,
)
from kintsugi.pipeline.analysis.intervals import DRAWS, holm, paired_p_value
from kintsugi.pipeline.analysis.measures import (
    bare,
    better,
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

    Beside keys, and where these are, the values of one measure are in memory at a time.

    Args:
        by: the measure for the images that are shown; the default is psnr, or the first that all have.

    Raises:
        JobError: they have no key, or no measure, in common; `by` is none of these; a key occurs twice.
    """
    listed = [one for one in inputs if not one.has_images]
    inputs = [one for one in inputs if one.has_images]
    with ExitStack() as stack:
        shared = find_shared(inputs, [stack.enter_context(opened(one)) for one in inputs])
        measures, by = choose_measures(shared.names, by)
        without = find_baselines(shared, measures)
        images, most = choose_images(shared, by)
        found = {
            name: compare_in(name, inputs, shared, without if name in measures else (), images)
            for name in shared.having
        }
        runs = [
            run_numbers(one, shared, run, {name: found[name].runs[run] for name in shared.measures(run)})
            for run, one in enumerate(inputs)
        ]
        shown = show(shared, images, most, {name: found[name] for name in dict.fromkeys([by, *measures])})
    against = [one for name in measures for one in found[name].against]
    given = {one.label: {name: found[name].baselines[one.label] for name in one.names} for one in without}
    return Comparison(
        images=len(shared),
        runs=runs,
        listed=[listed_numbers(one) for one in listed],
        baselines=[without_network(label, len(shared), of) for label, of in given.items()],
        ranked=can_be_ranked(inputs),
        measures=measures,
        not_shared={
            name: [shared.labels[run] for run in of]
            for name, of in shared.having.items()
            if name not in shared.names
        },
        paired=correct([one for name in measures for one in found[name].paired]),
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


@dataclass(frozen=True)
class InMeasure:
    """What there is to say of one measure.

    Attributes:
        runs, baselines: what each is by itself, by number and by label.
        paired, against: runs less each other, and less what needs no network.
        values, spreads: of some images, (runs, images) and (images,); of a measure that all runs have.
    """

    runs: dict[int, Described]
    baselines: dict[str, Described]
    paired: list[Paired]
    against: list[Paired]
    values: np.ndarray
    spreads: np.ndarray


def compare_in(
    name: str, inputs: Sequence[Input], shared: Shared, baselines: Sequence[Without], images: Sequence[int]
) -> InMeasure:
    """Compare runs in one measure.

    Args:
        baselines: with which they are compared. images: of which the values are wanted.
    """
    having = shared.having[name]
    values = np.stack([shared.values(run, name) for run in having])
    if len(having) < len(inputs):
        described = {run: describe(name, of) for run, of in zip(having, values, strict=True)}
        return InMeasure(described, {}, [], [], values[:, :0], values[0, :0])
    edges = common_edges(name, values)
    of_baselines, against = {}, []
    for one in baselines:
        if name in one.names:
            before = one.values(shared, name)
            of_baselines[one.label] = describe(name, before, edges)
            against += [pair(name, one.label, shared.labels[run], before, values[run]) for run in one.runs]
    return InMeasure(
        {run: describe(name, of, edges) for run, of in enumerate(values)},
        of_baselines,
        pair_runs(name, inputs, values) if better(name) is not None and name != "seconds" else [],
        against,
        values[:, images],
        disagreement(name, values[:, images]),
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


def pair_runs(name: str, inputs: Sequence[Input], values: np.ndarray) -> list[Paired]:
    """Runs that restored the same degradation: each pair of a few, of more each with the first.

    Args:
        values: (runs, images).
    """
    pairs = list(itertools.combinations(range(len(inputs)), 2))
    if len(inputs) > ALL_PAIRS:
        pairs = pairs[: len(inputs) - 1]  # those with the first come first
    return [
        pair(name, inputs[i].label, inputs[j].label, values[i], values[j])
        for i, j in pairs
        if same_degradation(inputs[i], inputs[j])
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


def choose_images(shared: Shared, by: str) -> tuple[list[int], list[int]]:
    """The first images in the order of the first run, then those that differ most in a measure; and these."""
    spreads = disagreement(by, np.stack([shared.values(run, by) for run in range(len(shared.rows))]))
    most = [i for i in np.argsort(-spreads, kind="stable")[:SHOWN].tolist() if spreads[i] >= 0]
    return list(dict.fromkeys([*shared.first[:SHOWN], *most])), most


def show(
    shared: Shared, images: Sequence[int], most: Sequence[int], found: Mapping[str, InMeasure]
) -> list[ShownImage]:
    """The images with their values in each measure, that by which they were chosen first."""
    return [
        ShownImage(
            key,
            int(shared.where[0][image]),
            image in most,
            {name: of.values[:, place].tolist() for name, of in found.items()},
            {name: float(of.spreads[place]) for name, of in found.items()},
        )
        for place, (image, key) in enumerate(zip(images, shared.keys(images), strict=True))
    ]


def worse_than_nothing(against: Iterable[Paired]) -> list[str]:
    """Where restoring lost more often than it won."""
    return [
        f"{one.other}, {bare(one.measure)}: {one.baseline}, which needs no network, does better on "
        f"{100 - 100 * one.wins:.0f} % of the images"
        for one in against
        if one.wins is not None and one.wins < 0.5
    ]
