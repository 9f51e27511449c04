"""Shards: which files a job means, and where each sample lies in them.

`tarfile` and `webdataset` read a tar that was cut at a member boundary, or inside a header, without
an error and with fewer samples. The index here notices: the last member must end inside the file,
and two blocks of zeros must follow it.
"""

import glob
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pipeline.job import JobError

BLOCK = tarfile.BLOCKSIZE
SKIPPED = re.compile(r"__[^/]*__($|/)")  # webdataset's rule for metadata members


@dataclass(frozen=True)
class Sample:
    """The members of one key, adjacent in the tar: bytes offset … end."""

    key: str
    offset: int
    end: int


class DamagedShard(Exception):
    """The shard ends early or is not a tar; the message says where."""


def expand(patterns: str | list[str]) -> list[Path]:
    """The files that brace ranges and globs stand for, in order, absolute.

    Raises:
        JobError: a pattern that matches nothing, or a file named twice.
    """
    from braceexpand import braceexpand

    paths: list[Path] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            names = list(braceexpand(str(Path(pattern).expanduser())))
        except ValueError as error:
            raise JobError(f"data.shards: {pattern!r}: {error}") from error
        for name in names:
            found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
            missing = [f for f in found if not Path(f).is_file()]
            if missing or not found:
                raise JobError(f"data.shards: no such file: {missing[0] if missing else name}")
            paths += [Path(f).absolute() for f in found]
    if len(set(paths)) < len(paths):
        twice = next(p for p in paths if paths.count(p) > 1)
        raise JobError(f"data.shards: {twice} is named twice")
    return paths


def index(path: Path) -> Iterator[Sample]:
    """The samples of a shard in order, without reading their contents.

    Grouping is webdataset's: adjacent members with the same name up to the first dot are a sample.
    Memory does not grow with the shard.

    Raises:
        DamagedShard: after the last sample of which anything is left, which may be incomplete.
    """
    from webdataset.tariterators import base_plus_ext

    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (closed with the file)
        except tarfile.TarError as error:
            raise DamagedShard(f"not an uncompressed tar: {error}") from error
        damage = None
        current: Sample | None = None
        suffixes: set[str] = set()
        while damage is None and (member := next_member(tar)) is not None:
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if end > size:
                damage = f"cut inside {member.name!r}: it ends at byte {end}, the file at {size}"
            key, suffix = base_plus_ext(member.name)
            if not member.isreg() or SKIPPED.match(member.name) or key is None:
                continue
            suffix = suffix.lower()
            if current is not None and key == current.key and suffix not in suffixes:
                current = Sample(key, current.offset, min(end, size))
                suffixes.add(suffix)
                continue
            if current is not None:
                yield current
            current, suffixes = Sample(key, member.offset, min(end, size)), {suffix}
        if current is not None:
            yield current
        damage = damage or end_damage(file, tar.offset, size)
    if damage is not None:
        raise DamagedShard(damage)


def next_member(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        member = tar.next()
    except tarfile.TarError:
        return None  # the end is then not where it should be, which `end_damage` reports
    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
    return member


def end_damage(file: BinaryIO, offset: int, size: int) -> str | None:
    """What is wrong where the last member ends, if anything: two blocks of zeros must follow."""
    file.seek(offset)
    tail = file.read(2 * BLOCK)
    if tail == bytes(2 * BLOCK):
        return None
    if not tail.strip(b"\0"):
        return f"cut between members: no end-of-archive blocks at byte {offset} of {size}"
    return f"cut or overwritten inside a header at byte {offset} of {size}"
