"""From committed rows to numbers.

Statistics are made from the flat table of all rows, a column at a time: 8 bytes a row, beside the keys. They
depend neither on the order of the rows nor on their split into units.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kintsugi.pipeline.analysis.failures import LISTED, Failures, reasons
from kintsugi.pipeline.analysis.intervals import group_intervals, moments
from kintsugi.pipeline.analysis.measures import (
    QUANTILES,
    Mean,
    average,
    badness,
    better,
    bounds,
    count_of,
    counted,
    difference,
    finite,
    histogram,
    limited,
    share_better,
)
from kintsugi.pipeline.analysis.rows import Tally, measures_in, write_rows
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics import IMAGE
from kintsugi.pipeline.metrics.registry import BASELINES, baseline_column
from kintsugi.samplers.base import OF_AUTOENCODER

EXTREMES = 8  # samples at either end, at most


@dataclass(frozen=True)
class Baseline(Mean):
    """What the measurements of the same samples have in a measure without a network: its mean.

    Attributes:
        undefined: values that are NaN where there should be one.
        difference: the restored less the baseline.
        improved: share of the samples in which the restored is better, ties counted half; None where there
            are none, or neither high nor low is better.
    """

    undefined: int
    difference: Mean
    improved: float | None


@dataclass(frozen=True)
class Moments:
    """Of the values of a measure that count; see `measures.counted`.

    Attributes:
        mean, low, high, deviation: with the 95 % interval of the mean; None where there are too few.
        n: how many values count.
        infinite, undefined: how many are infinite, and how many are NaN where there should be one.
    """

    mean: float | None
    low: float | None
    high: float | None
    deviation: float | None
    n: int
    infinite: int
    undefined: int


@dataclass(frozen=True)
class Distribution(Moments):
    """How one measure is distributed over the restored samples.

    Attributes:
        quantiles: of the values that count, under "0.05", "0.25", "0.5", "0.75" and "0.95".
        edges, counts: their histogram of at most 40 bins; one more edge than counts.
        worst, best: keys of at most 8 samples, the extreme first; infinite values take part. None of a
            measure that is neither better high nor low.
    """

    quantiles: dict[str, float]
    edges: list[float]
    counts: list[int]
    worst: list[str]
    best: list[str]
    baselines: dict[str, Baseline] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a run's committed rows amount to.

    Attributes:
        forwards, vjps: of the network, per sample; a mean where samples need more or fewer.
        of_autoencoder: decodes, encodes and products with Jacobians per sample, of a prior of latents.
        measures: by name; only those of which there are values.
        breakdowns: by "shard" and "label" a table of all groups, the largest first: `group`, `n`, `failed`,
            and per measure the mean of the values that count with its interval, NAME, NAME_low, NAME_high.
    """

    forwards: float
    vjps: float
    of_autoencoder: dict[str, float]
    failures: Failures
    measures: dict[str, Distribution]
    breakdowns: dict[str, pa.Table]


def summarise(run: Run, rows_file: Path) -> tuple[Tally, Summary]:
    """Aggregate a run, and write its rows without the pictures as one flat table; raises as `write_rows`."""
    tally = write_rows(run, rows_file)
    return tally, describe_rows(rows_file)


