"""Shards: which files a job means, and where each sample lies in them.

A shard is an uncompressed tar, or a folder whose files are the samples. `tarfile` and `webdataset` read a
tar that was cut at a member boundary, or inside a header, or has a hole of zeros, without an error and with
fewer samples. The index here notices: the last member must end inside the file, and two blocks of zeros must
follow it, and nothing else. What is there and is no sample is named.
"""

import glob
import hashlib
import re
import tarfile
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, normpath
from typing import Any, BinaryIO, cast

from kintsugi.errors import JobError
from kintsugi.pipeline import storage
from kintsugi.pipeline.storage import Location

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
IMAGE_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != "npy")
FIRST_SUFFIXES = SUFFIXES[: SUFFIXES.index("jfif")]
NAMES = 2
"""The rule by which names become keys, and files samples; plans say with which they were made.

1: in a tar, `./a.png` has the key `./a`, and folders keep their dots; links in it, and what webdataset makes
no key of, are passed over. In a folder only names of files are hidden, and `FIRST_SUFFIXES` count.
2: `key_of` everywhere. What lies in a hidden folder is hidden. A link in a tar is the file that it leads to.
"""
SHA256SUMS = "SHA256SUMS"
MAX_SHARDS = 1_000_000
MAX_SUMS = 1 << 28  # bytes of SHA256SUMS
MAX_PADDING = tarfile.RECORDSIZE + 2 * BLOCK  # bytes of zeros behind a tar, as all usual programs write it
MAX_LINKS = 40  # that lead from one to the next, as in Linux
CHECKSUM = re.compile(rb" *[0-7]{1,7}[\0 ]+")  # of a header
RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
"""What files begin with that are taken for tars."""


@dataclass(frozen=True)
class Place:
    """The members of one key, adjacent in the tar: bytes offset … end; in a folder, its place and file.

    links: of members that are links: the name, and where what it leads to begins and how long it is.
    """

    key: str
    offset: int
    end: int
    file: str | None = None
    links: tuple[tuple[str, int, int], ...] = ()


class DamagedShard(Exception):
    """The shard ends early or is not a tar; the message says where.

    resume: the byte from which on headers of further members may be found, if any may.
    """

    def __init__(self, message: str, resume: int | None = None):
        super().__init__(message)
        self.resume = resume


Note = Callable[[str, str], None]
"""Called with the name of what is no sample, and why it is none."""


def ignore(name: str, why: str) -> None:
    """For who does not want to know."""


def expand(patterns: str | list[str]) -> list[Location]:
    """The shards that brace ranges and globs stand for, in order.

    Raises:
        JobError: a pattern that matches nothing or what is no file, or a shard named twice.
    """
    found: list[Location] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in without_braces(pattern):
            try:
                matched = storage.matches(name) if glob.has_magic(name) else [storage.at(name)]
            except ValueError as error:
                raise JobError(f"data.shards: {error}") from error
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


def fingerprint(shard: Location, names: int = NAMES) -> int:
    """What tells that a shard has changed: the bytes of a tar, the number of a folder's samples.

    Raises:
        FileNotFoundError: there is no such shard. OSError: a folder in it cannot be listed.
    """
    if shard.is_dir():
        return len(samples_of(shard, names=names))
    return storage.size(shard)


def samples_of(
    folder: Location, suffixes: Collection[str] = SUFFIXES, note: Note = ignore, names: int = NAMES
) -> list[str]:
    """The files in a folder that are samples, in order; `note` is told of all others.

    Raises:
        OSError: a folder in it that is not hidden cannot be listed.
    """

    def unlisted(error: OSError) -> None:
        if not (isinstance(folder, Path) and hidden(str(Path(error.filename).relative_to(folder)))):
            raise error
        note(f"{Path(error.filename).relative_to(folder).as_posix()}/", "hidden")

    found = []
    for name in storage.walk(folder, unlisted):
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


def why_none(name: str, suffixes: Collection[str]) -> str | None:
    """Why a file is no sample, by its name, if so. Links to folders have a slash at the end."""
    if hidden(name):
        return "hidden"
    if name.endswith("/"):
        return "a link to a folder, which is not followed"
    suffix = suffix_of(name)
    if suffix in suffixes:
        return None
    return f".{suffix} files are not read" if suffix else "a name without a suffix"


def hidden(name: str) -> bool:
    """Whether a file or a folder that it lies in is hidden. macOS puts files `._NAME` into zips and tars,
    and such files into a folder __MACOSX.
    """
    parts = (part for part in PurePosixPath(name).parts if part != "..")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def suffix_of(name: str) -> str:
    return PurePosixPath(name).suffix.lower()[1:]


