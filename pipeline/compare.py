"""Comparison of runs on the same images: paired differences, wins, cost, and where they differ most."""

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.aggregate import badness, better, finite, measures_in
from pipeline.frontier import Cost, Quality, draw
from pipeline.job import JobError, deciding
from pipeline.metrics import ALL, SETS
from pipeline.query import rows_file
from pipeline.report import ARROWS, TITLES, data_uri, number
from pipeline.report.gallery import rows_at, webp
from pipeline.run import Run
from pipeline.statistics import holm, mean_interval, moments, paired_p_value
from pipeline.storage import Location, at, make_folder, parquet, publish
from pipeline.tables import Table

ALL_PAIRS = 4  # runs of which every pair is compared; of more, each with the first
SHOWN = 8  # images
PICTURES = ("truth", "measurement", "restored")
FRONTIER = ("psnr", "lpips", "fid")
FORM = (512, 90)  # of pictures: pixels of the longer side at most, quality of WebP


@dataclass(frozen=True)
class Entry:
    """Rows that take part: of a run, or of images that `kintsugi score` scored (`run` is None)."""

    label: str
    folder: Location
    rows: Location
    run: Run | None
    report: dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """What one run is by itself.

    Attributes:
        rows, failed: samples that it has. absent: samples of the other runs that it has no row of.
        measures: (mean, low, high) of the finite values over the compared images, and `infinite`, how many
            are not.
        sets: metrics of the whole set as the report has them, with `n`; over all images of the run.
        cost: None where it is not known.
    """

    label: str
    title: str
    rows: int
    failed: int
    absent: int
    measures: dict[str, tuple[float | None, float | None, float | None]]
    infinite: dict[str, int]
    sets: dict[str, dict[str, Any]]
    cost: Cost


@dataclass(frozen=True)
class Paired:
    """`other` less `baseline` in one measure.

    Attributes:
        n: pairs with finite values, from which the difference, its 95 % interval and p come.
        infinite: pairs that are left out of these.
        p, corrected: of the sign-flip test; corrected for the number of tests in the whole comparison.
        wins: share of all pairs in which `other` is better, ties counted half.
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
    corrected: float
    wins: float


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    images: samples that are restored in all runs; only these are compared.
    by, differing: the images where the runs differ most in this measure, and their values by run.
    """

    images: int
    runs: list[Standing]
    measures: list[str]
    paired: list[Paired]
    warnings: list[str]
    by: str
    differing: dict[str, dict[str, float]]


def open_entries(names: Sequence[str]) -> list[Entry]:
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
        report = rows.parent / "metrics.json"
        entries.append(
            Entry(label, folder, rows, run, json.loads(report.read_text()) if report.exists() else {})
        )
    return entries


def labels(folders: Sequence[Location]) -> list[str]:
    """The folders' names; where these are the same with their parents', and numbered if these are, too."""
    for parts in (1, 2):
        found = ["/".join(str(folder).split("/")[-parts:]) for folder in folders]
        if len(set(found)) == len(found):
            return found
    seen: Counter[str] = Counter()
    numbered = []
    for name in found:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def compare(entries: Sequence[Entry], by: str | None = None) -> Comparison:
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
    keys = aligned[0]["key"]
    values = [
        {
            name: table[name].to_numpy()
            for name in measures_in(table.schema)
            if table[name].null_count < len(table)
        }
        for table in aligned
    ]
    shared = [name for name in values[0] if all(name in of for of in values)]
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
    runs = [
        standing(entry, table, aligned_table, of, len(everything))
        for entry, table, aligned_table, of in zip(entries, tables, aligned, values, strict=True)
    ]
    pairs = (
        list(itertools.combinations(range(len(entries)), 2))
        if len(entries) <= ALL_PAIRS
        else [(0, i) for i in range(1, len(entries))]
    )
    found = [
        paired(name, runs[i].label, runs[j].label, values[i][name], values[j][name])
        for name in measures
        for i, j in pairs
    ]
    corrected = holm([one.p for one in found])
    return Comparison(
        images=len(wanted),
        runs=runs,
        measures=measures,
        paired=[Paired(**{**vars(one), "corrected": p}) for one, p in zip(found, corrected, strict=True)],
        warnings=warnings(entries),
        by=by,
        differing=differing(keys, {run.label: of[by] for run, of in zip(runs, values, strict=True)}),
    )


