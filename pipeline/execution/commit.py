"""Commit: how a unit's rows come to exist, whole or not at all.

The rows are written to a temporary name in the same directory, synced and renamed; the commit record is
written last, in the same way; before both come the features that metrics of sets need. A unit is done if
and only if its record is valid, which its own digest tells, and describes the files that are there. Rows
contain nothing that differs between two executions (timings are in the record), so a worker thought dead
that wakes up and writes again writes the same bytes.
"""

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError
from kintsugi.pipeline.execution.directory import commit_file, data_file, features_file
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.registry import (
    BASELINES,
    BEGINNINGS,
    CALIBRATION,
    IMAGE,
    baseline_column,
    columns,
    samples_column,
)
from kintsugi.pipeline.metrics.scoring import LARGEST
from kintsugi.pipeline.parameters import columns_of, kind_of
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import storage_failed, whole
from kintsugi.pipeline.storage.location import Location, is_remote
from kintsugi.pipeline.storage.publish import publish, publish_bytes
from kintsugi.pipeline.storage.records import MAX_RECORD, MAX_TABLE, UNIT, Count, Digest, Number, Text
from kintsugi.samplers.base import OF_AUTOENCODER

ROW_GROUP = 1 << 28  # bytes at most of the samples in it: Parquet cannot read back lists of 2 GiB
MAX_TEXT = 1 << 20  # characters of a cell
READERS, LOCAL_READERS = 16, 4  # files that are read at once, of a remote run and of one on disks

BEFORE = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int64()),  # position in the shard, or in what data.subset leaves of it
        ("label", pa.int64()),
        ("source", pa.string()),  # format, mode and size of the file, before conversion
        ("status", pa.string()),  # "ok" or "failed"
        ("error", pa.string()),
        ("seed", pa.int64()),
        ("forwards", pa.int32()),
        ("vjps", pa.int32()),
        ("batch_size", pa.int32()),
    ]
)
AFTER = pa.schema(
    [
        ("residual", pa.float64()),  # RMS of H x̂ − y on the [-1, 1] scale
        ("spread", pa.float64()),  # RMS over the pixels of the samples' standard deviation, on [-1, 1]
        ("file", pa.string()),  # the sample's file, where the shard is a folder
        ("restored", pa.binary()),  # of measurements in restoration.format, else PNG
        ("measurement", pa.binary()),  # PNG
        ("truth", pa.binary()),  # PNG
        ("deviation", pa.binary()),  # of the samples, .npy of float16 (C, H, W) on the [-1, 1] scale
        ("samples", pa.list_(pa.binary())),  # in restoration.format
    ]
)
"""The columns of rows before and after those of metrics.

Pictures of neither 1 nor 3 channels are .npy (C, H, W), whatever the format.
"""
LATENT = pa.schema([*((name, pa.int32()) for name in OF_AUTOENCODER), ("round_trip", pa.float64())])
KINDS = {"number": pa.float64(), "text": pa.string(), "file": pa.binary()}
"""Of the columns with parameters of samples."""
PICTURES = ("restored", "measurement", "truth", "deviation", "samples")
NEEDED = ("key", "shard", "status")  # columns in which there is no null


def rows_schema(metrics: Sequence[str] = (), calibrated: bool = False) -> pa.Schema:
    """The columns of the rows of a job that names these metrics.

    Each metric of images has one, and behind all of them one for either baseline, what the measurement has
    without a network where there is a truth.

    Args:
        calibrated: as `Job.calibrated`: then there are the means of these metrics over the samples, and what
            `metrics.calibration` computes.
    """
    names = columns(metrics)
    names += [baseline_column(name, baseline) for name in names for baseline in BASELINES]
    if calibrated:
        names += [samples_column(name) for name in dict.fromkeys(metrics) if name in IMAGE]
        names += CALIBRATION
    return pa.schema([*BEFORE, *(pa.field(name, pa.float64()) for name in names), *AFTER])


