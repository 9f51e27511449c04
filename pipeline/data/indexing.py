"""The samples of shards, found by several processes where there are many of them. Loads no torch.

Run as a module, it is such a process: it reads from stdin which shards, and writes what is in them to stdout.
"""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

from kintsugi.errors import JobError
from kintsugi.pipeline.data import shards
from kintsugi.pipeline.data.shards import Place
from kintsugi.pipeline.data.tar import DamagedShard
from kintsugi.pipeline.data.units import PlanSummary
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.wanted import Wanted

PAYS = 4.0  # seconds that are left for one process, from which on others help it
PROCESSES = 8  # at most: beyond, what is done of their answers here takes longer
SENT = 1024  # samples at once
AHEAD = 1 << 20  # bytes that wait for an answer to be read

Indexed = tuple[int, Iterable[Place]]
"""A shard: its `fingerprint`, and its samples, which are found as they are asked for."""


@contextmanager
def reading(shard: Location) -> Iterator[None]:
    """Turns errors of storage into JobErrors, which the user can mend."""
    try:
        yield
    except FileNotFoundError as error:
        raise JobError(f"data.shards: no such file: {shard}") from error
    except OSError as error:
        raise JobError(f"data.shards: {shard} cannot be read: {error}") from error


def find(path: Location, salvage: bool, wanted: Wanted, summary: PlanSummary) -> tuple[int, Iterator[Place]]:
    """What is in a shard, up to its damage, if any; what is wrong goes into `summary`.

    Raises:
        JobError: it is not there, or cannot be read; also while samples are asked for.
    """
    with reading(path):
        return shards.fingerprint(path), samples_of(path, salvage, wanted, summary)


def samples_of(path: Location, salvage: bool, wanted: Wanted, summary: PlanSummary) -> Iterator[Place]:
    """See `find`."""
    note, warn = partial(summary.leave_out, path), partial(summary.warn, path)
    try:
        with reading(path):
            yield from shards.index(path, salvage, note, warn, wanted)
    except DamagedShard as damage:
        summary.damaged[str(path)] = str(damage)


def find_all(
    paths: Sequence[Location], salvage: bool, wanted: Wanted, summary: PlanSummary, apart: bool = True
) -> Generator[tuple[int, Iterator[Place]], None, None]:
    """`find` of each shard, in order; the samples of one are to be taken before the next.

    If `apart`, by other processes, once those that are left would take this one long.
    """
    started, count = time.monotonic(), processors() if apart else 1
    for done, path in enumerate(paths):
        left = len(paths) - done
        if done and left > 1 and count > 1 and (time.monotonic() - started) / done * left > PAYS:
            yield from find_apart(paths[done:], salvage, wanted, summary, min(count, left, PROCESSES))
            return
        yield find(path, salvage, wanted, summary)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_apart(
    paths: Sequence[Location], salvage: bool, wanted: Wanted, summary: PlanSummary, count: int
) -> Generator[tuple[int, Iterator[Place]], None, None]:
    """As `find_all`, by so many processes; each has every count-th shard, and waits when it is far ahead."""
    # Not by multiprocessing, which runs a user's script again that does not guard its main part.
    command = [sys.executable, "-P", "-m", "kintsugi.pipeline.data.indexing"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is for this process, which ends them
                )
            )
        for number, process in enumerate(processes):
            assert process.stdin is not None
            assert process.stdout is not None
            if hasattr(fcntl, "F_SETPIPE_SZ"):
                with suppress(OSError):  # a user has so many large ones
                    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, AHEAD)
            with suppress(BrokenPipeError), process.stdin as asked:  # of one that has ended, as is told below
                pickle.dump((paths[number::count], salvage, wanted), asked)
        for number, path in enumerate(paths):
            found = answered(path, processes[number % count])
            yield next(found), received(found, summary)
    finally:
        for process in processes:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()


def answered(path: Location, process: "subprocess.Popen[bytes]") -> Iterator[Any]:
    """What a process has to say of a shard; raises what it raised."""
    assert process.stdout is not None
    while True:
        try:
            found = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise JobError(
                f"data.shards: {path}: the process that read it has ended ({process.wait()})"
            ) from None
        if isinstance(found, Exception):
            raise found
        yield found


def received(answers: Iterator[Any], summary: PlanSummary) -> Iterator[Place]:
    """The samples of a shard; at the end what is wrong with it goes into `summary`."""
    for found in answers:
        if isinstance(found, PlanSummary):
            summary.add(found)
            return
        yield from (Place(*one) for one in found)


def answer(to: BinaryIO, paths: Sequence[Location], salvage: bool, wanted: Wanted) -> None:
    """Write of each shard its size, its samples as tuples, many at a time, and what is wrong with it."""
    for path in paths:
        its = PlanSummary([], 0, 0, {}, [])
        try:
            size, samples = find(path, salvage, wanted, its)
            pickle.dump(size, to)
            while some := list(map(tuple, islice(samples, SENT))):
                pickle.dump(some, to)
            pickle.dump(its, to)
        except JobError as error:
            pickle.dump(error, to)
            return
        to.flush()


def main() -> None:
    """Answer what is asked on stdin; without a word where nobody reads it any more."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    answer(sys.stdout.buffer, *pickle.load(sys.stdin.buffer))


if __name__ == "__main__":
    main()