def load(entry: Entry) -> pa.Table:
    """Keys, status, cost and measures of all rows.

    Raises:
        JobError: it is not a table of rows, or a key occurs twice.
    """
    try:
        with parquet(entry.rows) as file:
            schema = file.schema_arrow
            wanted = ["key", "status", *measures_in(schema)]
            table = file.read([*wanted, *(name for name in ("forwards", "vjps") if name in schema.names)])
            table["key"], table["status"]
    except (pa.ArrowInvalid, KeyError) as error:
        raise JobError(f"{entry.rows} is not a table of rows: {error}") from error
    if pc.count_distinct(table["key"]).as_py() != len(table):
        raise JobError(f"{entry.rows}: a key occurs twice, so images cannot be paired by it")
    return table


def first_keys(table: pa.Table) -> str:
    return ", ".join(map(repr, table["key"].slice(0, 2).to_pylist())) + (" …" if len(table) > 2 else "")


def standing(
    entry: Entry, table: pa.Table, compared: pa.Table, values: dict[str, np.ndarray], everything: int
) -> Standing:
    means, infinite = {}, {}
    for name, of in values.items():
        known = of[np.isfinite(of)]
        mean = finite(moments(known)[0]) if len(known) else None
        low, high = map(finite, mean_interval(known))
        means[name], infinite[name] = (mean, low, high), int(np.isinf(of).sum())
    forwards, vjps = (
        pc.max(compared[name]).as_py() if name in compared.schema.names else None
        for name in ("forwards", "vjps")
    )
    return Standing(
        label=entry.label,
        title=entry.report.get("title", ""),
        rows=len(table),
        failed=len(table) - pc.sum(pc.equal(table["status"], "ok")).as_py(),
        absent=everything - len(table),
        measures=means,
        infinite=infinite,
        sets=entry.report.get("sets", {}),
        cost=Cost(forwards, vjps, means["seconds"][0] if "seconds" in means else None),
    )


def paired(name: str, baseline: str, other: str, before: np.ndarray, after: np.ndarray) -> Paired:
    known = ~(np.isnan(before) | np.isnan(after))
    before, after = before[known], after[known]
    both = np.isfinite(before) & np.isfinite(after)
    differences = after[both] - before[both]
    n = len(differences)
    low, high = map(finite, mean_interval(differences))
    worse, now = badness(name, before), badness(name, after)
    wins = float((now < worse).mean() + (now == worse).mean() / 2) if len(before) else math.nan
    difference = finite(moments(differences)[0]) if n else None
    p = paired_p_value(differences)
    return Paired(name, baseline, other, n, int((~both).sum()), difference, low, high, p, p, wins)


