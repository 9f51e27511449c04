"""Commit: how a unit's rows come to exist, whole or not at all.

The rows are written to a temporary name in the same directory, synced and renamed; the commit record
is written last, in the same way. A unit is done if and only if its record is valid and describes
the file that is there. Rows contain nothing that differs between two executions (timings are in the
record), so a worker thought dead that wakes up and writes again writes the same bytes.
"""

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int64()),  # position in the shard
        ("label", pa.int64()),
        ("source", pa.string()),  # format, mode and size of the file, before conversion
        ("status", pa.string()),  # "ok" or "failed"
        ("error", pa.string()),
        ("seed", pa.int64()),
        ("forwards", pa.int32()),
        ("vjps", pa.int32()),
        ("batch_size", pa.int32()),
        ("psnr", pa.float64()),
        ("ssim", pa.float64()),
        ("ms_ssim", pa.float64()),
        ("lpips", pa.float64()),
        ("residual", pa.float64()),  # RMS of H x̂ − y on the [-1, 1] scale
        ("restored", pa.binary()),  # PNG
        ("measurement", pa.binary()),
        ("truth", pa.binary()),
    ]
)
PICTURES = ("restored", "measurement", "truth")


@dataclass(frozen=True)
class Commit:
    """The record of a finished unit.

    Attributes:
        data_bytes, data_sha256: of data/UNIT.parquet.
        seconds: wall-clock time by part: read and encode (waiting for them), degrade, sample, score,
            write, total.
        sample_seconds: the sampler's time for each row, in order; 0 for failed rows.
        made_by: versions, device and host.
        notes: what the user should know of the worker since its last unit.
    """

    unit: str
    rows: int
    failed: int
    data_bytes: int
    data_sha256: str
    config_hash: str
    prior_sha256: str | None
    attempt: int
    seconds: dict[str, float]
    sample_seconds: list[float]
    made_by: dict[str, str]
    notes: tuple[str, ...] = ()


def error_text(error: Exception) -> str:
    """An exception for the `error` column, without addresses in memory: rows must not differ."""
    return f"{type(error).__name__}: {re.sub(r' at 0x[0-9a-f]+', '', str(error))}"


@contextmanager
def publish(target: Path, *, first: bool = False) -> Iterator[Path]:
    """A temporary path that becomes `target` at the end of the block, atomically and durably.

    first: unless somebody else's has become it in the meantime.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if first:
            try:
                os.link(temporary, target)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                if not target.exists():
                    os.replace(temporary, target)
        else:
            os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def data_file(run: Path, unit: str) -> Path:
    return run / "data" / f"{unit}.parquet"


def commit_file(run: Path, unit: str) -> Path:
    return run / "commits" / f"{unit}.json"


def commit(
    run: Path,
    unit: str,
    rows: list[dict[str, Any]],
    started: float,
    seconds: dict[str, float],
    **record: Any,
) -> Commit:
    """Write a unit's rows, then its record.

    Args:
        started: when work on the unit began, by time.perf_counter.
        seconds: by part, to which the writing and the total are added; record: the other fields.
    """
    mark = time.perf_counter()
    with publish(data_file(run, unit)) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, ROWS), temporary, compression="zstd")
        content = temporary.read_bytes()
    now = time.perf_counter()
    done = Commit(
        unit=unit,
        rows=len(rows),
        failed=sum(row["status"] == "failed" for row in rows),
        data_bytes=len(content),
        data_sha256=hashlib.sha256(content).hexdigest(),
        seconds={**seconds, "write": now - mark, "total": now - started},
        **record,
    )
    with publish(commit_file(run, unit)) as temporary:
        temporary.write_text(json.dumps(asdict(done), indent=1))
    return done


def read_commit(run: Path, unit: str, config_hash: str) -> Commit | None:
    """The unit's record if it is valid for this configuration and its data is there, else None."""
    try:
        record = Commit(**json.loads(commit_file(run, unit).read_text()))
        size = data_file(run, unit).stat().st_size
    except (OSError, ValueError, TypeError):
        return None
    return record if record.config_hash == config_hash and size == record.data_bytes else None
