"""The plan: the job's samples divided into units of work, written once and followed ever after."""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commit import publish
from pipeline.job import Data, JobError
from pipeline.shards import DamagedShard, Sample, index

SUMMARY = "kintsugi.summary"  # key of the plan file's metadata
GROUP = 64  # units per row group: how much of the plan is in memory at a time

SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("shard", pa.string()),
        ("shard_bytes", pa.int64()),
        ("first", pa.int64()),
        ("start", pa.int64()),
        ("samples", pa.int64()),
        ("offset", pa.int64()),
        ("end", pa.int64()),
        ("keys", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Unit:
    """A range of samples of one shard, restored and committed as one.

    Attributes:
        unit: its name, a function of the shard's position and `start` alone.
        first: position of its first sample in the job; start: in the shard.
        offset, end: the bytes of the shard that hold its samples.
    """

    unit: str
    shard: str
    shard_bytes: int
    first: int
    start: int
    samples: int
    offset: int
    end: int


@dataclass(frozen=True)
class PlanSummary:
    """What a plan holds: its shards, of which `damaged` says what is wrong, and `empty` hold nothing."""

    shards: list[str]
    units: int
    samples: int
    damaged: dict[str, str]
    empty: list[str]


def make_plan(
    data: Data,
    paths: list[Path],
    unit_size: int,
    target: Path,
    on_unit: Callable[[Unit], None] = lambda unit: None,
) -> PlanSummary:
    """Index the shards and write the plan to `target`; memory grows by 8 bytes a sample.

    Raises:
        JobError: damaged shards (unless salvaged), a key that occurs twice, or no samples at all.
    """
    damaged: dict[str, str] = {}
    empty: list[str] = []
    hashes = array("Q")
    units = samples = 0
    with publish(target) as temporary:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            found = divide(paths, unit_size, data.limit, damaged, empty)
            while group := list(islice(found, GROUP)):
                rows = [{**asdict(unit), "keys": keys} for unit, keys in group]
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
                for unit, keys in group:
                    hashes.extend(key_hash(key) for key in keys)
                    units, samples = units + 1, samples + len(keys)
                    on_unit(unit)
            summary = PlanSummary([str(path) for path in paths], units, samples, damaged, empty)
            writer.add_key_value_metadata({SUMMARY: json.dumps(asdict(summary))})
        if damaged and data.damaged == "refuse":
            listed = "\n  ".join(f"{shard}: {what}" for shard, what in damaged.items())
            raise JobError(
                "data.shards: damaged; fetch them again, or set data.damaged=salvage to restore what is "
                f"readable in them:\n  {listed}"
            )
        if samples == 0:
            raise JobError(f"data.shards: no samples in {', '.join(str(p) for p in paths)}")
        refuse_duplicates(temporary, np.frombuffer(hashes, np.uint64))
    return summary


def divide(
    paths: list[Path], unit_size: int, limit: int | None, damaged: dict[str, str], empty: list[str]
) -> Iterator[tuple[Unit, list[str]]]:
    """Units and their keys in order; what is wrong with shards goes into `damaged` and `empty`."""
    first = 0
    for number, path in enumerate(paths):
        size, start = path.stat().st_size, 0
        samples = islice(readable(path, damaged), None if limit is None else limit - first)
        while batch := list(islice(samples, unit_size)):
            unit = Unit(
                unit=f"{number:05d}-{start:07d}",
                shard=str(path),
                shard_bytes=size,
                first=first,
                start=start,
                samples=len(batch),
                offset=batch[0].offset,
                end=batch[-1].end,
            )
            yield unit, [checked_key(path, sample.key) for sample in batch]
            start, first = start + len(batch), first + len(batch)
        if start == 0 and first != limit and str(path) not in damaged:
            empty.append(str(path))


def readable(path: Path, damaged: dict[str, str]) -> Iterator[Sample]:
    try:
        yield from index(path)
    except DamagedShard as damage:
        damaged[str(path)] = str(damage)
    except OSError as error:
        raise JobError(f"data.shards: {path} cannot be read: {error}") from error


def checked_key(path: Path, key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise JobError(f"data.shards: {path}: the member name {key!r} is not UTF-8") from None
    return key


def key_hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def refuse_duplicates(plan: Path, hashes: np.ndarray) -> None:
    """Raise a JobError that names keys occurring more than once, and where."""
    values, counts = np.unique(hashes, return_counts=True)
    suspects = set(values[counts > 1].tolist())
    if not suspects:
        return
    places: dict[str, list[str]] = {}
    for batch in pq.ParquetFile(plan).iter_batches(GROUP, columns=["shard", "keys"]):
        for row in batch.to_pylist():
            for key in row["keys"]:
                if key_hash(key) in suspects:
                    places.setdefault(key, []).append(row["shard"])
    twice = {key: found for key, found in places.items() if len(found) > 1}
    if twice:  # else: two keys with the same 64-bit hash, which is no fault
        listed = "\n  ".join(f"{key!r} in {', '.join(found)}" for key, found in list(twice.items())[:10])
        raise JobError(
            f"data.shards: {len(twice)} keys occur more than once (noise and rows belong to keys); "
            f"rename them, for instance with `kintsugi shard`:\n  {listed}"
        )


def read_summary(plan: Path) -> PlanSummary:
    return PlanSummary(**json.loads(pq.read_metadata(plan).metadata[SUMMARY.encode()]))


def read_units(plan: Path) -> Iterator[Unit]:
    """The units in order, without their keys."""
    columns = [field.name for field in fields(Unit)]
    for batch in pq.ParquetFile(plan).iter_batches(GROUP, columns=columns):
        yield from (Unit(**row) for row in batch.to_pylist())


def read_keys(plan: Path, unit: str) -> list[str]:
    """The keys of one unit in order."""
    table = pq.read_table(plan, columns=["keys"], filters=[("unit", "==", unit)])
    keys: list[str] = table["keys"][0].as_py()
    return keys


def changed_shards(plan: Path) -> list[str]:
    """Shards whose file is gone or has another size than when the plan was made."""
    sizes = {unit.shard: unit.shard_bytes for unit in read_units(plan)}
    return [s for s, size in sizes.items() if not Path(s).is_file() or Path(s).stat().st_size != size]
