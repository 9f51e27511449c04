"""The rows of a run without the pictures, as one flat table, and what the records of its units say."""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kintsugi.pipeline.execution.commit import Commit, is_picture, read_blocks, read_rows, schema_of
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics.registry import BEGINNINGS, is_baseline
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.records import MAX_TABLE, regular

ROW_GROUP = 1 << 16  # rows
REPEATED = ["shard", "label", "source", "status", "error", "seed", "forwards", "vjps", "batch_size"]
STATE = b"kintsugi.commits"  # in the metadata of the flat table


class Rows(Protocol):
    """All rows of a run or of results: a table, or what reads a column when it is asked for."""

    schema: pa.Schema

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, column: str) -> pa.ChunkedArray:
        """A column."""


def flat_schema(rows: pa.Schema) -> pa.Schema:
    """The columns of the flat table of a run whose rows have these."""
    kept = [field for field in rows if not is_picture(field.name)]
    return pa.schema([*kept, pa.field("seconds", pa.float64())])


def measures_in(schema: pa.Schema) -> list[str]:
    """The columns that measure something of a sample: real numbers, but baselines' and its parameters."""
    return [
        f.name
        for f in schema
        if pa.types.is_floating(f.type) and not is_baseline(f.name) and not f.name.startswith(BEGINNINGS)
    ]


def baselines_in(schema: pa.Schema) -> list[str]:
    """The columns of what the measurements have without a network."""
    return [f.name for f in schema if pa.types.is_floating(f.type) and is_baseline(f.name)]


@dataclass
class Tally:
    """What the records of committed units say, together.

    Attributes:
        units: how many there are. rows, failed: their samples.
        seconds: wall-clock time by part.
        made_by: every distinct value of each provenance field.
    """

    units: int = 0
    rows: int = 0
    failed: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    made_by: dict[str, set[str]] = field(default_factory=dict)

    def add(self, commit: Commit) -> None:
        """Count one more unit."""
        self.units += 1
        self.rows += commit.rows
        self.failed += commit.failed
        self.seconds.update(commit.seconds)
        provenance = {**commit.made_by, "prior_sha256": commit.prior_sha256 or "none"}
        for name, value in provenance.items():
            self.made_by.setdefault(name, set()).add(value)


def committed(run: Run, columns: list[str]) -> Iterator[tuple[pa.Table, Commit]]:
    """The rows of every committed unit, in order, `seconds` from its record; raises as `read_rows`."""
    stored = [c for c in columns if c != "seconds"]
    for _, commit in run.commits():
        if commit is not None:
            table = read_rows(run.folder, commit, stored)
            yield with_seconds(run, table, [commit]) if "seconds" in columns else table, commit


def with_seconds(run: Run, rows: pa.Table, commits: Sequence[Commit]) -> pa.Table:
    """The rows of these units with the sampler's time for each."""
    if run.job.is_score:  # of restored images it is not known what they took
        return rows.append_column("seconds", pa.nulls(len(rows), pa.float64()))
    known = pa.array(chain.from_iterable(commit.sample_seconds for commit in commits), pa.float64())
    return rows.append_column("seconds", pc.if_else(pc.equal(rows["status"], "ok"), known, None))


def write_rows(run: Run, file: Path) -> Tally:
    """Write all rows in one table, with the state of the run that they show; raises as `read_rows`."""
    tally, state = Tally(), hashlib.sha256()
    schema = flat_schema(schema_of(run.job, latents=True))
    stored = [name for name in schema.names if name != "seconds"]
    units = (commit for _, commit in run.commits() if commit is not None)
    # Of numbers and keys hardly any is there twice: a dictionary of them takes time and no less space.
    with pq.ParquetWriter(file, schema, use_dictionary=REPEATED, write_page_checksum=True) as writer:
        for block, rows in read_blocks(run.folder, units, stored, ROW_GROUP):
            for commit in block:
                tally.add(commit)
                state.update(mark(commit))
            writer.write_table(with_seconds(run, rows, block).select(schema.names).cast(schema))
        writer.add_key_value_metadata({STATE: state.hexdigest()})
    return tally


def mark(commit: Commit) -> bytes:
    """What a unit adds to the state of a run."""
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
