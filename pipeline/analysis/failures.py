"""Why samples failed: the reasons by count, with one sample each."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from kintsugi.errors import JobError
from kintsugi.pipeline.execution.commit import refuse_nonsense
from kintsugi.pipeline.execution.directory import data_file
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.records import MAX_TABLE, regular

LISTED = 50  # failures of a run, at most
UNITS = 200  # with failures, of which `failed_of` reads the rows
OF_SAMPLE = re.compile(r"'[^']*'|\"[^\"]*\"|\d+(?:[.,]\d+)*")
"""What differs between errors of one kind: names and numbers."""


@dataclass(frozen=True)
class Reason:
    """How many samples failed for a reason; the error is that of `key`, the first of them by name."""

    count: int
    error: str
    key: str


@dataclass(frozen=True)
class Failures:
    """The failed samples of a run."""

    reasons: list[Reason]  # all of them, the most frequent first
    first: list[dict[str, str]]  # `key`, `shard` and `error` of the first samples


def reasons(failed: Iterable[tuple[str, str]]) -> list[Reason]:
    """The reasons for pairs of keys and errors, the most frequent first.

    Errors that differ in nothing but numbers and quoted names are one reason.
    """
    first: dict[str, tuple[str, str]] = {}
    counts: Counter[str] = Counter()
    for key, error in failed:
        kind = OF_SAMPLE.sub("…", error)
        first[kind] = min(first.get(kind, (key, error)), (key, error))
        counts[kind] += 1
    found = [Reason(counts[kind], error, key) for kind, (key, error) in first.items()]
    return sorted(found, key=lambda reason: (-reason.count, reason.key))


def failed_of(run: Run) -> Iterator[tuple[str, str]]:
    """Keys and errors that failed in the first units with failures; raises a JobError for a bad file."""
    for unit in islice(run.with_failures(), UNITS):
        file = data_file(run.folder, unit.unit)
        try:
            regular(file, MAX_TABLE)
            with parquet(file) as rows:
                table = rows.read(columns=["key", "status", "error"])
            refuse_nonsense(table, file)
        except (OSError, pa.ArrowException) as error:
            raise JobError(f"{file} cannot be read: {error}; see `kintsugi verify {run.folder}`") from error
        failed = table.filter(pc.equal(table["status"], "failed"))
        yield from zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True)
