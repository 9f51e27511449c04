"""Comparison of runs on the same images: paired differences, wins, cost, and where they differ most."""

import itertools
import json
import math
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from inspect import signature
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kintsugi import operators
from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.analysis.aggregate import (
    QUANTILES,
    average,
    badness,
    better,
    counted,
    difference,
    histogram,
    limited,
    measures_in,
    pairs_of,
    share_better,
)
from kintsugi.pipeline.analysis.figures import Cost, Quality, draw
from kintsugi.pipeline.analysis.intervals import holm, paired_p_value
from kintsugi.pipeline.analysis.query import rows_file
from kintsugi.pipeline.analysis.report import (
    ARROWS,
    ASCENDING,
    TITLES,
    bare,
    environments,
    number,
    with_interval,
)
from kintsugi.pipeline.analysis.report.gallery import (
    KINDS,
    Card,
    failures,
    fitted,
    rows_at,
    with_pseudo_inverses,
)
from kintsugi.pipeline.analysis.report.stored import METRICS, read_metrics
from kintsugi.pipeline.analysis.tables import Table, markdown_text
from kintsugi.pipeline.execution.commit import refuse_nonsense
from kintsugi.pipeline.execution.identity import recorded
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job, alike, deciding, flatten
from kintsugi.pipeline.metrics import BASELINE_COLUMNS, BASELINES, IMAGE, baseline_column
from kintsugi.pipeline.storage import Location, at, make_folder, parquet, publish

ALL_PAIRS = 4  # runs of which every pair is compared; of more, each with the first
SHOWN = 8  # images: the first ones, and as many that differ most
FRONTIER = ("psnr", "lpips", "fid")


@dataclass(frozen=True)
class Input:
    """Rows that take part: of a run, or of images that `kintsugi score` scored (`run` is None)."""

    label: str
    folder: Location
    rows: Location
    run: Run | None
    report: dict[str, Any]


@dataclass(frozen=True)
class RunNumbers:
    """What one run is by itself.

    Attributes:
        rows, failed: samples that it has. absent: samples of the other runs that it has no row of.
        measures: (mean, low, high) of the values that count over the compared images, and `infinite`, how
            many are not finite.
        histograms: of the values that count over the compared images, with the same edges in all runs.
        sets: metrics of the whole set as the report has them, with `n`; over all images of the run.
        failures: the first ones: place among the run's rows, key, error.
        cost: None where it is not known.
    """

    label: str
    title: str
    rows: int
    failed: int
    absent: int
    measures: dict[str, tuple[float | None, float | None, float | None]]
    infinite: dict[str, int]
    histograms: dict[str, dict[str, Any]]
    sets: dict[str, dict[str, Any]]
    failures: list[tuple[int, str, str]]
    cost: Cost


