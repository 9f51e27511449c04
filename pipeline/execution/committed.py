"""Which units of a run are committed: all of them from one listing, and what is known of one read once."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter

from kintsugi.ahead import map_ahead
from kintsugi.cache import SETTLED, cache_folder, state_of
from kintsugi.errors import JobError
from kintsugi.pipeline.execution.commit import READERS, Commit, read_commit
from kintsugi.pipeline.execution.directory import COMMITS, DATA, FEATURES, SUFFIXES
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import file_sizes, file_stats
from kintsugi.pipeline.storage.location import Location, is_remote
from kintsugi.pipeline.storage.publish import publish_bytes

FEWEST = 1000  # committed units of which it is remembered what their records say

T = TypeVar("T")
Remembered = tuple[str, int, int]
"""Of a unit: its `Listing.state`, and its counts."""
MEMORY = TypeAdapter(dict[str, Remembered])


@dataclass(frozen=True)
class Counts:
    """How many rows a committed unit has, and how many of them failed."""

    rows: int
    failed: int


class Listing:
    """What is in the folders of a run, in which links are not."""

    def __init__(self, folder: Location):
        self.folder, self.made = folder, time.time()
        self.records = dict(file_stats(folder / COMMITS, links=False))
        self.sizes = {name: file_sizes(folder / name, links=False) for name in (DATA, FEATURES)}
        self.sizes[COMMITS] = {name: found.st_size for name, found in self.records.items()}

    def length(self, file: Location, most: int) -> int:
        """Bytes of a file; raises a FileNotFoundError where there is none of at most so many."""
        found = self.sizes[file.parent.name].get(file.name, most + 1)
        if found > most:
            raise FileNotFoundError(str(file))
        return found

    def commit(self, unit: str, config_hash: str) -> Commit | None:
        """As `read_commit`."""
        if f"{unit}{SUFFIXES[COMMITS]}" not in self.records:
            return None
        return read_commit(self.folder, unit, config_hash, self.length)

    def state(self, unit: str) -> str | None:
        """What changes with anything on which it depends whether a unit is committed.

        None where that is not known: of an object, of which the store says too little, and of a record that
        is so new that another one could have the same times.
        """
        found = self.records.get(f"{unit}{SUFFIXES[COMMITS]}")
        if not isinstance(found, os.stat_result) or self.made - found.st_ctime <= SETTLED:
            return None
        data, features = (self.sizes[name].get(f"{unit}{SUFFIXES[name]}") for name in (DATA, FEATURES))
        return f"{state_of(found)} {data} {features}"


def read_commits(
    folder: Location, units: Iterable[T], config_hash: str, name: Callable[[T], str] = str
) -> Iterator[tuple[T, Commit | None]]:
    """`read_commit` of many units, in order, from a listing of the run's folders.

    name: of a unit.
    """
    listing = Listing(folder)

    def read(unit: T) -> tuple[T, Commit | None]:
        return unit, listing.commit(name(unit), config_hash)

    yield from map_ahead(read, units, READERS) if is_remote(folder) else map(read, units)


def read_counts(
    folder: Location, units: Iterable[T], config_hash: str, name: Callable[[T], str] = str
) -> Iterator[tuple[T, Counts | None]]:
    """As `read_commits`, of each record its counts: no record is read again that this machine has read.

    That the machine remembers, of many units, in its cache folder, once all have been asked for.
    """
    if is_remote(folder):
        for unit, commit in read_commits(folder, units, config_hash, name):
            yield unit, counts_of(commit)
        return
    listing, before = Listing(folder), recall(folder, config_hash)
    now: dict[str, Remembered] = {}
    counts: Counts | None
    for unit in units:
        named = name(unit)
        state, known = listing.state(named), before.get(named)
        if known is not None and known[0] == state:
            counts, now[named] = Counts(*known[1:]), known
        elif (counts := counts_of(listing.commit(named, config_hash))) is not None and state is not None:
            now[named] = state, counts.rows, counts.failed
        yield unit, counts
    if len(now) >= FEWEST and now != before:
        remember(folder, config_hash, now)


def counts_of(commit: Commit | None) -> Counts | None:
    """Those of a record, if there is one."""
    return None if commit is None else Counts(commit.rows, commit.failed)


def memory_file(folder: Path, config_hash: str) -> Path:
    """Where a machine remembers the counts of a run; raises an OSError if it has no place for that."""
    what = f"{socket.gethostname()} {folder} {config_hash} {version('kintsugi')}"
    return cache_folder() / "runs" / f"{sha256(os.fsencode(what)).hexdigest()}.json"


def recall(folder: Path, config_hash: str) -> dict[str, Remembered]:
    """What is remembered of a run, if anything."""
    try:
        file = memory_file(folder, config_hash)
        return records.typed(MEMORY, file.read_bytes(), file)
    except (OSError, JobError):
        return {}


def remember(folder: Path, config_hash: str, counts: dict[str, Remembered]) -> None:
    """Remember it, where the cache folder can be written."""
    with suppress(OSError):
        file = memory_file(folder, config_hash)
        file.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(file, json.dumps(counts).encode())


def forget(folder: Location, config_hash: str) -> None:
    """Have the records of a run read again: one is not what it was, though no time of its file says so."""
    if not is_remote(folder):
        with suppress(OSError):
            memory_file(folder, config_hash).unlink()
