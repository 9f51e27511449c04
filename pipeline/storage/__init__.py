"""Storage: files of this machine, and objects at s3://BUCKET/KEY and gs://BUCKET/KEY.

A location is a `pathlib.Path` or a `Remote`, which has the same methods as far as they are used here.
Objects go through pyarrow.fs rather than fsspec: it comes with the library that reads and writes our
Parquet, so S3 and Google Cloud need no further package; its requests run in C++ with retries and back-off,
and leave the interpreter free. Credentials come from the environment or the machine, never from URLs;
AWS_ENDPOINT_URL names another server that speaks S3.
"""

import glob
import hashlib
import io
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, TypeVar, cast
from urllib.parse import urlsplit

import pyarrow.parquet as pq
from pyarrow import fs

T = TypeVar("T")
SCHEMES = ("s3", "gs")
BLOCK = 4 << 20  # bytes of one request for an object that is read in order
ATTEMPTS = 6  # of one request, with growing pauses
MAGIC = re.compile(r"[*?\[{]")  # of globs and braces
TEMPORARY = re.compile(r"\.([0-9a-f]{8})-([0-9]+)-[0-9a-f]{16}\.tmp")
"""Host and process of who is writing it. Without the target's name, which may be as long as names can be."""
ABANDONED = 3600.0  # seconds without change, after which a temporary file of another host is removed


@dataclass(frozen=True, order=True)
class Remote:
    """An object, or a prefix that is used as a folder: `path` is BUCKET/KEY."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.scheme, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> "Remote":
        return Remote(self.scheme, str(PurePosixPath(self.path).parent))

    @property
    def filesystem(self) -> fs.FileSystem:
        return filesystem(self.scheme, self.path.partition("/")[0])

    @property
    def info(self) -> fs.FileInfo:
        found = self.filesystem.get_file_info(self.path)
        return found if found.type != fs.FileType.NotFound else self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return bool(self.info.type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        return bool(self.info.is_file)

    def is_dir(self) -> bool:
        return bool(self.info.type == fs.FileType.Directory)

    def read_bytes(self) -> bytes:
        def read() -> bytes:
            with self.filesystem.open_input_file(self.path) as file:
                return cast(bytes, file.read())

        return asked_twice(read)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading in any order; what is read in order comes in large requests."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, Ranges(self)), BLOCK))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def listing(self, *, recursive: bool = False) -> Iterator[tuple["Remote", int]]:
        """The objects below this prefix, with their sizes, in order of their names."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        for info in sorted(self.filesystem.get_file_info(selector), key=lambda info: info.path):
            if info.is_file:
                yield Remote(self.scheme, info.path), info.size


Location = Path | Remote


class Ranges(io.RawIOBase):
    """An object whose every read is one request for a range of bytes."""

    def __init__(self, location: Remote):
        self.file = asked_twice(lambda: location.filesystem.open_input_file(location.path))
        self.length, self.position = self.file.size(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = origin + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        data = asked_twice(lambda: self.file.read_at(len(buffer), self.position))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


def asked_twice(read: Callable[[], T]) -> T:
    """What `read` returns. A store that says once that an object is not there may be wrong for a moment."""
    try:
        return read()
    except FileNotFoundError:
        return read()


@cache
def filesystem(scheme: str, bucket: str) -> fs.FileSystem:
    """The client for a bucket: one per process."""
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(minutes=1))
    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", ""))
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and not endpoint.netloc:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or None,
        connect_timeout=5,
        request_timeout=60,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        allow_delayed_open=True,  # a small object is then one request
    )


def at(text: str | os.PathLike[str]) -> Location:
    """The location that a path or URL names; paths from the root, without `..`, ~ expanded.

    Raises:
        ValueError: an unknown scheme, a path that is not UTF-8, or a URL with something secret in it; the
            message does not repeat it.
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if re.match(r"(s3|gs):/[^/]", text):
        raise ValueError("a URL has two slashes: s3://BUCKET/KEY or gs://BUCKET/KEY")
    if "\0" in text:
        raise ValueError("a path with a zero byte in it")
    if not separator:
        return Path(in_utf8(os.path.abspath(os.path.expanduser(text))))
    if any(mark in rest.partition("/")[0] for mark in "@:") or "?" in rest or "#" in rest:
        raise ValueError(
            "a URL with credentials or a query in it is refused, since it would be stored with the run; give "
            "SCHEME://BUCKET/KEY and put credentials into the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if scheme not in SCHEMES:
        raise ValueError(f"no storage {scheme}://; give a path, s3://BUCKET/KEY or gs://BUCKET/KEY")
    if not rest.partition("/")[0]:
        raise ValueError(f"{scheme}:// names no bucket")
    return Remote(scheme, rest.strip("/"))


def in_utf8(path: str) -> str:
    """The path, which rows and reports can name.

    Raises:
        ValueError: it holds bytes that are no UTF-8.
    """
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the path {path!r} is not UTF-8; rename what is not") from None
    return path


def make_folder(folder: Location) -> None:
    """The folder and those it lies in; object stores have none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)