@dataclass(frozen=True)
class Paired:
    """`other` less `baseline` in one measure.

    Attributes:
        n: pairs from which the difference, its 95 % interval and p come.
        infinite: how many of them have an infinite value, which counts as `aggregate.limited` says.
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
    """Attributes:
    images: samples that are restored in all runs; only these are compared.
    baselines: what the same measurements give without a network; several of a kind where the runs restored
        different ones. against: the runs less these.
    ranked: whether all restored the same degradation, so that one can be said to be the best.
    not_shared: measures that not all runs have, and the runs that have them.
    by, differing: the images where the runs differ most in this measure, and their values by run.
    shown: the first images, and those that differ most.
    """

    images: int
    runs: list[RunNumbers]
    baselines: list[RunNumbers]
    ranked: bool
    measures: list[str]
    not_shared: dict[str, list[str]]
    paired: list[Paired]
    against: list[Paired]
    warnings: list[str]
    by: str
    differing: dict[str, dict[str, float]]
    shown: list[ShownImage]


def open_entries(names: Sequence[str]) -> list[Input]:
    """Find the rows of each run.

    Raises:
        JobError: fewer than two, or what is neither a run directory nor made by `kintsugi score`.
    """
    if len(names) < 2:
        raise JobError("compare: name at least two runs")
    try:
        folders = [at(name) for name in names]
    except ValueError as error:
        raise JobError(f"RUN: {error}") from error
    entries = []
    for folder, label in zip(folders, labels(folders), strict=True):
        rows = rows_file(folder)
        run = Run.open(folder) if (folder / "job.yaml").exists() else None
        entries.append(Input(label, folder, rows, run, read_metrics(rows.parent / METRICS)))
    return entries


def labels(folders: Sequence[Location]) -> list[str]:
    """The folders' names; where these are the same with their parents', and numbered if these are, too.

    What XML does not have, and what could steer a terminal, is written as an escape.
    """
    for parts in (1, 2):
        found = [redacted("/".join(str(folder).split("/")[-parts:])) for folder in folders]
        if len(set(found)) == len(found):
            return found
    seen: Counter[str] = Counter()
    numbered = []
    for name in found:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def compare(entries: Sequence[Input], by: str | None = None) -> Comparison:
    """Compare runs on the images that all of them restored, paired by key.

    Args:
        by: the measure for the images that are shown; the default is psnr, or the first that all have.

    Raises:
        JobError: they have no key, or no measure, in common; `by` is none of these; a key occurs twice.
    """
    tables = [load(entry) for entry in entries]
    good = [table.filter(pc.equal(table["status"], "ok")) for table in tables]
    common = good[0]["key"]
    for table in good[1:]:
        common = common.filter(pc.is_in(common, value_set=table["key"].combine_chunks()))
    if not len(common):
        raise JobError(
            "compare: no image is restored in all of the runs (samples are paired by key): "
            + ", ".join(
                f"{entry.label} has {first_keys(table)}" for entry, table in zip(entries, tables, strict=True)
            )
        )
    wanted = common.combine_chunks()
    aligned = [table.filter(pc.is_in(table["key"], value_set=wanted)).sort_by("key") for table in good]
    values = [
        {
            name: table[name].to_numpy()
            for name in measures_in(table.schema)
            if table[name].null_count < len(table)
        }
        for table in aligned
    ]
    names = [entry.label for entry in entries]
    having = {
        name: [label for label, of in zip(names, values, strict=True) if name in of]
        for name in dict.fromkeys(itertools.chain.from_iterable(values))
    }
    shared = [name for name, by_runs in having.items() if by_runs == names]
    measures = [name for name in shared if better(name) is not None and name != "seconds"]
    if not measures:
        raise JobError(
            "compare: the runs have no measure in common; name metrics in their jobs, or score them"
        )
    if by is None:
        by = "psnr" if "psnr" in measures else measures[0]
    if by not in shared:
        raise JobError(f"compare: --by {by}: not a measure of all runs; choose from {', '.join(shared)}")
    everything = pc.unique(pa.chunked_array([chunk for table in tables for chunk in table["key"].chunks]))
    stacked = {name: np.stack([of[name] for of in values]) for name in shared}
    edges = {name: common_edges(np.sort(counted(name, of))) for name, of in stacked.items()}
    runs = [
        standing(entry, table, aligned_table, of, len(everything), edges)
        for entry, table, aligned_table, of in zip(entries, tables, aligned, values, strict=True)
    ]
    pairs = (
        list(itertools.combinations(range(len(entries)), 2))
        if len(entries) <= ALL_PAIRS
        else [(0, i) for i in range(1, len(entries))]
    )
    found = [
        paired(name, names[i], names[j], values[i][name], values[j][name])
        for name in measures
        for i, j in pairs
        if same_degradation(entries[i], entries[j])
    ]
    baselines = baselines_of(names, aligned, values, measures)
    against = [
        paired(name, label, run, of[name], values[names.index(run)][name])
        for name in measures
        for label, (having, of) in baselines.items()
        if name in of
        for run in having
    ]
    spreads = {name: disagreement(name, stacked[name]) for name in dict.fromkeys([by, *measures])}
    keys = aligned[0]["key"].combine_chunks()
    most = [i for i in np.argsort(-spreads[by], kind="stable")[:SHOWN].tolist() if spreads[by][i] >= 0]
    first = pc.index_in(wanted[:SHOWN], value_set=keys).to_pylist()
    chosen = list(dict.fromkeys([*first, *most]))
    places = pc.index_in(keys.take(chosen), value_set=tables[0]["key"].combine_chunks()).to_pylist()
    return Comparison(
        images=len(wanted),
        runs=runs,
        baselines=[
            RunNumbers(label, "", len(wanted), 0, 0, *described(of, edges), {}, [], Cost(None, None, None))
            for label, (_, of) in baselines.items()
        ],
        ranked=ranked(entries),
        measures=measures,
        not_shared={name: by_runs for name, by_runs in having.items() if by_runs != names},
        paired=corrected(found),
        against=corrected(against),
        warnings=[*warnings(entries), *set_warnings(runs), *worse_than_nothing(against)],
        by=by,
        differing={keys[i].as_py(): dict(zip(names, stacked[by][:, i].tolist(), strict=True)) for i in most},
        shown=[
            ShownImage(
                keys[i].as_py(),
                place,
                i in most,
                {name: stacked[name][:, i].tolist() for name in spreads},
                {name: float(of[i]) for name, of in spreads.items()},
            )
            for i, place in zip(chosen, places, strict=True)
        ],
    )


def load(entry: Input) -> pa.Table:
    """Keys, status, cost and measures of all rows.

    Raises:
        JobError: it is not a table of rows, or a key occurs twice.
    """
    try:
        with parquet(entry.rows) as file:
            schema = file.schema_arrow
            beside = [name for name in BASELINE_COLUMNS if name in schema.names]
            wanted = ["key", "status", "error", *measures_in(schema), *beside]
            table = file.read([*wanted, *(name for name in ("forwards", "vjps") if name in schema.names)])
            table["key"], table["status"], table["error"]
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise JobError(f"{entry.rows} is not a table of rows: {error}") from error
    refuse_nonsense(table, entry.rows)
    if pc.count_distinct(table["key"]).as_py() != len(table):
        raise JobError(f"{entry.rows}: a key occurs twice, so images cannot be paired by it")
    return table


def first_keys(table: pa.Table) -> str:
    return ", ".join(map(repr, table["key"].slice(0, 2).to_pylist())) + (" …" if len(table) > 2 else "")


def common_edges(values: np.ndarray) -> np.ndarray:
    """Of the bins in which the runs' histograms of a measure are comparable."""
    return histogram(values)[1] if len(values) else values


