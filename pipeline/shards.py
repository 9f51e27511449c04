"""Shards: which files a job means, and where each sample lies in them.

A shard is an uncompressed tar, or a folder whose files are the samples. `tarfile` and `webdataset` read a
tar that was cut at a member boundary, or inside a header, without an error and with fewer samples. The
index here notices: the last member must end inside the file, and two blocks of zeros must follow it.
"""

import glob
import hashlib
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pipeline import storage
from pipeline.errors import JobError
from pipeline.storage import Location

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER = (
    1 << 14
)  # bytes of all headers of one member: long names and PAX records, which take tarfile long
SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's rule for metadata members
# fmt: off
SUFFIXES = (
    "png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm", "npy",
    "jfif", "jpe", "pgm", "gif", "avif", "heic",
)
# fmt: on
SHA256SUMS = "SHA256SUMS"
MAX_SHARDS = 1_000_000
MAX_SUMS = 1 << 28  # bytes of SHA256SUMS
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
"""What files begin with that are taken for tars."""


@dataclass(frozen=True)
class Sample:
    """The members of one key, adjacent in the tar: bytes offset … end; in a folder, its place and file."""

    key: str
    offset: int
    end: int
    file: str | None = None


class DamagedShard(Exception):
    """The shard ends early or is not a tar; the message says where."""


def expand(patterns: str | list[str]) -> list[Location]:
    """The shards that brace ranges and globs stand for, in order.

    Raises:
        JobError: a pattern that matches nothing or what is no file, or a shard named twice.
    """
    found: list[Location] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in without_braces(pattern):
            matched = storage.matches(name) if glob.has_magic(name) else [storage.at(name)]
            if not matched:
                raise JobError(f"data.shards: no such file: {name}")
            for one in matched:
                # Of remote ones planning tells.
                if isinstance(one, Path) and not (one.is_file() or one.is_dir()):
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
        folder, rest = (None, pattern) if whole else storage.anchored(pattern)
        # A range is a list in memory before the first of its names comes.
        large = any(abs(int(a) - int(b)) >= MAX_SHARDS for a, b in RANGE.findall(rest))
        names = [] if large else list(islice(braceexpand(rest), MAX_SHARDS + 1))
        if large or len(names) > MAX_SHARDS:
            raise JobError(f"data.shards: {pattern!r} stands for more than {MAX_SHARDS:,} shards")
        return [str(storage.at(name if folder is None else folder / name)) for name in names]
    except (ValueError, RecursionError) as error:
        raise JobError(f"data.shards: {pattern!r}: {error}") from error


def from_root(patterns: str | list[str]) -> str | list[str]:
    """Patterns of the same shards, whatever the current folder is.

    Raises:
        JobError: as `without_braces`.
    """
    rooted: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if "://" in pattern:
            rooted.append(pattern)
        elif pattern.startswith("{"):
            rooted += without_braces(pattern)
        else:
            folder, rest = storage.anchored(pattern)
            rooted.append(str(folder / rest))
    return rooted[0] if isinstance(patterns, str) and len(rooted) == 1 else rooted


def measure(shard: Location) -> int:
    """What tells that a shard has changed: the bytes of a tar, the number of a folder's samples.

    Raises:
        FileNotFoundError: there is no such shard.
    """
    if shard.is_dir():
        return len(samples_of(shard))
    return storage.size(shard)


def samples_of(folder: Location) -> list[str]:
    """The files in a folder that are samples, in order."""
    return [name for name in storage.walk(folder) if counts(name, SUFFIXES)]


def counts(name: str, suffixes: Collection[str]) -> bool:
    """Whether a file counts, by its suffix. Hidden ones do not: macOS puts a file `._NAME` beside NAME."""
    path = PurePosixPath(name)
    return path.suffix.lower()[1:] in suffixes and not path.name.startswith(".")


def key_of(name: str) -> str:
    """The path without its suffix; webdataset ends a key at the first dot, so other dots are replaced."""
    path = PurePosixPath(name)
    if path.suffix.lower()[1:] in SUFFIXES:
        path = path.with_suffix("")
    return str(path).replace(".", "_")


def index(shard: Location) -> Iterator[Sample]:
    """The samples of a shard in order, without reading their contents.

    A file in a folder has the key that `kintsugi shard` would give it. Memory does not grow with a tar.

    Raises:
        DamagedShard: after the last sample of which anything is left, which may be incomplete.
    """
    if shard.is_dir():
        for place, name in enumerate(samples_of(shard)):
            yield Sample(key_of(name), place, place + 1, name)
        return
    with shard.open("rb") as file:
        tar = Tar(file, storage.size(shard))
        for group in tar.samples():
            first, last = group[0], group[-1]
            yield Sample(first.key, first.offset, min(last.end, tar.size))


