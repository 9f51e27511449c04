"""Shards: which files a job means, and where each sample lies in them.

A shard is an uncompressed tar, Parquet whose rows are the samples, or a folder whose files are. What is there
and is no sample is named.
"""

import glob
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedIOBase
from itertools import islice
from pathlib import PurePosixPath
from typing import NamedTuple, cast

from kintsugi.errors import JobError
from kintsugi.pipeline.data.members import Member
from kintsugi.pipeline.data.names import (
    FIRST_SUFFIXES,
    NAMES,
    SUFFIXES,
    Note,
    accompanies,
    hidden,
    ignore,
    key_in,
    key_of,
    lacks,
    suffix_of,
    wanted_as,
    why_none,
    with_member,
)
from kintsugi.pipeline.data.parquet import is_parquet, opened
from kintsugi.pipeline.data.tar import MAX_PADDING, DamagedShard, Tar
from kintsugi.pipeline.storage.files import anchored, lies_in, matches, walk
from kintsugi.pipeline.storage.location import Location, at, is_remote
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted

SHA256SUMS = "SHA256SUMS"
MAX_SHARDS = 1_000_000
MAX_SUMS = 1 << 28  # bytes of SHA256SUMS
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")


class Place(NamedTuple):
    """The members of one key, adjacent in the tar: bytes offset … end; in Parquet, rows; else place and file.

    links: of members that are links: the name, and where what it leads to begins and how long it is.
    pair: of a restored image whose key is part of its name; else None.
    """

    key: str
    offset: int
    end: int
    file: str | None = None
    links: tuple[tuple[str, int, int], ...] = ()
    pair: "Pair | None" = None


@dataclass(frozen=True)
class Pair:
    """A restored image, by the key that its own name has, and where its truth is."""

    name: str
    shard: str
    truth: Place


@contextmanager
def called(field: str) -> Iterator[None]:
    """Errors of shards begin with the field that names them, where that is another one than data.shards."""
    try:
        yield
    except JobError as error:
        raise JobError(str(error).replace("data.shards: ", f"{field}: ", 1)) from error


def expand(patterns: str | list[str]) -> list[Location]:
    """The shards that brace ranges and globs stand for, in order.

    Raises:
        JobError: a pattern that matches nothing or what is no file, or a shard named twice.
    """
    found: list[Location] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in without_braces(pattern):
            try:
                matched = matches(name) if glob.has_magic(name) else [at(name)]
            except ValueError as error:
                raise JobError(f"data.shards: {error}") from error
            if not matched:
                raise JobError(f"data.shards: no such file: {name}")
            for one in matched:
                # Of remote ones planning tells.
                if not is_remote(one) and not (one.is_file() or one.is_dir()):
                    what = "neither a file nor a folder" if one.exists() else "no such file"
                    raise JobError(f"data.shards: {what}: {one}")
            found += matched
    if len(set(found)) < len(found):
        twice = next(shard for shard in found if found.count(shard) > 1)
        raise JobError(f"data.shards: {twice} is named twice")
    return found


def without_braces(pattern: str) -> list[str]:
    """The names and globs that a pattern stands for, from the root.

    Raises:
        JobError: braces that are not closed, too many names, or a URL that is refused.
    """
    from braceexpand import braceexpand

    try:
        # Where an alternative may be a whole path or URL, no folder is common to all.
        whole = "://" in pattern or pattern.startswith("{")
        folder, rest = (None, pattern) if whole else anchored(pattern)
        # A range is a list in memory before the first of its names comes.
        large = any(abs(int(a) - int(b)) >= MAX_SHARDS for a, b in RANGE.findall(rest))
        names = [] if large else list(islice(braceexpand(rest), MAX_SHARDS + 1))
        if large or len(names) > MAX_SHARDS:
            raise JobError(f"data.shards: {pattern!r} stands for more than {MAX_SHARDS:,} shards")
        return [str(at(name if folder is None else folder / name)) for name in names]
    except (ValueError, RecursionError) as error:
        raise JobError(f"data.shards: {pattern!r}: {error}") from error