def described(
    values: Mapping[str, np.ndarray], edges: Mapping[str, np.ndarray]
) -> tuple[dict[str, tuple[float | None, float | None, float | None]], dict[str, int], dict[str, Any]]:
    """Means with intervals, how many values are infinite, and histograms, by measure."""
    means, infinite, histograms = {}, {}, {}
    for name, of in values.items():
        known = counted(name, of)
        means[name], infinite[name] = average(name, known), int(np.isinf(of).sum())
        if len(known) and name in edges:
            histograms[name] = {
                "edges": edges[name].tolist(),
                "counts": np.histogram(known, edges[name])[0].tolist(),
                "quantiles": {str(q): float(np.quantile(known, q)) for q in QUANTILES},
            }
    return means, infinite, histograms


def standing(
    entry: Input,
    table: pa.Table,
    compared: pa.Table,
    values: dict[str, np.ndarray],
    everything: int,
    edges: Mapping[str, np.ndarray],
) -> RunNumbers:
    means, infinite, histograms = described(values, edges)
    forwards, vjps = (
        pc.max(compared[name]).as_py() if name in compared.schema.names else None
        for name in ("forwards", "vjps")
    )
    return RunNumbers(
        label=entry.label,
        title=entry.report.get("title", ""),
        rows=len(table),
        failed=len(table) - pc.sum(pc.equal(table["status"], "ok")).as_py(),
        absent=everything - len(table),
        measures=means,
        infinite=infinite,
        histograms=histograms,
        sets=entry.report.get("sets", {}),
        failures=failures(table),
        cost=Cost(forwards, vjps, means["seconds"][0] if "seconds" in means else None),
    )


