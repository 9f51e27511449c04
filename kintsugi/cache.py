"""What a machine finds out of its files once and remembers: checksums, and whether they are intact."""

import fcntl
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path

SETTLED = 2.0  # seconds after which another change has another time, on every file system


def cache_folder() -> Path:
    """Where a machine keeps what it found out of checkpoints, and copies of remote ones.

    $KINTSUGI_CACHE, else $XDG_CACHE_HOME/kintsugi, else ~/.cache/kintsugi.

    Raises:
        OSError: the user has no home.
    """
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(os.environ.get("KINTSUGI_CACHE") or f"{caches}/kintsugi").expanduser().absolute()
    except RuntimeError as error:
        raise FileNotFoundError("no home folder: KINTSUGI_CACHE names another one for caches") from error


@contextmanager
def locked(path: Path) -> Iterator[FileIO]:
    """A file, made if need be, for one process at a time, until it ends; raises an OSError if it cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def state_of(found: os.stat_result) -> str:
    """What is another after every change of a file, once it has `SETTLED`.

    The file system is trusted that writing to a file changes its ctime, which no program can set.
    """
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino} {found.st_dev}"


def remembered(path: Path, what: str, find: Callable[[BufferedReader], str]) -> str:
    """The word that `find` makes of a file: by the first process of this machine that asks, then recorded.

    Where the cache folder cannot be written, every process reads the file.
    """
    # A record trusts the file system as `state_of`, and all who may write to the cache folder. It does not
    # see a disk decay.
    with path.open("rb") as file, ExitStack() as stack:
        key = hashlib.sha256(os.fsencode(f"{socket.gethostname()} {path.absolute()}")).hexdigest()
        try:
            record = stack.enter_context(locked(cache_folder() / "files" / f"{key}.{what}"))
            recorded = record.read().decode(errors="replace")
        except OSError:
            return find(file)
        now = os.fstat(file.fileno())
        state = state_of(now)
        settled = time.time() - now.st_ctime > SETTLED
        if known := re.fullmatch(rf"{state} (\w+)\n", recorded):
            return known[1]
        found = find(file)
        if settled:  # otherwise another change, now or later, could leave the state as it is
            with suppress(OSError):  # a full disk; what it leaves of a line is no record
                record.truncate(0)
                record.write(f"{state} {found}\n".encode())
        return found


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal; `remembered`."""
    return remembered(path, "sha256", lambda file: hashlib.file_digest(file, "sha256").hexdigest())


def checksum(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several files, of their checksums in order."""
    sums = [sha256(file) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