def key_of(name: str) -> str:
    """The path without its suffix, `./` and doubled slashes, in Unicode's form NFC.

    webdataset ends a key at the first dot of a file's name, so other dots are replaced.
    """
    path = PurePosixPath(name)
    if suffix_of(name) in SUFFIXES:
        path = path.with_suffix("")
    return as_key(str(path))


def as_key(path: str) -> str:
    return unicodedata.normalize("NFC", path).replace(".", "_")


def told_apart(names: Collection[str]) -> str:
    """Names that make the same key; such as look the same are written in ASCII."""
    alike = len({unicodedata.normalize("NFC", name) for name in names}) < len(names)
    return " and ".join(map(ascii, names) if alike else names)


def index(
    shard: Location,
    salvage: bool = False,
    note: Note = ignore,
    warn: Callable[[str], None] = lambda what: None,
) -> Iterator[Place]:
    """The samples of a shard in order, without reading their contents; `note` is told what is no sample.

    A file has the same key in a folder and in a tar of it. Memory does not grow with a tar without links.

    Args:
        salvage: go on behind damage, where there are members.
        warn: called with what may be damage.

    Raises:
        DamagedShard: after the last sample of which anything is left, which may be incomplete.
    """
    if shard.is_dir():
        for place, name in enumerate(samples_of(shard, note=note)):
            yield Place(key_of(name), place, place + 1, name)
        return
    with shard.open("rb") as file:
        tar = Tar(file, storage.size(shard), salvage=salvage, note=note)
        for group in tar.samples():
            first, last = group[0], group[-1]
            links = tuple((one.name, one.data, one.size) for one in group if one.link and one.lost is None)
            yield Place(first.key, first.offset, min(last.end, tar.size), links=links)
        if tar.padding > MAX_PADDING:
            warn(f"{tar.padding:,} bytes of zeros at its end: is it a download that has not ended?")


@dataclass(frozen=True)
class Member:
    """A file in a tar that belongs to a sample: bytes offset … end with its headers, content from `data`.

    Attributes:
        base: what the members of a sample have in common.
        link: whether it is a link, and its content is another member's.
        lost: why there is no content, if so.
    """

    base: str
    key: str
    suffix: str
    name: str
    offset: int
    end: int
    data: int
    size: int
    link: bool = False
    lost: str | None = None