def schema_of(job: Job, latents: bool = False) -> pa.Schema:
    """The columns of the rows of a job, also those of a prior of latents."""
    own = [pa.field(name, type_of(name)) for name in columns_of(job.degradation.parameters)]
    return pa.schema([*rows_schema(job.metrics, job.calibrated), *own, *(LATENT if latents else ())])


def is_picture(column: str) -> bool:
    """Whether a column of rows holds files."""
    return column in PICTURES or (column.startswith(BEGINNINGS) and kind_of(column) == "file")


ROWS = rows_schema()
"""The columns that the rows of every run have."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Files:
    """What a unit's files are: bytes and SHA-256 of its rows, and of its features, None where it has none."""

    data_bytes: Count
    data_sha256: Digest
    features_bytes: Count | None = None
    features_sha256: Digest | None = None


@dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class Commit(Files):
    """The record of a finished unit.

    Attributes:
        seconds: wall-clock time by part: read, score and encode (waiting for them), degrade, sample,
            write, total. Within sample: forward and vjp. Of other threads, beside all this: fetch (bytes
            of the shard), decode and scoring.
        sample_seconds: the sampler's time for each row, in order; 0 for failed rows.
        made_by: versions, device and host.
        notes: what the user should know of the worker since its last unit.
    """

    unit: Annotated[str, Field(pattern=rf"^{UNIT.pattern}$")]
    rows: Count
    failed: Count
    config_hash: Digest
    prior_sha256: Digest | None
    attempt: Count
    seconds: dict[Text, Number]
    sample_seconds: list[Number]
    made_by: dict[Text, Text]
    notes: tuple[Text, ...] = ()


RECORD = TypeAdapter(Commit)


def commit(
    folder: Location,
    unit: str,
    rows: list[dict[str, Any]],
    started: float,
    seconds: Mapping[str, float],
    earlier: Mapping[str, float] | None = None,
    features: pa.Table | None = None,
    schema: pa.Schema = ROWS,
    **record: Any,
) -> Commit:
    """Write a unit's features and rows, then its record.

    Args:
        started: when work on the unit began, by time.perf_counter.
        seconds: by part, to which the writing and the total are added.
        earlier: of the record that this one replaces, some of whose rows are kept.
        features: of the restored samples, `key` and a list of numbers per feature space.
        schema: of the rows.
        record: the other fields.
    """
    mark = time.perf_counter()
    if features is not None:
        length, sha256 = write_table(features_file(folder, unit), features)
        record |= {"features_bytes": length, "features_sha256": sha256}
    largest = max((sum(map(len, row["samples"] or ())) for row in rows), default=0)
    group = max(1, ROW_GROUP // largest) if largest else None
    length, sha256 = write_table(data_file(folder, unit), pa.Table.from_pylist(rows, schema), group)
    now = time.perf_counter()
    spent = {**seconds, "write": now - mark, "total": now - started}
    done = Commit(
        unit=unit,
        rows=len(rows),
        failed=sum(row["status"] == "failed" for row in rows),
        data_bytes=length,
        data_sha256=sha256,
        seconds={part: value + (earlier or {}).get(part, 0.0) for part, value in spent.items()},
        **record,
    )
    publish_bytes(commit_file(folder, unit), records.sealed(asdict(done)))
    return done


def write_table(target: Location, table: pa.Table, group: int | None = None) -> tuple[int, str]:
    """Write a table, `group` rows at most in a group of the file; returns its bytes and SHA-256."""
    with publish(target) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=group, write_page_checksum=True)
        content = temporary.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()


def read_commit(
    folder: Location, unit: str, config_hash: str, length: Callable[[Location, int], int] = records.regular
) -> Commit | None:
    """The unit's record if it is valid for this configuration and its data is there, else None.

    Args:
        length: bytes of a file, of which it may have so many at most.

    Raises:
        OSError: the storage cannot be read, which says nothing of the unit.
        JobError: one of the files is a link, no regular file or too large.
    """
    record = commit_file(folder, unit)
    try:
        data_bytes, _ = length(data_file(folder, unit), MAX_TABLE), length(record, MAX_RECORD)
        found = valid(record.read_bytes(), unit, config_hash, data_bytes)
        if found is None or found.features_bytes is None:
            return found
        return found if found.features_bytes == length(features_file(folder, unit), MAX_TABLE) else None
    except FileNotFoundError:
        return None


