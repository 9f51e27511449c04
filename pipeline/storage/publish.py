"""Publish: files and objects appear whole or not at all; what killed writers left behind is removed."""

import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from kintsugi.pipeline.storage.location import BLOCK, Location, Remote

TEMPORARY = re.compile(r"\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{16}\.tmp")
"""Host and process of who is writing it. Without the target's name, which may be as long as names can be."""
ABANDONED = 3600.0  # seconds without change, after which a temporary file of another host is removed


def temporary_name(name: str) -> bool:
    """Whether `publish` writes to files of such names."""
    return TEMPORARY.fullmatch(name) is not None


@contextmanager
def publish(target: Location, *, first: bool = False) -> Iterator[Path]:
    """A temporary path that becomes `target` at the end of the block, whole or not at all, durably.

    A file is written beside its target, synced and renamed; an object is written to a temporary file here
    and uploaded.

    first: unless somebody else's has become it in the meantime.
    """
    if isinstance(target, Remote):
        with tempfile.TemporaryDirectory(prefix="kintsugi-") as folder:
            temporary = Path(folder) / "object"
            yield temporary
            if not (first and target.exists()):
                upload(temporary, target)
        return
    # Not its parents: where a mount was lost, they would be made on the disk beneath.
    target.parent.mkdir(exist_ok=True)
    temporary = target.parent / f".{this_host()}-{os.getpid()}-{uuid.uuid4().hex[:16]}.tmp"
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
        folder_handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder_handle)
        finally:
            os.close(folder_handle)
    finally:
        temporary.unlink(missing_ok=True)


def publish_bytes(target: Location, content: bytes, *, first: bool = False) -> None:
    """Publish a file with this content; see `publish`."""
    with publish(target, first=first) as temporary:
        temporary.write_bytes(content)


def upload(source: Path, target: Remote) -> None:
    """One PUT, or for large files a multipart upload; the object appears when it is complete."""
    with source.open("rb") as file:
        stream = target.filesystem.open_output_stream(target.path)
        shutil.copyfileobj(file, stream, BLOCK)
        stream.close()  # not by `with`, which would complete a broken upload


def clear_temporaries(folder: Location) -> None:
    """Remove what killed writers left behind; what somebody is writing stays."""
    if isinstance(folder, Remote):
        return
    for temporary in folder.glob("**/.*.tmp"):
        if (found := TEMPORARY.fullmatch(temporary.name)) is None:
            continue
        with suppress(FileNotFoundError):
            if found[1] == this_host():
                abandoned = not alive(int(found[2]))
            else:
                abandoned = time.time() - temporary.stat().st_mtime > ABANDONED
            if abandoned:
                temporary.unlink()


@cache
def this_host() -> str:
    """Eight digits that stand for this machine's name."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def alive(process: int) -> bool:
    """Whether a process other than this one is there."""
    if process == os.getpid():  # which clears when it writes nothing
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