class Tar:
    """The members of an uncompressed tar from a place on, by `tarfile`, with guards that it lacks.

    Args:
        size: bytes of the whole file. start: where a header begins. stop: where no header is read any more.
        names: the rule for keys. salvage: go on behind damage. note: is told what belongs to no sample.
        links: where the files lie that links lead to, by the link's name; None: they are looked for.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        start: int = 0,
        stop: int | None = None,
        names: int = NAMES,
        salvage: bool = False,
        note: Note = ignore,
        links: Mapping[str, tuple[int, int]] | None = None,
    ):
        self.file, self.size, self.start = file, size, start
        self.stop = size + 1 if stop is None else stop  # a header at the end is one that is missing
        self.names, self.salvage, self.note, self.links = names, salvage, note, links
        self.padding = 0  # bytes of zeros at its end, when that is reached

    def samples(self) -> Iterator[list[Member]]:
        """The members of each sample. Grouping is webdataset's: adjacent ones with the same name up to the
        first dot. But a group in which only names with more dots are images, as `a.1.png` and `a.2.png`, has
        a sample for each.

        Raises:
            DamagedShard: after the last sample of which anything is left.
        """
        group: list[Member] = []
        known: set[str] = set()  # suffixes in the group
        try:
            for member in self.members():
                if group and (member.base != group[0].base or member.suffix in known):
                    yield from self.divided(group)
                    group, known = [], set()
                group.append(member)
                known.add(member.suffix)
        except DamagedShard:
            if group:
                yield from self.divided(group)
            raise
        if group:
            yield from self.divided(group)

    def divided(self, group: list[Member]) -> Iterator[list[Member]]:
        """The samples in a group: one, or each image."""
        if self.names == 1 or (len(group) == 1 and group[0].suffix in SUFFIXES):
            yield group
            return
        taken = next((one for suffix in IMAGE_SUFFIXES for one in group if one.suffix == suffix), None)
        images = [one for one in group if suffix_of(one.name) in IMAGE_SUFFIXES]
        if taken is not None:
            for other in images:
                if other is not taken:
                    self.note(other.name, f"another image of the sample of {taken.name}")
        if taken is not None or not images or any(one.suffix == "npy" for one in group):
            yield group
            return
        each: dict[str, list[Member]] = {}
        for one in group:
            stem, _, suffix = one.name.rpartition(".")
            key = as_key(str(PurePosixPath(stem)))
            each.setdefault(key, []).append(replace(one, key=key, suffix=suffix.lower()))
        yield from each.values()

    def members(self) -> Iterator[Member]:
        """Raises:
        DamagedShard: after the last member, if the tar does not end where it should.
        """
        for found in self.headers():
            if found.isdir():
                continue
            if (self.names > 1 and (found.islnk() or found.issym())) or found.isreg():
                place = self.place_of(found.name)
                if isinstance(place, str):
                    self.note(found.name, place)
                else:
                    yield self.member(found, *place)
            elif self.names > 1:
                self.note(found.name, "no file")

    def place_of(self, name: str) -> tuple[str, str, str] | str:
        """What a sample's members have in common, its key, and a member's suffix; or why it has none."""
        if self.names == 1:
            from webdataset.tariterators import base_plus_ext

            base, suffix = base_plus_ext(name)
            return "no key" if base is None or SKIPPED.match(name) else (base, base, suffix.lower())
        path = unicodedata.normalize("NFC", str(PurePosixPath(name)))
        if hidden(path):
            return "hidden"
        if SKIPPED.match(path):
            return "metadata of webdataset"
        folder, slash, file = path.rpartition("/")
        stem, _, suffix = file.partition(".")
        if not suffix:
            return "a name without a suffix"
        base = folder + slash + stem
        return base, as_key(base), suffix.lower()

    def member(self, found: tarfile.TarInfo, base: str, key: str, suffix: str) -> Member:
        data, size, lost = found.offset_data, found.size, None
        end = data + -(-size // BLOCK) * BLOCK
        link = not found.isreg()
        if link:
            end = found.offset_data
            if self.links is None:
                self.links = link_targets(self.file, self.size)
            data, size = self.links.get(found.name, (0, -1))
            if size < 0:
                size, lost = 0, f"a link to {found.linkname!r}, which is no file of this tar"
        return Member(base, key, suffix, found.name, found.offset, end, data, size, link, lost)

    def headers(self) -> Iterator[tarfile.TarInfo]:
        """What tarfile makes of each header, in order.

        Raises:
            DamagedShard: at once, or if it goes on behind damage, after the last header.
        """
        damage: list[str] = []
        place: int | None = self.start
        while place is not None and place < self.stop:
            try:
                yield from self.part(place)
                place = None
            except DamagedShard as error:
                if not self.salvage or error.resume is None:
                    raise DamagedShard("; ".join([*damage, str(error)])) from error
                damage.append(str(error))
                place = next_header(self.file, error.resume)
        if damage:
            more = f"; and {len(damage) - 3} places more" if len(damage) > 3 else ""
            raise DamagedShard("; ".join(damage[:3]) + more)

    def part(self, start: int) -> Iterator[tarfile.TarInfo]:
        """The headers from one on, to the end of the tar or to damage."""
        self.file.seek(start)
        place, bounded = start, Bounded(self.file)
        tar: Any = None
        last: tarfile.TarInfo | None = None
        while tar is None or tar.offset < self.stop:
            bounded.left = MAX_HEADER
            try:
                if tar is None:  # which reads the first header
                    tar = tarfile.open(fileobj=cast(BinaryIO, bounded), mode="r:")  # noqa: SIM115
                found = tar.next()
                tar.members = []  # tarfile would keep them all
            except OSError:
                raise
            except Exception as error:  # whatever tarfile makes of forged headers
                if tar is None and start == self.start:
                    problem = packed(self.file) or error
                    raise DamagedShard(f"not an uncompressed tar: {problem}") from error
                raise DamagedShard(f"a bad header at byte {place}: {error}", place + BLOCK) from error
            if found is None:
                break
            if found.offset < place or found.size < 0 or found.issparse():
                what = "is sparse" if found.issparse() else "has an impossible size"
                raise DamagedShard(f"{found.name!r} {what}, at byte {found.offset}", found.offset + BLOCK)
            place = tar.offset
            yield found
            last = found
            if place > self.size:
                raise DamagedShard(
                    f"cut inside {found.name!r}: it ends at byte {place}, the file at {self.size}"
                )
        else:
            return
        if damage := end_damage(self.file, tar.offset, self.size):
            raise damage
        self.padding = self.size - tar.offset
        if last is not None and last.isreg() and self.in_hole(last.offset_data, last.size):
            raise DamagedShard(
                f"{last.name!r} ends in zeros, and so does the file of {self.size:,} bytes: cut"
            )

    def content(self, member: Member) -> bytes:
        """What a member holds."""
        here = self.file.tell()
        self.file.seek(member.data)
        content = self.file.read(member.size)
        self.file.seek(here)
        return content

    def in_hole(self, data: int, size: int) -> bool:
        """Whether the content at bytes data … data + size ends in a hole of zeros that reaches beyond it.

        One zero at its end is enough to doubt it: PNG's decoder does not miss the last bytes.
        """
        if size == 0:
            return False
        here, end = self.file.tell(), data + -(-size // BLOCK) * BLOCK
        after = first_byte(self.file, data + size - 1)
        self.file.seek(here)
        return self.size - end > MAX_PADDING if after is None else after > end


def scattered(shard: Location, keys: Collection[str]) -> list[list[str]]:
    """The members of each sample of a tar that would be one if they were adjacent."""
    found: dict[str, list[Member]] = {}
    with shard.open("rb") as file, suppress(DamagedShard):
        for group in Tar(file, storage.size(shard), salvage=True).samples():
            if group[0].key in keys:
                found.setdefault(group[0].key, []).extend(group)
    return [
        [one.name for one in members]
        for members in found.values()
        if len({one.suffix for one in members}) == len(members)
        and sum(one.suffix in SUFFIXES for one in members) == 1
    ]


def link_targets(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where the files of a tar lie that links in it lead to: first byte and length, by the link's name.

    Memory grows with the links alone. The headers of the tar are read twice.
    """

    def headers() -> Iterator[tarfile.TarInfo]:
        try:
            yield from Tar(file, size, salvage=True).headers()
        except DamagedShard:  # of which the index tells
            return

    here = file.tell()
    names: dict[str, str] = {}
    leads: dict[str, str] = {}
    for found in headers():
        if found.islnk():
            names[found.name], leads[plain(found.name)] = plain(found.name), plain(found.linkname)
        elif found.issym():  # which names a file from its own folder on
            names[found.name] = plain(found.name)
            leads[plain(found.name)] = normpath(join(dirname(plain(found.name)), found.linkname))
    wanted = set(leads.values())
    places = {
        plain(found.name): (found.offset_data, found.size)
        for found in headers()
        if found.isreg() and plain(found.name) in wanted
    }
    file.seek(here)
    targets: dict[str, tuple[int, int]] = {}
    for name, path in names.items():
        for _ in range(MAX_LINKS):
            path = leads[path]
            if path in places:
                targets[name] = places[path]
            if path in places or path not in leads:
                break
    return targets