def from_root(patterns: str | list[str]) -> str | list[str]:
    """Patterns of the same shards, whatever the current folder is; raises as `without_braces`."""
    rooted: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "://" in pattern:
            rooted.append(pattern)
        elif pattern.startswith("{"):
            rooted += without_braces(pattern)
        else:
            folder, rest = anchored(pattern)
            rooted.append(str(folder / rest))
    return rooted[0] if isinstance(patterns, str) and len(rooted) == 1 else rooted


def fingerprint(shard: Location, names: int = NAMES) -> int:
    """What tells that a shard has changed: the bytes of a file, the number of a folder's samples.

    Raises:
        FileNotFoundError: there is no such shard. OSError: a folder in it cannot be listed.
    """
    if shard.is_dir():
        return len(samples_of(shard, names=names))
    return shard.stat().st_size


def samples_of(
    folder: Location, suffixes: Collection[str] = SUFFIXES, note: Note = ignore, names: int = NAMES
) -> list[str]:
    """The files in a folder that are samples, in order; `note` is told of all others.

    Raises:
        OSError: a folder in it that is not hidden cannot be listed.
    """

    def unlisted(error: OSError) -> None:
        name = os.path.relpath(error.filename, str(folder))
        if not hidden(name):
            raise error
        note(f"{name}/", "hidden")

    found = []
    for name in walk(folder, unlisted):
        if names == 1:
            shown = not (name.endswith("/") or PurePosixPath(name).name.startswith("."))
            why = None if shown and suffix_of(name) in FIRST_SUFFIXES else "not read"
        else:
            why = why_none(name, suffixes)
        if why is None:
            found.append(name)
        else:
            note(name, why)
    return found


def wanted_of(folder: Location, wanted: Wanted, note: Note) -> list[str]:
    """The files in a folder that are the images of samples, by what is wanted of these, in order.

    `note` is told of files that belong to no sample; raises as `samples_of`.
    """
    others: dict[str, str] = {}
    found = samples_of(folder, note=others.__setitem__)
    roles = {name: role for name in (*found, *others) if (role := wanted_as(name, wanted))}
    groups: dict[str, list[str]] = {}
    for name in found:
        if name not in roles or roles[name][1] == wanted.member:
            start, slash, file = name.rpartition("/")
            groups.setdefault(start + slash + file.partition(".")[0], []).append(name)
    images = [
        name
        for group in groups.values()
        for name in (group if wanted.member is None else with_member(group, wanted))
    ]
    keys = {key_in(name, wanted) for name in images}
    for name in sorted({*found, *others}.difference(images)):
        beside = name in roles and roles[name][0] in keys
        if not beside and (wanted.member is None or not accompanies(name, keys)):
            note(name, others.get(name, lacks(wanted)) if name not in roles else lacks(wanted))
    return sorted(images)


def stays_inside(name: str) -> bool:
    """Whether a name is that of one file below the folder it stands for, by this name only."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name


def why_unsafe(folder: Location, name: str) -> str | None:
    """Why a name in a folder is not that of one of its files, if so: it may come from somebody else's tar."""
    if not stays_inside(name):  # object stores have such names
        return "its name is not that of one file in the folder"
    if is_remote(folder):
        return None
    file = folder / name
    if file.is_symlink() and not lies_in(file, folder):
        return "a link that leads out of the folder"
    if file.is_symlink() and not file.exists():
        return "a link that leads nowhere"
    if file.exists() and not file.is_file():  # a pipe would be waited for without end
        return "not a regular file"
    return None


