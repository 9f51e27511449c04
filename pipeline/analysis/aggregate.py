"""From committed rows to numbers.

One pass over the units writes all rows without the pictures as one flat table; statistics are made from it,
a column at a time: 8 bytes a row, beside the keys. They depend neither on the order of the rows nor on their
split into units.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kintsugi.pipeline.analysis.failures import Reason, reasons
from kintsugi.pipeline.analysis.intervals import group_intervals, mean_interval, moments
from kintsugi.pipeline.execution.commit import PICTURES, ROWS, Commit, read_rows
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics import BASELINE_COLUMNS, BASELINES, IMAGE, PERFECT, Better, baseline_column
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.records import MAX_TABLE, regular

FLAT_ROWS = pa.schema([f for f in ROWS if f.name not in PICTURES] + [pa.field("seconds", pa.float64())])
FAILURES_LISTED, EXTREMES, BINS = 50, 8, 40  # at most
ROW_GROUP = 1 << 16  # rows
REPEATED = ["shard", "label", "source", "status", "error", "seed", "forwards", "vjps", "batch_size"]
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
STATE = b"kintsugi.commits"  # in the metadata of the flat table


def measures_in(schema: pa.Schema) -> list[str]:
    """The columns that measure something of a sample: those of real numbers but for the baselines'."""
    return [f.name for f in schema if pa.types.is_floating(f.type) and f.name not in BASELINE_COLUMNS]


MEASURES = tuple(measures_in(FLAT_ROWS))


@dataclass(frozen=True)
class Difference:
    """How much more values are than others, pair by pair.

    Attributes:
        value, low, high: the mean difference and its 95 % interval; None where there are too few pairs.
        n: pairs. infinite: how many of them have an infinite value, which counts as `counted` says.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    infinite: int


@dataclass(frozen=True)
class Baseline:
    """What the measurements of the same samples have in a measure without a network.

    Attributes:
        value, low, high: the mean and its 95 % interval.
        n, infinite, undefined: as of a `Measure`.
        difference: the restored less the baseline.
        improved: share of the samples in which the restored is better, ties counted half; None where there
            are none, or neither high nor low is better.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    infinite: int
    undefined: int
    difference: Difference
    improved: float | None


@dataclass(frozen=True)
class Distribution:
    """How one measure is distributed over the restored samples.

    Attributes:
        mean, low, high, deviation: of the values that count, with the 95 % interval of the mean; None where
            there are too few.
        n: how many values count; see `counted`.
        infinite, undefined: how many are infinite, and how many are NaN where there should be one.
        quantiles: of the values that count, under "0.05", "0.25", "0.5", "0.75" and "0.95".
        edges, counts: their histogram of at most 40 bins; one more edge than counts.
        worst, best: keys of at most 8 samples, the extreme first; infinite values take part. None of a
            measure that is neither better high nor low.
    """

    mean: float | None
    low: float | None
    high: float | None
    deviation: float | None
    n: int
    infinite: int
    undefined: int
    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]
    worst: list[str]
    best: list[str]
    baselines: dict[str, Baseline] = field(default_factory=dict)