def valid(record: bytes, unit: str, config_hash: str, data_bytes: int) -> Commit | None:
    """The record in these bytes, if it is one of this unit, configuration and size of its data.

    The file of features is for the caller to look at.
    """
    try:
        found = records.typed(RECORD, record, unit)
    except JobError:
        return None
    if found.failed > found.rows or found.rows != len(found.sample_seconds):
        return None
    stated = found.unit, found.config_hash, found.data_bytes
    return found if stated == (unit, config_hash, data_bytes) else None


def read_rows(folder: Location, record: Commit, columns: list[str] | None = None) -> pa.Table:
    """The rows of a committed unit, all or some columns of `schema_of`; those newer than the run are null.

    Raises:
        JobError: the data file is not the one that was committed, or does not hold rows.
    """
    return looked_through(folder, [read_unit(folder, columns, record)], columns)[1]


def read_blocks(
    folder: Location, units: Iterable[Commit], columns: list[str], rows: int
) -> Iterator[tuple[list[Commit], pa.Table]]:
    """`read_rows` of committed units, in order, of as many together as have at least so many rows.

    Several are read at the same time, also while those before are used.
    """
    at_once = READERS if is_remote(folder) else LOCAL_READERS
    block, count = list[tuple[Commit, pa.Table]](), 0
    for record, table in map_ahead(partial(read_unit, folder, columns), units, at_once):
        block.append((record, table))
        count += len(table)
        if count >= rows:
            yield looked_through(folder, block, columns)
            block, count = [], 0
    if block:
        yield looked_through(folder, block, columns)


def read_unit(folder: Location, columns: list[str] | None, record: Commit) -> tuple[Commit, pa.Table]:
    """A record, and the rows of its unit, not looked through; raises as `read_rows`."""
    file = data_file(folder, record.unit)
    table = read_committed(folder, file, record.data_sha256, columns, record.rows)
    if len(table) != record.rows:
        raise JobError(
            f"{file} has {len(table)} rows, and its commit record says {record.rows}; {advice(folder)}"
        )
    return record, table


def looked_through(
    folder: Location, block: Sequence[tuple[Commit, pa.Table]], columns: list[str] | None
) -> tuple[list[Commit], pa.Table]:
    """Units, and the rows of all in one table; raises as `read_rows`."""
    units, tables = [record for record, _ in block], [table for _, table in block]
    try:  # of a column of many units in the time of one unit's
        rows = pa.concat_tables(tables, promote_options="default")
        refuse_nonsense(rows, folder, columns or ())
    except (JobError, pa.ArrowException):  # of which unit is not said, or their integers differ in size
        for record, table in block:
            refuse_nonsense(table, data_file(folder, record.unit), columns or ())
        rows = pa.concat_tables(tables, promote_options="permissive")
    refuse_other_failures(folder, rows, units)
    return units, rows if columns is None else with_all(rows, columns)


def refuse_other_failures(folder: Location, rows: pa.Table, units: Sequence[Commit]) -> None:
    """Raise a JobError if not as many rows of a unit failed as its record says."""
    if "status" not in rows.column_names:
        return
    failed = pc.equal(rows["status"], "failed").fill_null(False).to_numpy()
    ends = np.cumsum([record.rows for record in units])
    for record, of_unit in zip(units, np.split(failed, ends[:-1]), strict=True):
        if (count := int(of_unit.sum())) != record.failed:
            raise JobError(
                f"{data_file(folder, record.unit)}: {count} rows failed, and its commit record says "
                f"{record.failed}; {advice(folder)}"
            )