def differing(keys: pa.ChunkedArray, values: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """The keys with the largest range of values among the runs, and these; of equal ones the first keys."""
    stacked = np.stack(list(values.values()))
    ranges = np.where(np.isfinite(stacked).all(0), np.ptp(np.nan_to_num(stacked), axis=0), -1.0)
    places = [i for i in np.argsort(-ranges, kind="stable")[:SHOWN].tolist() if ranges[i] >= 0]
    return {keys[i].as_py(): dict(zip(values, stacked[:, i].tolist(), strict=True)) for i in places}


def warnings(entries: Sequence[Entry]) -> list[str]:
    """Reasons why differences may not be due to the method."""
    first, *others = entries
    if first.run is None:
        return [
            f"{first.label} is no run: whether the others restored the same measurements is not known; "
            "name a run first"
        ]
    found = []
    expected = problem(first.run)
    for entry in others:
        if entry.run is None:
            found.append(f"{entry.label} is no run: whether it restored the same measurements is not known")
            continue
        given = problem(entry.run)
        found += [
            f"{entry.label}: {field} is {given.get(field)!r}, of {first.label} {expected.get(field)!r}"
            for field in sorted(expected.keys() | given.keys())
            if given.get(field) != expected.get(field)
        ]
    return found


def problem(run: Run) -> dict[str, Any]:
    """The fields that decide which measurements were restored."""
    fields = deciding(run.job)
    return {k: v for k, v in fields.items() if k == "seed" or k.startswith(("data.", "degradation."))}


def title(name: str) -> str:
    """A measure as it heads a column, with the direction in which it is better."""
    return TITLES[name] if name in ALL else name + ARROWS[better(name)]


def exact(value: float | None) -> str:
    return "" if value is None else repr(value)


def runs_table(comparison: Comparison, text: Callable[[float | None], str] = number) -> Table:
    """A run in each row: means with intervals, metrics of sets, and cost."""
    sets = list(dict.fromkeys(name for run in comparison.runs for name in run.sets))
    columns = ["run", "images"]
    for name in [*comparison.measures, *sets]:
        columns += [title(name), "95 % low", "95 % high"]
    rows = []
    for run in comparison.runs:
        row = [run.label, str(comparison.images)]
        for name in comparison.measures:
            row += map(text, run.measures[name])
        for name in sets:
            row += [text(run.sets.get(name, {}).get(part)) for part in ("value", "low", "high")]
        cost = run.cost
        counts = ["" if count is None else str(count) for count in (cost.forwards, cost.vjps)]
        rows.append([*row, *counts, text(cost.seconds)])
    return Table([*columns, "forwards", "VJPs", "s per image"], rows)


def paired_table(comparison: Comparison, text: Callable[[float | None], str] = number) -> Table:
    """A difference in each row."""
    columns = [
        "measure",
        "baseline",
        "other",
        "pairs",
        "difference",
        "95 % low",
        "95 % high",
        "p",
        "p, Holm",
        "wins",
    ]
    return Table(
        columns,
        [
            [
                title(one.measure),
                one.baseline,
                one.other,
                str(one.n),
                *map(text, (one.difference, one.low, one.high, one.p, one.corrected, one.wins)),
            ]
            for one in comparison.paired
        ],
    )


def left_out(comparison: Comparison) -> list[str]:
    """In words, how many images were not compared, and why."""
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
    return found


def frontier(comparison: Comparison) -> bytes:
    """The figure of quality against cost: PSNR, LPIPS and FID, or the first measure where there are none."""
    runs = comparison.runs
    qualities = []
    for name in FRONTIER:
        values = [
            run.sets.get(name, {}).get("value") if name in SETS else run.measures.get(name, (None,))[0]
            for run in runs
        ]
        if any(value is not None for value in values):
            metric = ALL[name]
            qualities.append(Quality(metric.title, metric.better == "higher", values))
    if not qualities:
        name = comparison.measures[0]
        qualities.append(
            Quality(title(name), better(name) == "higher", [run.measures[name][0] for run in runs])
        )
    return draw([run.label for run in runs], [run.cost for run in runs], qualities)


def pictures(entry: Entry, keys: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """The pictures of these samples that are kept, by key and name; large ones are reduced."""
    with parquet(entry.rows) as file:
        stored = [name for name in PICTURES if name in file.schema_arrow.names]
        found = pc.is_in(file.read(["key"])["key"], value_set=pa.array(keys, pa.string())).to_numpy()
        places = np.flatnonzero(found)
        if entry.run is None:
            rows = file.read(["key", *stored]).take(places).to_pylist() if stored else []
        else:
            rows = rows_at(entry.run, places.tolist()) if len(places) else []
    return {
        row["key"]: {name: webp(row[name], *FORM) for name in PICTURES if row.get(name) is not None}
        for row in rows
    }


def write(comparison: Comparison, entries: Sequence[Entry], folder: Location) -> Location:
    """Everything in a folder: compare.html, .md, .json, .csv and .tex, runs.csv and frontier.svg.

    Returns:
        compare.html, which holds the figure and the pictures and needs no other file.
    """
    from base64 import b64encode

    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    make_folder(folder)
    figure = frontier(comparison)
    runs, pairs = runs_table(comparison), paired_table(comparison)
    kept = {entry.label: pictures(entry, list(comparison.differing)) for entry in entries}
    environment = Environment(
        loader=PackageLoader("pipeline", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("compare.html.jinja").render(
        c=comparison,
        tables=(runs, pairs),
        left_out=left_out(comparison),
        panels={key: panels(key, kept) for key in comparison.differing},
        title=title(comparison.by),
        number=number,
        data_uri=data_uri,
        figure="data:image/svg+xml;base64," + b64encode(figure).decode(),
    )
    notes = "".join(f"- {line}\n" for line in [*comparison.warnings, *left_out(comparison)])
    texts = {
        "compare.json": json.dumps(asdict(comparison), indent=1, allow_nan=False) + "\n",
        "compare.md": "\n".join(part for part in (runs.markdown(), pairs.markdown(), notes) if part),
        "compare.csv": paired_table(comparison, exact).csv(),
        "runs.csv": runs_table(comparison, exact).csv(),
        "compare.tex": runs.latex() + "\n" + pairs.latex(),
        "compare.html": html,
    }
    for name, content in {"frontier.svg": figure, **{k: v.encode() for k, v in texts.items()}}.items():
        with publish(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "compare.html"


def panels(key: str, kept: dict[str, dict[str, dict[str, bytes]]]) -> dict[str, bytes]:
    """The pictures of a sample by what they show: truth and measurement once, then each run."""
    found: dict[str, bytes] = {}
    for name in ("truth", "measurement"):
        known = [of[key][name] for of in kept.values() if name in of.get(key, {})]
        found |= {name: known[0]} if known else {}
    return found | {label: of[key]["restored"] for label, of in kept.items() if "restored" in of.get(key, {})}
