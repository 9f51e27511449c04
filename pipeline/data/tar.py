"""Tars: what is in them, with guards.

`tarfile` and `webdataset` read a tar that was cut at a member boundary, or inside a header, or has a hole of
zeros, without an error and with fewer samples. It is noticed here: the last member must end inside the file,
and two blocks of zeros must follow it, and nothing else.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from posixpath import dirname, join, normpath
from typing import Any, BinaryIO, cast

from kintsugi.pipeline.data.headers import BLOCK, Header, plain_headers, whole
from kintsugi.pipeline.data.members import Member, place_of, samples_in
from kintsugi.pipeline.data.names import NAMES, Note, ignore
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted

MAX_HEADER = 1 << 14  # bytes of all headers of a member: long names and PAX records take tarfile long
MAX_PADDING = tarfile.RECORDSIZE + 2 * BLOCK  # bytes of zeros behind a tar, as all usual programs write it
LINKS = tarfile.LNKTYPE, tarfile.SYMTYPE
MAX_LINKS = 40  # that lead from one to the next, as in Linux
CHECKSUM = re.compile(rb" *[0-7]{1,7}[\0 ]+")  # of a header
Found = tarfile.TarInfo | Header
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
"""What files begin with that are taken for tars."""


class DamagedShard(Exception):
    """The shard ends early or is not a tar; the message says where.

    resume: the byte from which on headers of further members may be found, if any may.
    """

    def __init__(self, message: str, resume: int | None = None):
        super().__init__(message)
        self.resume = resume


class Tar:
    """The members of an uncompressed tar from a place on, with guards that `tarfile` lacks.

    Args:
        size: bytes of the whole file. start: where a header begins. stop: where no header is read any more.
        names: the rule for keys. salvage: go on behind damage. note: is told what belongs to no sample.
        links: where the files lie that links lead to, by the link's name; None: they are looked for.
        wanted: which files of a sample are read.
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
        wanted: Wanted = IMAGE_ONLY,
    ):
        self.file, self.size, self.start = file, size, start
        self.stop = size + 1 if stop is None else stop  # a header at the end is one that is missing
        self.names, self.salvage, self.note, self.links, self.wanted = names, salvage, note, links, wanted
        self.padding = 0  # bytes of zeros at its end, when that is reached

    def samples(self) -> Iterator[list[Member]]:
        """The members of each sample. Grouping is webdataset's: adjacent ones with the same name up to the
        first dot. But a group in which only names with more dots are images, as `a.1.png` and `a.2.png`, has
        a sample for each.

        Raises:
            DamagedShard: after the last sample of which anything is left.
        """
        group: list[Member] = []
        base, damage = "", None
        try:
            for member in self.members():
                if group and (member.base != base or any(member.suffix == one.suffix for one in group)):
                    yield from samples_in(group, self.names, self.note, self.wanted)
                    group = []
                group.append(member)
                base = member.base
        except DamagedShard as error:
            damage = error
        if group:
            yield from samples_in(group, self.names, self.note, self.wanted)
        if damage is not None:
            raise damage

    def members(self) -> Iterator[Member]:
        """The files that belong to a sample; `note` is told of all others; raises as `headers`."""
        for found in self.headers():
            link = self.names > 1 and found.type in LINKS
            if link or found.type in tarfile.REGULAR_TYPES:
                place = place_of(found.name, self.names)
                if isinstance(place, str):
                    self.note(found.name, place)
                else:
                    yield self.linked(found, *place) if link else self.regular(found, *place)
            elif self.names > 1 and found.type != tarfile.DIRTYPE:
                self.note(found.name, "no file")

    def regular(self, found: Found, base: str, key: str, suffix: str) -> Member:
        """A file of a sample."""
        data, size = found.offset_data, found.size
        return Member(base, key, suffix, found.name, found.offset, data + whole(size), data, size)

    def linked(self, found: Found, base: str, key: str, suffix: str) -> Member:
        """A link in the place of a file, with the content that it leads to."""
        if self.links is None:
            self.links = link_targets(self.file, self.size)
        data, size = self.links.get(found.name, (0, 0))
        lost = f"a link to {found.linkname!r}, which is no file of this tar"
        why = None if found.name in self.links else lost
        return Member(base, key, suffix, found.name, found.offset, found.offset_data, data, size, True, why)

    def headers(self) -> Iterator[Found]:
        """What each header says, in order.

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

    def part(self, place: int) -> Iterator[Found]:
        """The headers from one on, to the end of the tar or to damage."""
        last: Found | None = None
        for last in plain_headers(self.file, place, self.stop, self.size):
            yield last
        if last is not None:
            place = last.offset_data + whole(last.size)
        if place < self.stop:
            yield from self.careful(place, last)

    def careful(self, place: int, last: Found | None) -> Iterator[tarfile.TarInfo]:
        """As `part`, by `tarfile`; `last` is the header before."""
        self.file.seek(place)
        bounded = Bounded(self.file)
        tar: Any = None
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
                if tar is None and place == self.start:
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
        if (
            last is not None
            and last.type in tarfile.REGULAR_TYPES
            and self.in_hole(last.offset_data, last.size)
        ):
            raise DamagedShard(
                f"{last.name!r} ends in zeros, and so does the file of {self.size:,} bytes: cut"
            )

    def content(self, member: Member) -> bytes:
        """What a member holds."""
        self.file.seek(member.data)  # tarfile finds back by itself
        return self.file.read(member.size)

    def in_hole(self, data: int, size: int) -> bool:
        """Whether the content at bytes data … data + size ends in a hole of zeros that reaches beyond it.

        One zero at its end is enough to doubt it: PNG's decoder does not miss the last bytes.
        """
        if size == 0:
            return False
        end, after = data + whole(size), first_byte(self.file, data + size - 1)
        return self.size - end > MAX_PADDING if after is None else after > end


def link_targets(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where the files of a tar lie that links in it lead to: first byte and length, by the link's name.

    Memory grows with the links alone. The headers of the tar are read twice.
    """

    def headers() -> Iterator[Found]:
        try:
            yield from Tar(file, size, salvage=True).headers()
        except DamagedShard:  # of which the index tells
            return

    names: dict[str, str] = {}
    leads: dict[str, str] = {}
    for found in headers():
        if found.type == tarfile.LNKTYPE:
            names[found.name], leads[plain(found.name)] = plain(found.name), plain(found.linkname)
        elif found.type == tarfile.SYMTYPE:  # which names a file from its own folder on
            names[found.name] = plain(found.name)
            leads[plain(found.name)] = normpath(join(dirname(plain(found.name)), found.linkname))
    wanted = set(leads.values())
    places = {
        plain(found.name): (found.offset_data, found.size)
        for found in headers()
        if found.type in tarfile.REGULAR_TYPES and plain(found.name) in wanted
    }
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
        """As a file's; raises a ValueError for more than is left."""
        self.left -= count
        if self.left < 0:
            raise ValueError(f"headers of more than {MAX_HEADER:,} bytes")
        return self.file.read(count)


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
    """Whether a block is a header of a member, by its checksum."""
    if not CHECKSUM.fullmatch(block[148:156]):  # which is quicker than what follows
        return False
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return False
    return True