def with_all(table: pa.Table, columns: list[str]) -> pa.Table:
    """These columns, null where the table has none of the name."""
    for name in set(columns).difference(table.column_names):
        table = table.append_column(name, pa.nulls(len(table), type_of(name)))
    return table.select(columns)


def read_features(folder: Location, record: Commit, columns: list[str] | None = None) -> pa.Table | None:
    """The features of a committed unit, all or some columns, None if it has none; raises as `read_rows`."""
    from kintsugi.pipeline.metrics.features import refuse_others

    if record.features_sha256 is None:
        return None
    file = features_file(folder, record.unit)
    table = read_committed(folder, file, record.features_sha256, columns, record.rows)
    refuse_others(table, file)
    return table


def read_committed(
    folder: Location, file: Location, sha256: str, columns: list[str] | None, most: int
) -> pa.Table:
    """Columns of a file of at most so many rows, of which a few bytes may claim any number."""
    try:
        records.regular(file, MAX_TABLE)
        with whole(file) as source:
            if hashlib.file_digest(source, "sha256").hexdigest() != sha256:
                raise JobError(f"{file} is not the file that was committed; {advice(folder)}")
            source.seek(0)
            with pq.ParquetFile(source, page_checksum_verification=True) as table:
                names = table.schema_arrow.names
                if len(set(names)) < len(names):
                    raise JobError(f"{file}: two columns have one name")
                if (rows := table.metadata.num_rows) > most:
                    raise JobError(f"{file} has {rows:,} rows, more than the {most:,} committed")
                # In half the time of read_table; threads cost more than they save on the rows of a unit.
                return table.read(columns, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        if storage_failed(error, file):
            raise
        raise JobError(f"{file} cannot be read as Parquet: {error}") from error


def advice(folder: Location) -> str:
    """What to do about a unit that is not as it was committed."""
    return f"`kintsugi verify {folder} --repair` drops it, then run again"


def type_of(column: str) -> pa.DataType:
    """Of a column of rows; one that not every run has is of a parameter of samples, or of a metric."""
    if column.startswith(BEGINNINGS):
        return KINDS[kind_of(column)]
    known = ROWS if column in ROWS.names else LATENT
    return known.field(column).type if column in known.names else pa.float64()


def refuse_nonsense(table: pa.Table, file: Location, asked: Collection[str] = ()) -> None:
    """Raise a JobError if what was read of a file is not of the types and ranges that rows have.

    Args:
        asked: the columns that must be of rows, whatever their names.
    """
    for field in table.schema:
        column = table[field.name]
        wanted = type_of(field.name) if field.name in (*ROWS.names, *LATENT.names, *asked) else field.type
        whole = pa.types.is_integer(field.type) and pa.types.is_integer(wanted)
        if not (field.type == wanted or whole or pa.types.is_null(field.type)):
            raise JobError(f"{file}: {field.name} is a column of {field.type}, not {wanted}")
        if field.name in NEEDED and column.null_count:
            raise JobError(f"{file}: a row without {field.name}")
        if pa.types.is_floating(field.type):
            large = pc.and_(pc.is_finite(column), pc.greater(pc.abs(column), LARGEST))
            if pc.any(large).as_py():
                raise JobError(f"{file}: {field.name} has a value beyond ±{LARGEST:g}")
        if pa.types.is_string(field.type) and (pc.max(pc.binary_length(column)).as_py() or 0) > MAX_TEXT:
            raise JobError(f"{file}: {field.name} has a text of more than {MAX_TEXT:,} bytes")
    if "status" in table.column_names:
        known = pc.is_in(table["status"], value_set=pa.array(["ok", "failed"]))
        if not pc.all(known).as_py():
            raise JobError(f"{file}: status is neither ok nor failed")
        if "error" in table.column_names:
            unsaid = pc.and_(pc.equal(table["status"], "failed"), pc.is_null(table["error"]))
            if pc.any(unsaid).as_py():
                raise JobError(f"{file}: a failed row without error")