@dataclass(frozen=True)
class Member:
    """A file in a tar that belongs to a sample: bytes offset … end with its headers, content from `data`."""

    key: str
    suffix: str
    offset: int
    data: int
    size: int

    @property
    def end(self) -> int:
        return self.data + -(-self.size // BLOCK) * BLOCK


class Tar:
    """The members of an uncompressed tar from a place on, by `tarfile`, with guards that it lacks.

    Args:
        size: bytes of the whole file. start: where a header begins.
    """

    def __init__(self, file: BinaryIO, size: int, start: int = 0):
        self.file, self.size, self.start = file, size, start

    def samples(self) -> Iterator[list[Member]]:
        """The members of each sample. Grouping is webdataset's: adjacent ones with the same name up to the
        first dot.

        Raises:
            DamagedShard: after the last sample of which anything is left.
        """
        group: list[Member] = []
        known: set[str] = set()  # suffixes in the group
        try:
            for member in self.members():
                if group and (member.key != group[0].key or member.suffix in known):
                    yield group
                    group, known = [], set()
                group.append(member)
                known.add(member.suffix)
        except DamagedShard:
            if group:
                yield group
            raise
        if group:
            yield group

    def members(self) -> Iterator[Member]:
        """Raises:
        DamagedShard: after the last member, if the tar does not end where it should.
        """
        from webdataset.tariterators import base_plus_ext

        self.file.seek(self.start)
        place, bounded = self.start, Bounded(self.file)
        tar: Any = None
        while True:
            bounded.left = MAX_HEADER
            try:
                if tar is None:  # which reads the first header
                    tar = tarfile.open(fileobj=cast(BinaryIO, bounded), mode="r:")  # noqa: SIM115
                found = tar.next()
                tar.members = []  # tarfile would keep them all
            except OSError:
                raise
            except Exception as error:  # whatever tarfile makes of forged headers
                what = "not an uncompressed tar" if tar is None else f"a bad header at byte {place}"
                raise DamagedShard(f"{what}: {(tar is None and packed(self.file)) or error}") from error
            if found is None:
                break
            if found.offset < place or found.size < 0 or found.issparse():
                what = "is sparse" if found.issparse() else "has an impossible size"
                raise DamagedShard(f"{found.name!r} {what}, at byte {found.offset}")
            key, suffix = base_plus_ext(found.name)
            place = found.offset_data
            if found.isreg() and not SKIPPED.match(found.name) and key is not None:
                member = Member(key, suffix.lower(), found.offset, found.offset_data, found.size)
                yield member
                place = member.end
            if max(place, tar.offset) > self.size:
                end = max(place, tar.offset)
                raise DamagedShard(
                    f"cut inside {found.name!r}: it ends at byte {end}, the file at {self.size}"
                )
        if damage := end_damage(self.file, tar.offset, self.size):
            raise DamagedShard(damage)

    def content(self, member: Member) -> bytes:
        """What a member holds."""
        here = self.file.tell()
        self.file.seek(member.data)
        content = self.file.read(member.size)
        self.file.seek(here)
        return content


def packed(file: BinaryIO) -> str | None:
    """What to do with a file that is compressed, if it is."""
    file.seek(0)
    start = file.read(8)
    kind = next((kind for magic, kind in PACKED.items() if start.startswith(magic)), None)
    return kind and f"compressed with {kind}; unpack it first"


class Bounded:
    """A file for tarfile, which would read headers of any size that they claim: `left` bytes may be read."""

    def __init__(self, file: BinaryIO):
        self.file, self.left = file, MAX_HEADER
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"headers of more than {MAX_HEADER:,} bytes")
        return self.file.read(count)


def stated_checksums(folder: Location) -> dict[str, str]:
    """SHA-256 by file name, from a folder's SHA256SUMS, the format of `sha256sum`; {} where there is none.

    Raises:
        JobError: the file is not of that format.
    """
    listing = folder / SHA256SUMS
    if not listing.is_file():
        return {}
    stated: dict[str, str] = {}
    if storage.size(listing) > MAX_SUMS:
        raise JobError(f"data.shards: {listing} is larger than {MAX_SUMS:,} bytes; set data.checksums=ignore")
    text = listing.read_bytes().decode(errors="replace")  # bytes that are no text make a line that is refused
    for number, line in enumerate(text.splitlines(), 1):
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
    digest = hashlib.sha256()
    with shard.open("rb") as file:
        while block := file.read(storage.BLOCK):
            digest.update(block)
    return digest.hexdigest()


def end_damage(file: BinaryIO, offset: int, size: int) -> str | None:
    """What is wrong where the last member ends, if anything: two blocks of zeros must follow."""
    file.seek(offset)
    tail = file.read(2 * BLOCK)
    if tail == bytes(2 * BLOCK):
        return None
    if not tail.strip(b"\0"):
        return f"cut between members: no end-of-archive blocks at byte {offset} of {size}"
    return f"cut or overwritten inside a header at byte {offset} of {size}"