@dataclass
class Summary:
    """What a run's committed rows amount to.

    Attributes:
        planned, rows, failed: samples. units, units_done: units of work.
        seconds: wall-clock time of all units by part.
        made_by: every distinct value of each provenance field.
        measures: by name; only those of which there are values.
        breakdowns: by "shard" and "label" a table of all groups, the largest first: `group`, `n`, `failed`,
            and per measure the mean of the finite values with its interval, NAME, NAME_low and NAME_high.
    """

    planned: int
    units: int
    rows: int = 0
    failed: int = 0
    units_done: int = 0
    forwards: int = 0
    vjps: int = 0
    reasons: list[Reason] = field(default_factory=list)
    failures: list[tuple[str, str, str]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    made_by: dict[str, set[str]] = field(default_factory=dict)
    measures: dict[str, Distribution] = field(default_factory=dict)
    breakdowns: dict[str, pa.Table] = field(default_factory=dict)

    def add(self, commit: Commit) -> None:
        """Count what the record of a unit says."""
        self.units_done += 1
        self.rows += commit.rows
        self.failed += commit.failed
        self.seconds.update(commit.seconds)
        provenance = {**commit.made_by, "prior_sha256": commit.prior_sha256 or "none"}
        for name, value in provenance.items():
            self.made_by.setdefault(name, set()).add(value)


def committed(run: Run, columns: list[str]) -> Iterator[tuple[pa.Table, Commit]]:
    """The rows of every committed unit, in order, with `seconds` from the commit record if asked for.

    Raises:
        JobError: a data file is not the one that was committed.
    """
    stored = [c for c in columns if c != "seconds"]
    for _, commit in run.commits():
        if commit is None:
            continue
        table = read_rows(run.folder, commit, stored)
        if "seconds" in columns:
            seconds = pa.array(commit.sample_seconds, pa.float64())
            ok = pc.equal(table["status"], "ok")
            table = table.append_column("seconds", pc.if_else(ok, seconds, None))
        yield table, commit


def summarise(run: Run, rows_file: Path) -> Summary:
    """Aggregate a run, and write its rows without the pictures as one flat table."""
    summary = Summary(planned=run.summary.samples, units=run.summary.units)
    write_rows(run, rows_file, summary)
    describe_rows(rows_file, summary)
    return summary


def write_rows(run: Run, file: Path, summary: Summary) -> None:
    """All rows in one table, in large groups, with the state of the run that they show."""
    state = hashlib.sha256()
    waiting: list[pa.Table] = []
    rows = 0
    # Of numbers and keys hardly any is there twice: a dictionary of them takes time and no less space.
    with pq.ParquetWriter(file, FLAT_ROWS, use_dictionary=REPEATED, write_page_checksum=True) as writer:

        def flush() -> None:
            if waiting:
                writer.write_table(pa.concat_tables(waiting).select(FLAT_ROWS.names).cast(FLAT_ROWS))
                waiting.clear()

        for table, commit in committed(run, FLAT_ROWS.names):
            summary.add(commit)
            state.update(mark(commit))
            waiting.append(table)
            rows += len(table)
            if rows >= ROW_GROUP:
                flush()
                rows = 0
        flush()
        writer.add_key_value_metadata({STATE: state.hexdigest()})


def mark(commit: Commit) -> bytes:
    return f"{commit.unit} {commit.data_sha256} {commit.seconds}\n".encode()


def shows_state_of(run: Run, rows_file: Location, columns: Collection[str] = ()) -> bool:
    """Whether a flat table is there, has these columns, and holds what is committed now."""
    state = hashlib.sha256()
    for _, commit in run.commits():
        if commit is not None:
            state.update(mark(commit))
    try:
        regular(rows_file, MAX_TABLE)
        with parquet(rows_file) as file:
            if not set(file.schema_arrow.names).issuperset(columns):
                return False
            return bool((file.metadata.metadata or {}).get(STATE) == state.hexdigest().encode())
    except (FileNotFoundError, pa.ArrowException):
        return False


def describe_rows(rows: Path, summary: Summary) -> None:
    """Fill in what is known only when all rows are there."""
    with pq.ParquetFile(rows, read_dictionary=["shard"]) as file:

        def column(name: str) -> pa.ChunkedArray:
            return file.read(columns=[name])[name]

        good = pc.equal(column("status"), "ok")
        ok = good.to_numpy()
        keys = column("key")
        count_failures(file.read(columns=["key", "shard", "error"]).filter(pc.invert(good)), summary)
        summary.forwards, summary.vjps = (pc.max(column(name)).as_py() or 0 for name in ("forwards", "vjps"))
        places = pc.sort_indices(keys).to_numpy()  # so that sums do not depend on the order of the rows
        breakdowns = {by: Breakdown(column(by), ok, places) for by in ("shard", "label")}
        for name in MEASURES:
            stored = column(name)
            beside = (
                {each: column(baseline_column(name, each)) for each in BASELINES} if name in IMAGE else {}
            )
            described = describe(stored, good, keys, name, beside)
            if not described.n + described.infinite + described.undefined:
                continue
            summary.measures[name] = described
            values = np.where(ok, stored.to_numpy(), np.nan)[places]
            for breakdown in breakdowns.values():
                breakdown.add(name, values)
    summary.breakdowns = {by: breakdown.table() for by, breakdown in breakdowns.items()}


def count_failures(failed: pa.Table, summary: Summary) -> None:
    for failure in failed.slice(0, FAILURES_LISTED).to_pylist():
        summary.failures.append((failure["key"], failure["shard"], failure["error"]))
    summary.reasons = reasons(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))