def index(
    shard: Location,
    salvage: bool = False,
    note: Note = ignore,
    warn: Callable[[str], None] = lambda what: None,
    wanted: Wanted = IMAGE_ONLY,
) -> Iterator[Place]:
    """The samples of a shard in order, without reading their contents; `note` is told what is no sample.

    A file has the same key in a folder and in a tar of it. Memory does not grow with a tar without links;
    with Parquet it does by the names of one file.

    Args:
        salvage: go on behind damage, where there are members.
        warn: called with what may be damage. wanted: which files of a sample are read.

    Raises:
        JobError: Parquet without images, or of which files beside the image are wanted.
        DamagedShard: after the last sample of which anything is left, which may be incomplete.
    """
    if shard.is_dir():
        names = wanted_of(shard, wanted, note) if any(wanted) else samples_of(shard, note=note)
        for place, name in enumerate(names):
            yield Place(key_in(name, wanted), place, place + 1, name)
        return
    if is_parquet(shard):
        if any(wanted):
            asked = wanted.member or wanted.beside[0]
            raise JobError(
                f"data.shards: {shard} is Parquet, whose rows have no member {asked}; use a tar or a folder"
            )
        with opened(shard) as table:
            rows = table.rows()
            if table.other is not None:
                note("label", f"a column of {table.other}; classes are integers")
        for place, row in enumerate(rows):
            yield Place(key_of(row.name), place, place + 1)
        return
    with shard.open("rb") as file:
        tar = Tar(file, shard.stat().st_size, salvage=salvage, note=note, wanted=wanted)
        for group in tar.samples():
            first, last = group[0], group[-1]
            links = [(one.name, one.data, one.size) for one in group if one.link and one.lost is None]
            yield Place(first.key, first.offset, min(last.end, tar.size), None, tuple(links))
        if tar.padding > MAX_PADDING:
            warn(f"{tar.padding:,} bytes of zeros at its end: is it a download that has not ended?")


def checked_key(shard: Location, key: str) -> str:
    """The key; raises a JobError if it is not UTF-8."""
    try:
        key.encode()
    except UnicodeEncodeError:
        raise JobError(f"data.shards: {shard}: the member name {key!r} is not UTF-8") from None
    return key


def scattered(shard: Location, keys: Collection[str]) -> list[list[str]]:
    """The members of each sample of a tar that would be one if they were adjacent."""
    found: dict[str, list[Member]] = {}
    with shard.open("rb") as file, suppress(DamagedShard):
        for group in Tar(file, shard.stat().st_size, salvage=True).samples():
            if group[0].key in keys:
                found.setdefault(group[0].key, []).extend(group)
    return [
        [one.name for one in members]
        for members in found.values()
        if len({one.suffix for one in members}) == len(members)
        and sum(one.suffix in SUFFIXES for one in members) == 1
    ]


def stated_checksums(folder: Location) -> dict[str, str]:
    """SHA-256 by file name, from a folder's SHA256SUMS, the format of `sha256sum`; {} where there is none.

    Raises:
        JobError: the file is not of that format.
    """
    listing = folder / SHA256SUMS
    if not listing.is_file():
        return {}
    stated: dict[str, str] = {}
    if listing.stat().st_size > MAX_SUMS:
        raise JobError(f"data.shards: {listing} is larger than {MAX_SUMS:,} bytes; set data.checksums=ignore")
    text = listing.read_bytes().decode(errors="replace")  # bytes that are no text make a line that is refused
    # Not by splitlines: names may have separators of Unicode in them.
    lines = text.rstrip("\r\n").split("\n") if text.strip() else []
    for number, line in enumerate((line.rstrip("\r") for line in lines), 1):
        found = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(.+)", line)
        if found is None:
            raise JobError(
                f"data.shards: {listing}, line {number}: expected `SHA256  NAME`, as sha256sum writes it; "
                "mend it, or set data.checksums=ignore"
            )
        stated[found[2]] = found[1]
    return stated


def checksum(shard: Location) -> str:
    """SHA-256 of a file, hexadecimal."""
    with shard.open("rb") as file:
        return hashlib.file_digest(cast(BufferedIOBase, file), "sha256").hexdigest()
