"""The rows of what is compared, of which a column at a time is in memory: what runs share, and baselines."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.report.stored import table_of
from kintsugi.pipeline.analysis.rows import Rows, baselines_in, measures_in
from kintsugi.pipeline.execution.commit import refuse_nonsense
from kintsugi.pipeline.metrics.registry import BASELINES, baseline_column
from kintsugi.pipeline.storage.files import parquet
from kintsugi.samplers.base import COUNTS

NEEDED = ("key", "status", "error")  # columns
PART = 1 << 17  # keys that are looked up in each other at once
SAMPLED = 1 << 12  # keys by which all are divided into such parts


class Columns:
    """The rows of an open file."""

    def __init__(self, file: pq.ParquetFile):
        self.file, self.schema = file, file.schema_arrow

    def __len__(self) -> int:
        return int(self.file.metadata.num_rows)

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        return self.file.read([column])[column]


@dataclass(frozen=True)
class Shared:
    """What the runs have in common.

    Attributes:
        labels: of the runs. rows: all of each. samples: how many there are in any of them.
        where: by run, the places of the images that all restored among its rows, sorted by key, (images,).
        having: by measure, the runs that have it.
    """

    labels: list[str]
    rows: Sequence[Rows]
    samples: int
    where: list[np.ndarray]
    having: dict[str, list[int]]

    def __len__(self) -> int:
        return len(self.where[0])

    @property
    def names(self) -> list[str]:
        """The measures that all runs have."""
        return [name for name, runs in self.having.items() if len(runs) == len(self.labels)]

    @property
    def first(self) -> list[int]:
        """The images in the order of the first run."""
        found: list[int] = np.argsort(self.where[0]).tolist()
        return found

    def measures(self, run: int) -> list[str]:
        """Those that a run has, in its order."""
        return [name for name in measures_in(self.rows[run].schema) if run in self.having.get(name, ())]

    def keys(self, images: Sequence[int]) -> list[str]:
        """Of some of the images."""
        found: list[str] = self.rows[0]["key"].take(self.where[0][images]).to_pylist()
        return found

    def values(self, run: int, column: str) -> np.ndarray:
        """The values of the images in a run, (images,), NaN where there is none."""
        values: np.ndarray = self.rows[run][column].to_numpy()
        return values[self.where[run]]

    def known(self, run: int, columns: Mapping[str, str]) -> list[str]:
        """The names of those columns that a run has, and of which some image has a value."""
        there = set(self.rows[run].schema.names)
        return [name for name, column in columns.items() if column in there and self.has(run, column)]

    def has(self, run: int, column: str) -> bool:
        """Whether any of the images has a value in a column that is there."""
        valid: np.ndarray = pc.is_valid(self.rows[run][column]).to_numpy()
        return bool(valid[self.where[run]].any())


def load(one: Input) -> pa.Table:
    """As `opened`, in memory."""
    with opened(one) as rows:
        return pa.table({name: rows[name] for name in columns_of(rows.schema)})


@contextmanager
def opened(one: Input) -> Iterator[Rows]:
    """All rows: keys, status, cost, measures and those of the baselines.

    Raises:
        JobError: it is not a table of rows, or a key occurs twice.
    """
    if one.rows is None:
        yield table_of(one.report)
        return
    with ExitStack() as stack:
        try:
            # Open until the end: a report that is written meanwhile may have other rows.
            rows = Columns(stack.enter_context(parquet(one.rows)))
            refuse_nonsense(pa.table({name: rows[name] for name in NEEDED}), one.rows)
            for name in columns_of(rows.schema):
                refuse_nonsense(pa.table({name: rows[name]}), one.rows)
            unique = are_unique(rows["key"])
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise JobError(f"{one.rows} is not a table of rows: {error}") from error
        if not unique:
            raise JobError(f"{one.rows}: a key occurs twice, so images cannot be paired by it")
        yield rows


def columns_of(schema: pa.Schema) -> list[str]:
    """Of rows, the columns that are compared."""
    cost = [name for name in COUNTS if name in schema.names]
    return [*NEEDED, *measures_in(schema), *baselines_in(schema), *cost]


def find_shared(inputs: Sequence[Input], rows: Sequence[Rows]) -> Shared:
    """What the runs have in common; raises a JobError if no image is restored in all."""
    keys = [each["key"] for each in rows]
    good = [pc.equal(each["status"], "ok") for each in rows]
    where: list[list[np.ndarray]] = [[] for _ in rows]
    samples = 0
    for places in in_parts(keys):
        parts = [of.take(at) for of, at in zip(keys, places, strict=True)]
        samples += len(pa.chunked_array([chunk for part in parts for chunk in part.chunks]).unique())
        restored = [part.filter(of.take(at)) for part, of, at in zip(parts, good, places, strict=True)]
        common = restored[0].combine_chunks()
        for others in restored[1:]:
            common = common.filter(pc.is_in(common, value_set=others.combine_chunks()))
        common = common.take(pc.sort_indices(common))
        for found, part, at in zip(where, parts, places, strict=True):
            found.append(at[pc.index_in(common, value_set=part.combine_chunks()).to_numpy()])
    if not any(map(len, where[0])):
        raise JobError(
            "compare: no image is restored in all of the runs (samples are paired by key): "
            + ", ".join(f"{one.label} has {first_keys(each)}" for one, each in zip(inputs, rows, strict=True))
        )
    shared = Shared([one.label for one in inputs], rows, samples, list(map(np.concatenate, where)), {})
    for run, each in enumerate(rows):
        for name in shared.known(run, {name: name for name in measures_in(each.schema)}):
            shared.having.setdefault(name, []).append(run)
    return shared


def in_parts(keys: Sequence[pa.ChunkedArray]) -> Iterator[list[np.ndarray]]:
    """Places of keys in each of several columns, a range of keys after the other, in order.

    What is looked up in a range takes memory for the range alone.
    """
    step = max(1, len(keys[0]) // SAMPLED)
    sample = keys[0].take(np.arange(0, len(keys[0]), step))
    sample = sample.take(pc.sort_indices(sample))
    count = max(1, sum(map(len, keys)) // PART)
    ends = [sample[len(sample) * part // count] for part in range(1, count)]
    for low, high in pairwise([None, *ends, None]):
        inside = [np.ones(len(of), bool) for of in keys]
        for mask, of in zip(inside, keys, strict=True):
            if low is not None:
                mask &= pc.greater_equal(of, low).to_numpy()
            if high is not None:
                mask &= pc.less(of, high).to_numpy()
        yield list(map(np.flatnonzero, inside))


def are_unique(keys: pa.ChunkedArray) -> bool:
    """Whether none occurs twice."""
    return all(pc.count_distinct(keys.take(places)).as_py() == len(places) for (places,) in in_parts([keys]))


def first_keys(rows: Rows) -> str:
    """The first two, for a message."""
    return ", ".join(map(repr, rows["key"].slice(0, 2).to_pylist())) + (" …" if len(rows) > 2 else "")


@dataclass(frozen=True)
class Without:
    """What the same measurements give without a network.

    Attributes:
        kind: of `BASELINES`. runs: whose measurements have it, of which the first one's values are it.
        names: the measures that it has.
    """

    label: str
    kind: str
    runs: list[int]
    names: list[str]

    def values(self, shared: Shared, name: str, run: int | None = None) -> np.ndarray:
        """Of the images in a measure, (images,)."""
        return shared.values(self.runs[0] if run is None else run, baseline_column(name, self.kind))


def find_baselines(shared: Shared, measures: Sequence[str]) -> list[Without]:
    """What the measurements of the runs give without a network.

    Runs that restored the same measurements have the same, but for the last digits on another device.
    """
    found: list[Without] = []
    for run in range(len(shared.rows)):
        for kind, label in BASELINES.items():
            names = shared.known(run, {name: baseline_column(name, kind) for name in measures})
            of_kind = (each for each in found if each.kind == kind and each.names == names)
            same = next((each for each in of_kind if same_values(shared, each, run)), None)
            if same is not None:
                same.runs.append(run)
            elif names:
                found.append(Without(label, kind, [run], names))
    often = Counter(each.label for each in found)
    return [
        each
        if often[each.label] == 1
        else replace(each, label=f"{each.label} of {', '.join(shared.labels[i] for i in each.runs)}")
        for each in found
    ]


def same_values(shared: Shared, one: Without, run: int) -> bool:
    """Whether a run has these values, but for rounding."""
    return all(
        np.allclose(one.values(shared, name), one.values(shared, name, run), rtol=1e-3, equal_nan=True)
        for name in one.names
    )