def describe_rows(rows: Path) -> Summary:
    """What is known only when all rows are there: of a flat table."""
    with pq.ParquetFile(rows, read_dictionary=["shard"]) as file:

        def column(name: str) -> pa.ChunkedArray:
            return file.read(columns=[name])[name]

        good = pc.equal(column("status"), "ok")
        ok = good.to_numpy()
        keys = column("key")
        failed = file.read(columns=["key", "shard", "error"]).filter(pc.invert(good))
        pairs = zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True)
        failures = Failures(reasons(pairs), failed.slice(0, LISTED).to_pylist())
        forwards, vjps = (count_of(column(name).to_numpy()) or 0 for name in ("forwards", "vjps"))
        there = [name for name in OF_AUTOENCODER if name in file.schema_arrow.names]
        coded = {name: count_of(column(name).to_numpy()) for name in there}
        places = pc.sort_indices(keys).to_numpy()  # so that sums do not depend on the order of the rows
        breakdowns = {by: Breakdown(column(by), ok, places) for by in ("shard", "label")}
        measures = {}
        for name in measures_in(file.schema_arrow):
            stored = column(name)
            beside = (
                {each: column(baseline_column(name, each)) for each in BASELINES} if name in IMAGE else {}
            )
            described = describe(stored, good, keys, name, beside)
            if not described.n + described.infinite + described.undefined:
                continue
            measures[name] = described
            values = np.where(ok, stored.to_numpy(), np.nan)[places]
            for breakdown in breakdowns.values():
                breakdown.add(name, values)
    tables = {by: breakdown.table() for by, breakdown in breakdowns.items()}
    of_autoencoder = {name: count for name, count in coded.items() if count is not None}
    return Summary(forwards, vjps, of_autoencoder, failures, measures, tables)


def describe(
    column: pa.ChunkedArray,
    good: pa.ChunkedArray,
    keys: pa.ChunkedArray,
    name: str,
    beside: Mapping[str, pa.ChunkedArray] = {},
) -> Distribution:
    """Describe one measure of the good samples; null where it was not asked for; `beside`: baselines."""
    values, infinite, undefined = good_values(column, good)
    ordered = np.sort(counted(name, values))
    n = len(ordered)
    mean, low, high = average(name, ordered)
    counts, edges = histogram(ordered) if n else (np.array([], int), np.array([]))
    worst, best = extremes(values, keys, name)
    return Distribution(
        mean,
        low,
        high,
        deviation=finite(moments(ordered)[1]) if n else None,
        n=n,
        infinite=infinite,
        undefined=undefined,
        quantiles=quantiles(ordered) if n else {},
        edges=edges.tolist(),
        counts=counts.tolist(),
        worst=worst,
        best=best,
        baselines={
            each: describe_baseline(name, values, other, good)
            for each, other in beside.items()
            if other.null_count < len(other)
        },
    )


def quantiles(ordered: np.ndarray) -> dict[str, float]:
    """Those of `QUANTILES` by their text."""
    found = np.quantile(ordered, QUANTILES).tolist()
    return {str(q): value for q, value in zip(QUANTILES, found, strict=True)}


def describe_baseline(
    name: str, values: np.ndarray, column: pa.ChunkedArray, good: pa.ChunkedArray
) -> Baseline:
    """Describe a baseline of the samples that are good, beside their own values."""
    others, infinite, undefined = good_values(column, good)
    known = counted(name, others)
    return Baseline(
        *average(name, known),
        len(known),
        infinite,
        undefined,
        difference=difference(name, others, values),
        improved=None if better(name) is None else share_better(name, others, values),
    )


def good_values(column: pa.ChunkedArray, good: pa.ChunkedArray) -> tuple[np.ndarray, int, int]:
    """The values, NaN where a sample is not good, and how many are infinite, and undefined of good ones."""
    values = np.where(good.to_numpy(), column.to_numpy(), np.nan)
    undefined = pc.sum(pc.and_(pc.is_nan(column), good)).as_py() or 0
    return values, int(np.isinf(values).sum()), undefined


def extremes(values: np.ndarray, keys: pa.ChunkedArray, name: str) -> tuple[list[str], list[str]]:
    """The keys of the worst and the best samples; of equal ones, the first keys."""
    known = ~np.isnan(values)
    if better(name) is None or not known.any():  # of no rows pyarrow before 26 cannot choose
        return [], []
    table = pa.table({"key": keys.filter(pa.array(known)), "bad": badness(name, values[known])})

    def first(order: str) -> list[str]:
        chosen = pc.select_k_unstable(table, EXTREMES, [("bad", order), ("key", "ascending")])
        return table["key"].take(chosen).to_pylist()

    return first("descending"), first("ascending")


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
        """How many rows each group has, (groups,)."""
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