def paired(name: str, baseline: str, other: str, before: np.ndarray, after: np.ndarray) -> Paired:
    found = difference(name, before, after)
    p = paired_p_value(pairs_of(name, before, after))
    wins = share_better(name, before, after)
    return Paired(
        name, baseline, other, found.n, found.infinite, found.value, found.low, found.high, p, None, wins
    )


def corrected(found: Sequence[Paired]) -> list[Paired]:
    """With p-values corrected for all tests of metrics; of other measures only where there is no metric."""
    asked = [one for one in found if one.measure in IMAGE] or found
    p_values = dict(zip(map(id, asked), holm([one.p for one in asked]), strict=True))
    return [replace(one, corrected=p_values.get(id(one))) for one in found]


def baselines_of(
    runs: Sequence[str],
    tables: Sequence[pa.Table],
    values: Sequence[Mapping[str, np.ndarray]],
    measures: Sequence[str],
) -> dict[str, tuple[list[str], dict[str, np.ndarray]]]:
    """By label: the runs whose measurements have this baseline, and its values in the measures that it has.

    Runs that restored the same measurements have the same, but for the last digits on another device.

    Args:
        tables, values: of the compared images, in order.
    """
    found: list[tuple[str, list[str], dict[str, np.ndarray]]] = []
    for run, table, own in zip(runs, tables, values, strict=True):
        for baseline, label in BASELINES.items():
            columns = {name: baseline_column(name, baseline) for name in measures if name in own}
            of = {
                name: table[column].to_numpy()
                for name, column in columns.items()
                if column in table.schema.names and table[column].null_count < len(table)
            }
            same = next((each for each in found if each[0] == label and same_values(each[2], of)), None)
            if same is not None:
                same[1].append(run)
            elif of:
                found.append((label, [run], of))
    often = Counter(label for label, _, _ in found)
    return {
        label if often[label] == 1 else f"{label} of {', '.join(having)}": (having, of)
        for label, having, of in found
    }


