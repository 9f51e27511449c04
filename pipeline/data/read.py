"""Read a unit: its bytes of the shard, decoded in background threads."""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError, MissingMember, UnreadableImage
from kintsugi.pipeline.data.convert import true_image
from kintsugi.pipeline.data.decode import BESIDE, Content, Convert, Decoded, decode
from kintsugi.pipeline.data.members import Member
from kintsugi.pipeline.data.names import key_of, stem_of, suffix_of
from kintsugi.pipeline.data.parquet import NUMBER, is_parquet, name_of, numbered, read_rows
from kintsugi.pipeline.data.shards import Place, fingerprint, why_unsafe
from kintsugi.pipeline.data.tar import DamagedShard, Tar
from kintsugi.pipeline.data.units import Members, Unit
from kintsugi.pipeline.storage.location import Location, at, is_remote
from kintsugi.pipeline.wanted import IMAGE_ONLY, Wanted

MAX_BYTES = 1 << 30  # of one sample's members together
MAX_BESIDE = 1 << 28  # of one file beside the image
BATCHES_AHEAD = 3
BYTES_AHEAD = 1 << 30  # of decoded images, if that is less
DECODERS = 2
RESTORED, TRUTH = "restored", "truth"  # what a sample has instead of members where it is a pair


def read_unit(
    unit: Unit,
    members: Members,
    convert: Convert,
    batch_size: int,
    skip: Container[str] = frozenset(),
    refuse: Callable[[str], Exception | None] = lambda key: None,
    wanted: Wanted = IMAGE_ONLY,
) -> Iterator[list[Decoded]]:
    """The unit's samples in order, in batches; a few batches are decoded ahead, fewer of large images.

    Batch k always holds samples k·batch_size … of the unit, readable or not, so that results do not
    depend on what went before. Every key of the plan appears once.

    Args:
        skip: keys of samples that are not to be decoded. refuse: the error of those that must not be.
        wanted: which files of a sample are read, as the plan was made with.
    """

    make_true = None if wanted.truth is None else partial(true_image, truth=wanted.truth)

    def decoded(work: tuple[str, int, str | None, tuple[Content, float]]) -> Decoded:
        key, index, file, (content, fetching) = work
        mark = time.perf_counter()
        sample = decode(key, index, refuse(key) or content, convert, file, key in skip, make_true)
        return replace(sample, fetching=fetching, decoding=time.perf_counter() - mark)

    contents = contents_of(unit, members, wanted)
    if members.pairs is not None:
        true = (content_at(at(pair.shard), pair.truth) for pair in members.pairs)
        contents = ({RESTORED: one, TRUTH: other} for one, other in zip(contents, true, strict=True))
    files: Sequence[str | None] = members.files or [None] * len(members.keys)
    places = range(unit.start, unit.start + len(members.keys))
    work = zip(members.keys, places, files, timed(contents), strict=True)
    most = BATCHES_AHEAD * batch_size
    with closing(map_ahead(decoded, work, DECODERS, most, size_of, BYTES_AHEAD)) as samples:
        while batch := list(islice(samples, batch_size)):
            yield batch


def size_of(sample: Decoded) -> int:
    """Bytes of its image and truth, and of the files beside it; 0: it has no image."""
    beside = sum(map(len, sample.beside.values()))
    arrays = [array.nbytes for array in (sample.image, sample.truth) if array is not None]
    return sum(arrays) + beside


def timed(contents: Iterator[Content]) -> Iterator[tuple[Content, float]]:
    """Each content, and the seconds that it took to get."""
    mark = time.perf_counter()
    for content in contents:
        yield content, time.perf_counter() - mark
        mark = time.perf_counter()


def in_folder(unit: Unit, files: Sequence[str], wanted: Wanted) -> Iterator[Content]:
    """The content of each file, and of what is wanted beside it, in order."""
    folder = at(unit.shard)
    for name in files:
        try:
            content: dict[str, Any] = {suffix_of(name): file_of(folder, name, MAX_BYTES)}
            if wanted.files:
                stem = stem_of(name, wanted)
                content[BESIDE] = {end: file_beside(folder, f"{stem}.{end}") for end in wanted.files}
            yield content
        except (UnreadableImage, MissingMember) as error:
            yield error
        except FileNotFoundError:
            if not fingerprint(folder):
                raise  # the folder is gone, not the file
            yield UnreadableImage("not in the folder any more; did it change after planning?")


def file_of(folder: Location, name: str, most: int) -> bytes:
    """A file of a folder.

    Raises:
        UnreadableImage: it is no file of it by its name, is larger than `most`, or may not be read.
        FileNotFoundError: it is gone. OSError: the storage failed.
    """
    if why := why_unsafe(folder, name):
        raise UnreadableImage(why)
    try:
        if (length := (folder / name).stat().st_size) > most:
            raise UnreadableImage(f"a file of {length:,} bytes, more than {most:,}")
        return (folder / name).read_bytes()
    except PermissionError:
        if is_remote(folder):
            raise  # the credentials, not the file
        raise UnreadableImage("the file may not be read") from None