def describe(
    column: pa.ChunkedArray,
    good: pa.ChunkedArray,
    keys: pa.ChunkedArray,
    name: str,
    beside: Mapping[str, pa.ChunkedArray] = {},
) -> Distribution:
    """Describe one measure of the samples that are good; null where it was not asked for.

    Args:
        beside: the columns of the baselines; all null where there is none.
    """
    values = np.where(good.to_numpy(), column.to_numpy(), np.nan)
    ordered = np.sort(counted(name, values))
    n = len(ordered)
    mean, low, high = average(name, ordered)
    counts, edges = histogram(ordered) if n else (np.array([], int), np.array([]))
    return Distribution(
        mean=mean,
        low=low,
        high=high,
        deviation=finite(moments(ordered)[1]) if n else None,
        n=n,
        infinite=int(np.isinf(values).sum()),
        undefined=pc.sum(pc.and_(pc.is_nan(column), good)).as_py() or 0,
        quantiles={str(q): float(np.quantile(ordered, q)) for q in QUANTILES} if n else {},
        edges=edges.tolist(),
        counts=counts.tolist(),
        **extremes(values, keys, name),
        baselines={
            each: baseline(name, values, other, good)
            for each, other in beside.items()
            if other.null_count < len(other)
        },
    )


def baseline(name: str, values: np.ndarray, column: pa.ChunkedArray, good: pa.ChunkedArray) -> Baseline:
    """Describe a baseline of the samples that are good, beside their own values."""
    others = np.where(good.to_numpy(), column.to_numpy(), np.nan)
    count = counted(name, others)
    value, low, high = average(name, count)
    return Baseline(
        value=value,
        low=low,
        high=high,
        n=len(count),
        infinite=int(np.isinf(others).sum()),
        undefined=pc.sum(pc.and_(pc.is_nan(column), good)).as_py() or 0,
        difference=difference(name, others, values),
        improved=None if better(name) is None else share_better(name, others, values),
    )


def limited(name: str, values: np.ndarray) -> np.ndarray:
    """The values as they count in means, differences and intervals: of a PSNR at most `PERFECT`.

    Identical images have an infinite PSNR. Without them, the best images would lower the mean.
    """
    return np.minimum(values, PERFECT) if name == "psnr" else values


def counted(name: str, values: np.ndarray) -> np.ndarray:
    """The values of which there is a mean: those that are finite once they are `limited`."""
    values = limited(name, values)
    return values[np.isfinite(values)]


def bounds(name: str) -> tuple[float, float]:
    """Least and largest value that a measure can have."""
    return IMAGE[name].range if name in IMAGE else (0.0, math.inf)