def same_values(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(
        np.allclose(one[name], other[name], rtol=1e-3, equal_nan=True) for name in one
    )


def same_degradation(one: Input, other: Input) -> bool:
    """Whether the measurements came about in the same way, as far as is known of images of others."""
    if one.run is None or other.run is None:
        return True
    return not any(field.startswith("degradation.") for field, _, _ in differing(one.run, other.run))


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


def warnings(entries: Sequence[Input]) -> list[str]:
    """Reasons why differences may not be due to the method."""
    first, *others = entries
    found = []
    if not ranked(entries):
        found.append(
            "the runs restored different degradations: there is no common ranking, and only runs of the same "
            "one have differences, wins and p-values"
        )
    if len({entry.run is None for entry in entries}) == 2 and all(
        "psnr" in entry.report.get("metrics", {}) for entry in entries
    ):
        found.append(
            "PSNR: of runs it is of restorations before rounding, of scored images of 8 bits, which lowers "
            "one of 40 dB by 0.05 dB and one of 54 dB by 1.2 dB"
        )
    if first.run is None:
        return [
            f"{first.label} is no run: whether the others restored the same measurements is not known; "
            "name a run first",
            *found,
        ]
    for entry in others:
        if entry.run is None:
            found.append(f"{entry.label} is no run: whether it restored the same measurements is not known")
            continue
        found += [
            f"{entry.label}: {field} is {given!r}, of {first.label} {expected!r}"
            for field, expected, given in differing(first.run, entry.run)
        ]
    return found


def ranked(entries: Sequence[Input]) -> bool:
    """Whether all restored the same degradation, so that one can be said to be the best."""
    return all(same_degradation(*pair) for pair in itertools.combinations(entries, 2))


def differing(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """What decides which measurements were restored and is not the same: fields, and the value of each run.

    A file is what is in it, wherever it lies, if both runs know its checksum.
    """
    first, second = problem(one.job), problem(other.job)
    sums, others = recorded(one.folder), recorded(other.folder)
    for field in sums.keys() & others.keys() & first.keys() & second.keys():
        first[field], second[field] = sums[field], others[field]
    return [
        (field, first.get(field), second.get(field))
        for field in sorted(first.keys() | second.keys())
        if not alike(first.get(field), second.get(field))
    ]


def problem(job: Job) -> dict[str, Any]:
    """The fields that decide which measurements were restored; an operator's with those left out."""
    fields = deciding(job)
    found = {k: v for k, v in fields.items() if k == "seed" or k.startswith("data.")}
    noise = {"sigma on [-1, 1]": job.degradation.gaussian, "poisson": job.degradation.poisson}
    return found | flatten({"degradation": {"operator": whole(job.degradation.operator), **noise}})


def whole(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of an operator with every parameter, and the parts of `compose` by their number."""
    parameters = signature(operators.REGISTRY[spec["name"]]).parameters
    left_out = {name: of.default for name, of in parameters.items() if of.default is not of.empty}
    listed = {name: list(of) if isinstance(of, tuple) else of for name, of in left_out.items()}
    parts = {str(number): whole(part) for number, part in enumerate(spec.get("operators", ()))}
    return listed | dict(spec) | ({"operators": parts} if parts else {})


def worse_than_nothing(against: Sequence[Paired]) -> list[str]:
    """Where restoring lost more often than it won."""
    return [
        f"{one.other}, {bare(one.measure)}: {one.baseline}, which needs no network, does better on "
        f"{100 - 100 * one.wins:.0f} % of the images"
        for one in against
        if one.wins is not None and one.wins < 0.5
    ]


def set_warnings(runs: Sequence[RunNumbers]) -> list[str]:
    """Why metrics of sets must be read with care."""
    found = []
    for name in set_names(runs):
        of_name = references(runs, name)
        if len(set(of_name.values())) > 1:
            of_each = ", ".join(f"{label} with {reference}" for label, reference in of_name.items())
            found.append(f"{title(name)} is not comparable: {of_each}")
        found += [
            f"{run.label}, {title(name)}: {warning}"
            for run in runs
            for warning in run.sets.get(name, {}).get("warnings", ())
        ]
    return found


def references(runs: Sequence[RunNumbers], name: str) -> dict[str, str]:
    """What each run's set was compared with, and the checksum of that, by run."""
    found = {}
    for run in runs:
        if name in run.sets:
            checksum = run.sets[name].get("reference_sha256")
            known = run.sets[name].get("reference", "unknown")
            found[run.label] = f"{known} ({checksum[:12]})" if checksum else known
    return found


def set_names(runs: Sequence[RunNumbers]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.sets))


def title(name: str) -> str:
    """A measure as it heads a column, with the direction in which it is better."""
    return TITLES[name] if name in TITLES else name + ARROWS[better(name)]


def in_words(count: int | None) -> str:
    return "–" if count is None else str(count)


def exactly(value: float | None) -> str:
    return "" if value is None else repr(value)


def runs_table(comparison: Comparison, exact: bool = False) -> Table:
    """A run in each row: means with intervals, metrics of sets, and cost.

    Args:
        exact: for programs: names for titles, all digits, a column for either end of an interval.
    """
    names = [*comparison.measures, *set_names(comparison.runs)]
    head = (
        [part for name in names for part in (name, f"{name}_low", f"{name}_high")]
        if exact
        else list(map(title, names))
    )
    cost = ["forwards", "vjps", "seconds"] if exact else ["forwards", "VJPs", "s per image"]
    rows = []
    for run in [*comparison.baselines, *comparison.runs]:
        row = [run.label, str(comparison.images)]
        for name in names:
            values = of_run(run, name)
            row += map(exactly, values) if exact else [with_interval(*values)]
        row += map(exactly if exact else in_words, (run.cost.forwards, run.cost.vjps))
        rows.append([*row, (exactly if exact else number)(run.cost.seconds)])
    return Table(["run", "images", *head, *cost], rows)


def of_run(run: RunNumbers, name: str) -> tuple[float | None, float | None, float | None]:
    """Value and interval of a measure, or of a metric of the set; None where it has none."""
    if name in run.measures:
        return run.measures[name]
    value, low, high = (run.sets.get(name, {}).get(part) for part in ("value", "low", "high"))
    return value, low, high


def paired_table(comparison: Comparison, exact: bool = False) -> Table:
    """A difference in each row; `exact` as of `runs_table`."""
    if exact:
        names = ["measure", "baseline", "other", "n", "infinite", "difference", "low", "high"]
        rows = [
            [
                one.measure,
                one.baseline,
                one.other,
                str(one.n),
                str(one.infinite),
                *map(exactly, (one.difference, one.low, one.high, one.p, one.corrected, one.wins)),
            ]
            for one in differences(comparison)
        ]
        return Table([*names, "p", "p_holm", "wins"], rows)
    return Table(
        ["measure", "baseline", "other", "pairs", "difference", "p", "p, Holm", "wins"],
        [
            [
                title(one.measure),
                one.baseline,
                one.other,
                str(one.n),
                with_interval(one.difference, one.low, one.high),
                *map(number, (one.p, one.corrected)),
                "–" if one.wins is None else f"{100 * one.wins:.0f} %",
            ]
            for one in differences(comparison)
        ],
    )


def differences(comparison: Comparison) -> list[Paired]:
    """Of runs from each other, and from what needs no network."""
    found = [*comparison.paired, *comparison.against]
    return sorted(found, key=lambda one: comparison.measures.index(one.measure))


def left_out(comparison: Comparison) -> list[str]:
    """In words, what was not compared, and why."""
    found = []
    for run in comparison.runs:
        reasons = [f"{run.failed} failed"] * bool(run.failed) + [f"{run.absent} are not there"] * bool(
            run.absent
        )
        if reasons:
            found.append(f"{run.label}: of {run.rows + run.absent} images, {' and '.join(reasons)}")
        infinite = {name: count for name, count in run.infinite.items() if count}
        found += [f"{run.label}: {count} values of {name} are infinite" for name, count in infinite.items()]
        found += [
            f"{run.label}: {name} is of its {of['n']} images, not of the {comparison.images} compared"
            for name, of in run.sets.items()
            if of.get("n") not in (None, comparison.images)
        ]
    found += [
        f"{bare(name)} is left out: only {', '.join(labels)} {'has' if len(labels) == 1 else 'have'} it"
        for name, labels in comparison.not_shared.items()
    ]
    sets = set_names(comparison.runs)
    if sets:
        found.append(f"{', '.join(map(bare, sets))}: metrics of a set have no paired difference")
    return found


def frontier(comparison: Comparison, narrow: bool = False) -> bytes:
    """The figure of quality against cost: PSNR, LPIPS and FID, or the first measure where there are none."""
    runs = [*comparison.runs, *comparison.baselines]
    values = {name: [of_run(run, name)[0] for run in runs] for name in [*FRONTIER, comparison.measures[0]]}
    known = [name for name in FRONTIER if any(value is not None for value in values[name])]
    qualities = [
        Quality(title(name), values[name], [None if v is None else bad(name, v) for v in values[name]])
        for name in known or comparison.measures[:1]
    ]
    costs = [run.cost for run in runs]
    return draw([run.label for run in runs], costs, qualities, narrow, comparison.ranked)


def bad(name: str, value: float) -> float:
    """Of FID, which is no measure of images, it is the value."""
    return float(badness(name, np.array([value]))[0])


def gallery(comparison: Comparison, entries: Sequence[Input]) -> list[Card]:
    """The images that are shown, with the pictures that are kept; those of the i-th run under "run{i}".

    Truth and measurement are those of the first run that kept them.
    """
    cards = {
        one.key: Card(
            key=one.key,
            place=one.place,
            measures={f"{name}_{i}": v for name, of in one.values.items() for i, v in enumerate(of) if v == v}
            | {f"{name}_spread": value for name, value in one.spreads.items()},
            why=[f"differs in {bare(comparison.by)}"] if one.differs else [],
            pictures={},
        )
        for one in comparison.shown
    }
    restored: dict[str, dict[str, bytes]] = {key: {} for key in cards}
    for i, entry in enumerate(entries):
        if entry.run is None:
            continue
        with parquet(entry.rows) as file:
            shown = pc.is_in(file.read(["key"])["key"], value_set=pa.array(cards, pa.string()))
        bases = []
        for _, row in rows_at(entry.run, np.flatnonzero(shown.to_numpy()).tolist()):
            card = cards[row["key"]]
            if row["restored"] is not None:
                restored[card.key][f"run{i}"] = row["restored"]
            if not card.pictures and row["measurement"] is not None:
                card.pictures = {KINDS[n]: row[n] for n in ("truth", "measurement") if row[n] is not None}
                bases.append(card)
        with_pseudo_inverses(entry.run.job, bases)
    for card in cards.values():
        card.pictures |= restored[card.key]
    return list(cards.values())


def orders(comparison: Comparison) -> dict[str, list[tuple[str, str]]]:
    """What the samples can be sorted by, in groups by heading: as the script reads it, and in words."""
    names = dict.fromkeys([comparison.by, *comparison.measures])
    found = {
        "": [
            *((f"{name}_spread:-1", f"where {bare(name)} differs most") for name in names),
            ("place:1", "as in the job"),
            ("failed:-1", "failures first"),
        ]
    }
    for i, run in enumerate(comparison.runs):
        found[run.label] = [
            (f"{name}_{i}:{direction}", f"{bare(name)} of {run.label}, {end} first")
            for name in names
            for direction, end in zip((1, -1), ASCENDING[better(name)], strict=True)
        ]
    return found


def write(comparison: Comparison, entries: Sequence[Input], folder: Location) -> Location:
    """Everything in a folder: compare.html, .md, .json, .csv and .tex, runs.csv and frontier.svg.

    Returns:
        compare.html, which holds the figure and the pictures and needs no other file.
    """
    make_folder(folder)
    figure = frontier(comparison)
    runs, pairs = runs_table(comparison), paired_table(comparison)
    cards = gallery(comparison, entries)
    pictures, form = fitted(cards)
    labels = {f"run{i}": run.label for i, run in enumerate(comparison.runs)}
    available = {kind for found in pictures for kind in found}
    every_kind = {**{kind: kind for kind in ("truth", "measurement", "pseudo-inverse")}, **labels}
    html = (
        environments()["report.html"]
        .get_template("compare.html.jinja")
        .render(
            c=comparison,
            reports=[entry.report for entry in entries],
            sets={
                name: set(references(comparison.runs, name).values()) for name in set_names(comparison.runs)
            },
            of_run=of_run,
            differences=differences(comparison),
            best=best(comparison),
            left_out=left_out(comparison),
            cards=list(zip(cards, pictures, strict=True)),
            form=form,
            kinds={kind: words for kind, words in every_kind.items() if kind in available},
            orders=orders(comparison),
            title=title,
            figures=[
                "data:image/svg+xml;base64," + b64encode(svg).decode()
                for svg in (figure, frontier(comparison, narrow=True))
            ],
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    )
    notes = [*comparison.warnings, *left_out(comparison)]
    lines = [*(f"{run.label}: {run.title}" for run in comparison.runs if run.title), *notes]
    listed = "".join(f"- {markdown_text(line)}\n" for line in lines)
    texts = {
        "compare.json": json.dumps(json_value(asdict(comparison)), indent=1, allow_nan=False) + "\n",
        "compare.md": "\n".join(part for part in (listed, runs.markdown(), pairs.markdown()) if part),
        "compare.csv": paired_table(comparison, exact=True).csv(),
        "runs.csv": runs_table(comparison, exact=True).csv(),
        "compare.tex": runs.latex() + "\n" + pairs.latex(),
        "compare.html": html,
    }
    for name, content in {"frontier.svg": figure, **{k: v.encode() for k, v in texts.items()}}.items():
        with publish(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "compare.html"


def best(comparison: Comparison) -> dict[str, int]:
    """Which run is the best in each measure, where that is one alone, and they can be ranked."""
    found: dict[str, int] = {}
    if not comparison.ranked:
        return found
    for name in comparison.measures:
        ranked = [
            (bad(name, value), i)
            for i, run in enumerate(comparison.runs)
            if (value := run.measures[name][0]) is not None
        ]
        least = min(ranked, default=(0.0, 0))[0]
        first = [i for value, i in ranked if value == least]
        if len(first) == 1:
            found[name] = first[0]
    return found


def json_value(value: Any) -> Any:
    """The same with "inf" and "nan" for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