def file_beside(folder: Location, name: str) -> bytes:
    """A file beside a sample; raises as `file_of`, with its name, and MissingMember if it is not there."""
    try:
        return file_of(folder, name, MAX_BESIDE)
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except FileNotFoundError:
        if not fingerprint(folder):
            raise  # the folder is gone, not the file
        raise MissingMember(f"{name} is not in the folder") from None


def contents_of(unit: Unit, members: Members, wanted: Wanted = IMAGE_ONLY) -> Iterator[Content]:
    """What a folder, Parquet or a tar has of each planned sample, in order."""
    if members.files:
        return in_folder(unit, members.files, wanted)
    return in_parquet(unit, members) if is_parquet(at(unit.shard)) else in_tar(unit, members, wanted)


def in_parquet(unit: Unit, members: Members) -> Iterator[Content]:
    """The row of each planned key, in order; by its number, or its path, whichever made the keys."""
    shard, keys = at(unit.shard), own_keys(members)
    by_number = NUMBER.fullmatch(keys[0]) is not None
    expected, planned = iter(keys), set(keys)
    damage: Exception | None = None
    try:
        for number, path, content in read_rows(shard, unit.offset, unit.end):
            if isinstance(content, Exception):
                damage = content
            name = numbered(shard, number) if by_number else name_of(path)
            own = None if name is None else key_of(name)
            if own not in planned:  # not in data.subset, or not to be read
                continue
            for key in expected:
                if key == own:
                    yield content
                    break
                yield damage or missing(None)
    except (DamagedShard, JobError) as error:
        damage = UnreadableImage(f"the shard cannot be read here: {error}")
    for _ in expected:
        yield damage or missing(None)


def own_keys(members: Members) -> list[str]:
    """The keys that samples have in their shard, which of pairs are those of their own names."""
    return members.keys if members.pairs is None else [pair.name for pair in members.pairs]


def in_tar(unit: Unit, members: Members, wanted: Wanted) -> Iterator[Content]:
    """The members of each planned key, in order."""
    damage: DamagedShard | None = None
    keys = own_keys(members)
    expected, planned = iter(keys), set(keys)
    shard = at(unit.shard)
    links = {name: (data, length) for name, data, length in members.links}
    with shard.open("rb") as file:
        # What was planned behind damage is found behind it.
        tar = Tar(
            file,
            shard.stat().st_size,
            unit.offset,
            unit.end,
            members.names,
            salvage=True,
            links=links,
            wanted=wanted,
        )
        try:
            for group in tar.samples():
                if group[0].offset >= unit.end:
                    break
                if group[0].key not in planned:  # not in data.subset
                    continue
                for key in expected:
                    if key == group[0].key:
                        yield content_of(tar, group, wanted)
                        break
                    yield missing(None)
        except DamagedShard as error:
            damage = error
    for _ in expected:
        yield missing(damage)


def content_at(shard: Location, place: Place) -> Content:
    """The files of one sample by suffix, or why there are none."""
    unit = Unit("", str(shard), 0, 0, 0, 1, place.offset, place.end)
    members = Members([place.key], None, place.links)
    members = members if place.file is None else replace(members, files=[place.file])
    return next(contents_of(unit, members))


def content_of(tar: Tar, group: list[Member], wanted: Wanted) -> Content:
    """The members of a sample by suffix, or why they are not all there."""
    beside = {one.beside: one for one in group if one.beside is not None}
    if (end := next((end for end in wanted.files if end not in beside), None)) is not None:
        return MissingMember(f"{group[0].base}.{end} is not next to it in the tar")
    if large := next((one for one in beside.values() if one.size > MAX_BESIDE), None):
        return UnreadableImage(f"{large.name}: a file of {large.size:,} bytes, more than {MAX_BESIDE:,}")
    if lost := next((member.lost for member in group if member.lost is not None), None):
        return UnreadableImage(lost)
    if (total := sum(member.size for member in group)) > MAX_BYTES:
        return UnreadableImage(f"a sample of {total:,} bytes, more than {MAX_BYTES:,}")
    if any(member.data + member.size > tar.size for member in group):
        return UnreadableImage("the shard cannot be read here: it ends inside this sample")
    content: dict[str, Any] = {BESIDE: {}} if beside else {}
    for member in group:
        read = tar.content(member)
        if read.endswith(b"\0") and tar.in_hole(member.data, member.size):
            return UnreadableImage("the shard cannot be read here: a hole of zeros begins inside this sample")
        if member.beside is None:
            content[member.suffix] = read
        else:
            content[BESIDE][member.beside] = read
    return content


def missing(damage: DamagedShard | None) -> Exception:
    """Why a planned sample is not in its tar."""
    if damage is not None:
        return UnreadableImage(f"the shard cannot be read here: {damage}")
    return UnreadableImage("not in the shard any more; did it change after planning?")