def there(location: Location) -> bool:
    """Whether there is anything of this name, be it a link to nothing."""
    return os.path.lexists(location) if isinstance(location, Path) else location.exists()


def size(location: Location) -> int:
    """Bytes of a file.

    Raises:
        FileNotFoundError: there is none.
    """
    if isinstance(location, Path):
        return location.stat().st_size
    info = location.info
    if not info.is_file:
        raise FileNotFoundError(str(location))
    return cast(int, info.size)


def sizes(folder: Location, links: bool = True) -> dict[str, int]:
    """Bytes of every file in a folder, by name, without what is being written; {} where there is no folder.

    links: whether links to files count.
    """
    if isinstance(folder, Remote):
        return {found.name: length for found, length in folder.listing()}
    try:
        with os.scandir(folder) as entries:
            return {
                e.name: e.stat().st_size
                for e in entries
                if e.is_file(follow_symlinks=links) and not temporary_name(e.name)
            }
    except FileNotFoundError:
        return {}


def refuse(error: OSError) -> None:
    raise error


def walk(folder: Location, on_error: Callable[[OSError], None] = refuse) -> list[str]:
    """The names of all files below a folder, relative to it, in order.

    Links to folders are not followed, and have a slash at the end.

    Args:
        on_error: called for a folder that cannot be listed.
    """
    if isinstance(folder, Remote):
        found = (remote.path for remote, _ in folder.listing(recursive=True))
        return sorted(path.removeprefix(f"{folder.path}/") for path in found)
    names: list[str] = []
    for root, folders, files in os.walk(folder, onerror=on_error):
        below = "" if root == str(folder) else Path(root).relative_to(folder).as_posix() + "/"
        names += [below + name for name in files]
        names += [f"{below}{name}/" for name in folders if os.path.islink(os.path.join(root, name))]
    return sorted(names)


def anchored(pattern: str) -> tuple[Path, str]:
    """A pattern of paths as the folder that it begins with, from the root, and the rest; "" for a plain path.

    What is there by its very name stands for itself, such as a folder named `set [1]`.
    """
    start, rest = "", os.path.expanduser(pattern)
    while rest:
        part, slash, after = rest.partition("/")
        if MAGIC.search(part) and not os.path.exists(start + part):
            break
        start, rest = start + part + slash, after
    return Path(os.path.abspath(start)), rest


def matches(pattern: str) -> list[Location]:
    """The file of this name; without one, the files that it stands for with *, ? and [], in order."""
    location = at(pattern)
    if isinstance(location, Path):
        folder, rest = anchored(pattern)
        if not rest:
            return [folder]
        return [at(folder / found) for found in sorted(glob.glob(rest, root_dir=folder))]
    if location.exists():
        return [location]
    parts = PurePosixPath(location.path).parts
    plain = list(takewhile(lambda part: not glob.has_magic(part), parts))
    base = Remote(location.scheme, "/".join(plain))
    listing = base.listing(recursive=len(parts) > len(plain) + 1)
    return [found for found, _ in listing if fits(PurePosixPath(found.path).parts, parts)]


def fits(parts: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


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


def upload(source: Path, target: Remote) -> None:
    """One PUT, or for large files a multipart upload; the object appears when it is complete."""
    with source.open("rb") as file:
        stream = target.filesystem.open_output_stream(target.path)
        shutil.copyfileobj(file, stream, BLOCK)
        stream.close()  # not by `with`, which would complete a broken upload


def pause(attempt: int) -> float:
    """Seconds to wait after the given failed attempt, 1, 2, …, before storage is tried again."""
    return float(min(2 ** (attempt - 1), 30))


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


@contextmanager
def whole(location: Location) -> Iterator[io.BufferedIOBase]:
    """A file that is read as a whole, perhaps twice; an object comes in one request."""
    if isinstance(location, Path):
        with location.open("rb") as file:
            yield file
    else:
        yield io.BytesIO(location.read_bytes())


@contextmanager
def parquet(location: Location) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened for reading what is asked of it; checksums of its pages are compared."""
    opened = partial(pq.ParquetFile, page_checksum_verification=True)
    if isinstance(location, Path):
        with opened(location) as file:
            yield file
    else:
        source = asked_twice(lambda: location.filesystem.open_input_file(location.path))
        with source, asked_twice(lambda: opened(source)) as file:
            yield file
