"""Files by their names: patterns, listings, and files that are read as a whole or as Parquet."""

import glob
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from kintsugi.pipeline.storage.location import Location, Remote, Stat, asked_twice, at
from kintsugi.pipeline.storage.publish import temporary_name

SMALL = 1 << 22  # bytes of a file that is read in one go
MAGIC = re.compile(r"[*?\[{]")  # of globs and braces


def lexists(location: Location) -> bool:
    """Whether there is anything of this name, be it a link to nothing."""
    return location.is_symlink() or location.exists()


def lies_in(location: Location, folder: Location) -> bool:
    """Whether a location is the folder, or below it, once links are followed."""
    if isinstance(location, Path) and isinstance(folder, Path):
        return Path(os.path.realpath(location)).is_relative_to(os.path.realpath(folder))
    return f"{location}/".startswith(f"{folder}/")


def storage_failed(error: Exception, location: Location) -> bool:
    """Whether an error of reading a file is the storage's, and not one of what the file holds.

    Parquet's own errors are an OSError, too, but have no number; those of object stores have none either.
    """
    return isinstance(error, OSError) and (error.errno is not None or isinstance(location, Remote))


def file_sizes(folder: Location, links: bool = True) -> dict[str, int]:
    """Bytes of every file in a folder, by name, without what is being written; {} where there is no folder.

    links: whether links to files count.
    """
    return {name: found.st_size for name, found in file_stats(folder, links)}


def file_stats(folder: Location, links: bool = True) -> Iterator[tuple[str, os.stat_result | Stat]]:
    """Name and status of the same files."""
    if isinstance(folder, Remote):
        yield from ((found.name, Stat(length)) for found, length in folder.listing())
        return
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=links) and not temporary_name(entry.name):
                with suppress(FileNotFoundError):  # somebody has removed it
                    yield entry.name, entry.stat()


def refuse(error: OSError) -> None:
    """Raise it: what a folder holds must be known."""
    raise error


def walk(folder: Location, on_error: Callable[[OSError], None] = refuse) -> list[str]:
    """The names of all files below a folder, relative to it, in order.

    Links to folders are not followed, and have a slash at the end; `on_error` is told of unlisted folders.
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
    """Whether each part of a name fits its pattern; * stays within a part."""
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


@contextmanager
def whole(location: Location) -> Iterator[io.BufferedIOBase]:
    """A file that is read as a whole, perhaps twice; what is small, or an object, comes in one request."""
    if isinstance(location, Path) and location.stat().st_size > SMALL:
        with location.open("rb") as file:
            yield file
    else:  # where Parquet reads without asking the interpreter
        yield cast(io.BufferedIOBase, pa.BufferReader(location.read_bytes()))


@contextmanager
def parquet(
    location: Location, buffer: int = 0, footer: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened for reading what is asked of it; checksums of its pages are compared.

    buffer: bytes of a column that are read at once; 0: all of a group. footer: as it was read before.
    """
    opened = partial(pq.ParquetFile, page_checksum_verification=True, buffer_size=buffer, metadata=footer)
    if isinstance(location, Path):
        with opened(location) as file:
            yield file
    else:
        source = asked_twice(lambda: location.filesystem.open_input_file(location.path))
        with source, asked_twice(lambda: opened(source)) as file:
            yield file


def dataset(location: Location) -> Any:
    """A Parquet file for queries, of which is read what they ask for; checksums of its pages are compared."""
    import pyarrow.dataset as ds  # which takes a while, and queries alone need it

    pages = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    checked = ds.ParquetFileFormat(default_fragment_scan_options=pages)
    if isinstance(location, Path):
        return ds.dataset(location, format=checked)
    return ds.dataset(location.path, filesystem=location.filesystem, format=checked)