def plain(name: str) -> str:
    """A path in a tar, as it is unpacked."""
    return normpath(name).lstrip("/")


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
    digest = hashlib.sha256()
    with shard.open("rb") as file:
        while block := file.read(storage.BLOCK):
            digest.update(block)
    return digest.hexdigest()


def end_damage(file: BinaryIO, offset: int, size: int) -> DamagedShard | None:
    """What is wrong where the last member ends, if anything: two blocks of zeros must follow, and no more."""
    file.seek(offset)
    tail = file.read(2 * BLOCK)
    if not tail.strip(b"\0") and len(tail) < 2 * BLOCK:
        return DamagedShard(f"cut between members: no end-of-archive blocks at byte {offset} of {size}")
    if tail[:BLOCK].strip(b"\0"):
        return DamagedShard(f"cut or overwritten inside a header at byte {offset} of {size}", offset + BLOCK)
    if (more := first_byte(file, offset)) is None:
        return None
    block = more - (more - offset) % BLOCK
    what = "another tar begins" if next_header(file, block, block + BLOCK) == block else "more follows"
    return DamagedShard(
        f"zeros from byte {offset} of {size} on, and {what} at byte {block}: tars that were joined, or a "
        "hole in the file",
        block,
    )


def first_byte(file: BinaryIO, place: int) -> int | None:
    """Where the first byte from a place on is that is not zero."""
    file.seek(place)
    while block := file.read(1 << 20):
        if rest := block.lstrip(b"\0"):
            return place + len(block) - len(rest)
        place += len(block)
    return None


def next_header(file: BinaryIO, place: int, end: int | None = None) -> int | None:
    """Where the first header is, at steps of a block from a place on, whose checksum is right."""
    file.seek(place)
    while (end is None or place < end) and (blocks := file.read(1 << 20)):
        for start in range(0, len(blocks) - BLOCK + 1, BLOCK):
            if end is not None and place + start >= end:
                return None
            if is_header(blocks[start : start + BLOCK]):
                return place + start
        place += len(blocks)
    return None


def is_header(block: bytes) -> bool:
    if not CHECKSUM.fullmatch(block[148:156]):  # which is quicker than what follows
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True
