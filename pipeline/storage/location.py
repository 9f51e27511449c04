"""Locations: files of this machine, and objects at s3://BUCKET/KEY and gs://BUCKET/KEY.

A location is a `pathlib.Path` or a `Remote`, which has the same methods as far as they are used here; what
neither has are the functions of `files` and `publish`. The text of a job file is made one by `at`, once.
Objects go through pyarrow.fs rather than fsspec: it comes with the library that reads and writes our
Parquet, so S3 and Google Cloud need no further package; its requests run in C++ with retries and back-off,
and leave the interpreter free. Credentials come from the environment or the machine, never from URLs;
AWS_ENDPOINT_URL names another server that speaks S3.
"""

import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from pyarrow import fs
from pydantic import AfterValidator
from typing_extensions import TypeIs

T = TypeVar("T")
SCHEMES = ("s3", "gs")
BLOCK = 4 << 20  # bytes of one request for an object that is read in order
ATTEMPTS = 6  # of one request, with growing pauses


class Stat(NamedTuple):
    """What is asked of `os.stat_result`: bytes, and the mode of a regular file."""

    st_size: int
    st_mode: int = stat.S_IFREG


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
        """The last part of the key; of a whole bucket its name."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> "Remote":
        """The prefix it lies below."""
        return Remote(self.scheme, str(PurePosixPath(self.path).parent))

    @property
    def filesystem(self) -> fs.FileSystem:
        """The client that reads and writes it, by `path`."""
        return filesystem(self.scheme, self.path.partition("/")[0])

    @property
    def info(self) -> fs.FileInfo:
        """What the store says of it, asked again before it says that there is nothing."""
        found = self.filesystem.get_file_info(self.path)
        return found if found.type != fs.FileType.NotFound else self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return bool(self.info.type != fs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether it is an object."""
        return bool(self.info.is_file)

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return bool(self.info.type == fs.FileType.Directory)

    def is_symlink(self) -> bool:
        """False: stores have no links."""
        return False

    def stat(self) -> Stat:
        """Size and kind of an object; raises a FileNotFoundError if there is none."""
        info = self.info
        if not info.is_file:
            raise FileNotFoundError(str(self))
        return Stat(info.size)

    lstat = stat

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Nothing: stores have no folders."""

    def read_bytes(self) -> bytes:
        """The whole content, in one request."""

        def read() -> bytes:
            with self.filesystem.open_input_file(self.path) as file:
                return cast(bytes, file.read())

        return asked_twice(read)

    def read_text(self) -> str:
        """The whole content, which is UTF-8."""
        return self.read_bytes().decode()

    def open(self, mode: str = "rb") -> BinaryIO:
        """For reading in any order; what is read in order comes in large requests."""
        assert mode == "rb"
        return cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, Ranges(self)), BLOCK))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object; raises a FileNotFoundError if there is none, unless `missing_ok`."""
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
    """The path, which rows and reports can name; raises a ValueError if it is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the path {path!r} is not UTF-8; rename what is not") from None
    return path


def written(text: str) -> str:
    """The text of a location as it is, since job files and their hashes hold it; raises as `at`."""
    at(text)
    return text


Written = Annotated[str, AfterValidator(written)]
"""The type of a field that names a location."""


def is_remote(location: Location) -> TypeIs[Remote]:
    """Whether it is an object, of which each takes a request: several at once pay, and there are no links."""
    return isinstance(location, Remote)


def pause(attempt: int) -> float:
    """Seconds to wait after the given failed attempt, 1, 2, …, before storage is tried again."""
    return float(min(2 ** (attempt - 1), 30))


class Ranges(io.RawIOBase):
    """An object whose every read is one request for a range of bytes."""

    def __init__(self, location: Remote):
        self.file = asked_twice(lambda: location.filesystem.open_input_file(location.path))
        self.length, self.position = self.file.size(), 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, of which nothing is asked before it is read; returns its place."""
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.length}[whence]
        self.position = origin + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Read what fits into a buffer; returns how many bytes came, 0 at the end."""
        data = asked_twice(lambda: self.file.read_at(len(buffer), self.position))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the object, too."""
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