def average(name: str, values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Mean of values that count and its 95 % interval, None where there are too few.

    The samples of a batch have its time between them, all the same: to the interval a batch is one value.
    """
    if not len(values):
        return None, None, None
    mean = moments(values)[0]
    if name == "seconds":
        each, sizes = np.unique(values, return_counts=True)
        values = mean + sizes / sizes.mean() * (each - mean)  # whose mean is that of the samples
    low, high = mean_interval(values, bounds(name))
    return finite(mean), finite(low), finite(high)


def difference(name: str, before: np.ndarray, after: np.ndarray) -> Difference:
    """`after` less `before`, of the pairs that count."""
    pairs = pairs_of(name, before, after)
    least, most = bounds(name)
    low, high = map(finite, mean_interval(pairs, (least - most, most - least)))
    return Difference(
        value=finite(moments(pairs)[0]) if len(pairs) else None,
        low=low,
        high=high,
        n=len(pairs),
        infinite=int(((np.isinf(before) | np.isinf(after)) & ~(np.isnan(before) | np.isnan(after))).sum()),
    )


def pairs_of(name: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The differences that count."""
    with np.errstate(invalid="ignore"):
        found = limited(name, after) - limited(name, before)
    return found[np.isfinite(found)]


def share_better(name: str, before: np.ndarray, after: np.ndarray) -> float | None:
    """Share of the samples in which `after` is better, ties counted half; None where none has both."""
    known = ~(np.isnan(before) | np.isnan(after))
    worse, now = badness(name, before[known]), badness(name, after[known])
    return float((now < worse).mean() + (now == worse).mean() / 2) if known.any() else None


def histogram(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges by Rice's rule; values that differ by rounding only share one bin."""
    first, last = ordered[0], ordered[-1]
    alike = last - first <= 1e-9 * max(abs(first), abs(last))
    return np.histogram(ordered, 1 if alike else min(BINS, math.ceil(2 * len(ordered) ** (1 / 3))))


def better(name: str) -> Better:
    """Which values of a measure are: of residuals and seconds the lower; None where neither is."""
    if name in IMAGE:
        return IMAGE[name].better
    return "lower" if name in ("residual", "seconds") else None


def badness(name: str, values: np.ndarray) -> np.ndarray:
    """Values so that lower is better; where neither is, as they are."""
    match better(name):
        case "higher":
            return -values
        case "one":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.abs(np.log(values))
        case _:
            return values


def extremes(values: np.ndarray, keys: pa.ChunkedArray, name: str) -> dict[str, list[str]]:
    """The keys of the worst and the best samples; of equal ones, the first keys."""
    if better(name) is None:
        return {"worst": [], "best": []}
    known = ~np.isnan(values)
    table = pa.table({"key": keys.filter(pa.array(known)), "bad": badness(name, values[known])})

    def first(order: str) -> list[str]:
        chosen = pc.select_k_unstable(table, EXTREMES, [("bad", order), ("key", "ascending")])
        return table["key"].take(chosen).to_pylist()

    return {"worst": first("descending"), "best": first("ascending")}


class Breakdown:
    """Statistics of the groups of rows that have the same value in a column; rows without one are in none.

    Args:
        places: the rows in the order in which `add` gets their values.
    """

    def __init__(self, column: pa.ChunkedArray, ok: np.ndarray, places: np.ndarray):
        encoded = column.combine_chunks()
        if not pa.types.is_dictionary(encoded.type):
            encoded = encoded.dictionary_encode()
        self.names = encoded.dictionary
        self.codes = (
            encoded.indices.fill_null(len(self.names)).to_numpy().astype(np.int64)
        )  # as bincount takes them
        n, good = (self.counts(codes) for codes in (self.codes, self.codes[ok]))
        self.codes = self.codes[places]
        self.columns = {"n": pa.array(n), "failed": pa.array(n - good)}

    def counts(self, codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes, minlength=len(self.names) + 1)[:-1]

    def add(self, name: str, values: np.ndarray) -> None:
        """Describe the values of a measure that count."""
        values = limited(name, values)
        finite = np.isfinite(values)
        found = group_intervals(values[finite], self.codes[finite], len(self.names) + 1, bounds(name))
        if name == "seconds":  # of which a group has no independent values; see `average`
            found = found[0], *(np.full_like(found[0], np.nan),) * 2
        for suffix, column in zip(("", "_low", "_high"), found, strict=True):
            self.columns[name + suffix] = pa.array(column[:-1], from_pandas=True)  # NaN is null

    def table(self) -> pa.Table:
        """Largest groups first, of equal ones by their names."""
        table = pa.table({"group": self.names, **self.columns})
        table = table.sort_by([("n", "descending"), ("group", "ascending")])
        return table.set_column(0, "group", table["group"].cast(pa.string()))


def finite(value: float) -> float | None:
    """JSON has no NaN: an interval of a single value is null."""
    return value if math.isfinite(value) else None
