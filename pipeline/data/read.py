"""Read a unit: its bytes of the shard, decoded in background threads."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from kintsugi.errors import UnreadableImage
from kintsugi.pipeline.data.decode import Content, Convert, Decoded, decode
from kintsugi.pipeline.data.shards import fingerprint
from kintsugi.pipeline.data.tar import DamagedShard, Member, Tar
from kintsugi.pipeline.data.units import Members, Unit
from kintsugi.pipeline.storage import Location, at, size

MAX_BYTES = 1 << 30  # of one sample's members together
BATCHES_AHEAD = 3
BYTES_AHEAD = 1 << 30  # of decoded images, if that is less
DECODERS = 2


def read_unit(
    unit: Unit,
    members: Members,
    convert: Convert,
    batch_size: int,
    skip: Container[str] = frozenset(),
    refuse: Callable[[str], Exception | None] = lambda key: None,
) -> Iterator[list[Decoded]]:
    """The unit's samples in order, in batches; a few batches are decoded ahead, fewer of large images.

    Batch k always holds samples k·batch_size … of the unit, readable or not, so that results do not
    depend on what went before. Every key of the plan appears once.

    Args:
        skip: keys of samples that are not to be decoded. refuse: the error of those that must not be.
    """
    ahead: deque[Future[Decoded] | None] = deque()
    changed = threading.Condition()
    stop = threading.Event()
    pool = ThreadPoolExecutor(DECODERS)
    broken: list[BaseException] = []
    largest = 0  # bytes of an image so far; 0: none is decoded yet

    def room() -> bool:
        fit = max(DECODERS, BYTES_AHEAD // largest) if largest else DECODERS
        return stop.is_set() or len(ahead) < min(fit, BATCHES_AHEAD * batch_size)

    def put(item: Future[Decoded] | None) -> None:
        with changed:
            changed.wait_for(room)
            ahead.append(item)
            changed.notify()

    def take() -> Decoded | None:
        nonlocal largest
        with changed:
            changed.wait_for(lambda: ahead)
            future = ahead.popleft()
        sample = None if future is None else future.result()
        with changed:
            largest = max(largest, 1 if sample is None or sample.image is None else sample.image.nbytes)
            changed.notify()
        return sample

    def produce() -> None:
        try:
            contents = in_folder(unit, members.files) if members.files else in_tar(unit, members)
            for place, (key, (content, spent)) in enumerate(zip(members.keys, timed(contents), strict=True)):
                file = members.files[place] if members.files else None
                work = (key, unit.start + place, refuse(key) or content, convert, file, key in skip)
                put(pool.submit(decode_timed, spent, *work))
                if stop.is_set():
                    return
        except BaseException as error:  # raised again where the batches are consumed
            broken.append(error)
        finally:
            put(None)

    reader = threading.Thread(target=produce, name=f"read {unit.unit}", daemon=True)
    reader.start()
    try:
        batch: list[Decoded] = []
        while (sample := take()) is not None:
            batch.append(sample)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if broken:
            raise broken[0]
        if batch:
            yield batch
    finally:
        with changed:
            stop.set()
            changed.notify()
        reader.join()
        pool.shutdown(cancel_futures=True)


def timed(contents: Iterator[Content]) -> Iterator[tuple[Content, float]]:
    """Each content, and the seconds that it took to get."""
    mark = time.perf_counter()
    for content in contents:
        yield content, time.perf_counter() - mark
        mark = time.perf_counter()


def in_folder(unit: Unit, files: Sequence[str]) -> Iterator[Content]:
    """The content of each file, in order."""
    folder = at(unit.shard)
    for name in files:
        try:
            if why := unsafe(folder, name):
                yield UnreadableImage(why)
            elif (length := size(folder / name)) > MAX_BYTES:
                yield UnreadableImage(f"a file of {length:,} bytes, more than {MAX_BYTES:,}")
            else:
                yield {PurePosixPath(name).suffix.lower()[1:]: (folder / name).read_bytes()}
        except FileNotFoundError:
            if not fingerprint(folder):
                raise  # the folder is gone, not the file
            yield UnreadableImage("not in the folder any more; did it change after planning?")
        except PermissionError:
            if not isinstance(folder, Path):
                raise  # the credentials, not the file
            yield UnreadableImage("the file may not be read")


def stays_inside(name: str) -> bool:
    """Whether a name is that of one file below the folder it stands for, by this name only."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and str(path) == name


def unsafe(folder: Location, name: str) -> str | None:
    """Why a name in a folder is not that of one of its files, if so: it may come from somebody else's tar."""
    if not stays_inside(name):  # object stores have such names
        return "its name is not that of one file in the folder"
    if not isinstance(folder, Path):
        return None
    file = folder / name
    if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(folder)):
        return "a link that leads out of the folder"
    if file.is_symlink() and not file.exists():
        return "a link that leads nowhere"
    if file.exists() and not file.is_file():  # a pipe would be waited for without end
        return "not a regular file"
    return None


def in_tar(unit: Unit, members: Members) -> Iterator[Content]:
    """The members of each planned key, in order."""
    damage: DamagedShard | None = None
    expected, planned = iter(members.keys), set(members.keys)
    shard = at(unit.shard)
    links = {name: (data, length) for name, data, length in members.links}
    with shard.open("rb") as file:
        # What was planned behind damage is found behind it.
        tar = Tar(file, size(shard), unit.offset, unit.end, members.names, salvage=True, links=links)
        try:
            for group in tar.samples():
                if group[0].offset >= unit.end:
                    break
                if group[0].key not in planned:  # not in data.subset
                    continue
                for key in expected:
                    if key == group[0].key:
                        yield content_of(tar, group)
                        break
                    yield missing(None)
        except DamagedShard as error:
            damage = error
    for _ in expected:
        yield missing(damage)


def content_of(tar: Tar, group: list[Member]) -> Content:
    if lost := next((member.lost for member in group if member.lost is not None), None):
        return UnreadableImage(lost)
    if (total := sum(member.size for member in group)) > MAX_BYTES:
        return UnreadableImage(f"a sample of {total:,} bytes, more than {MAX_BYTES:,}")
    if any(member.data + member.size > tar.size for member in group):
        return UnreadableImage("the shard cannot be read here: it ends inside this sample")
    content = {member.suffix: tar.content(member) for member in group}
    for member in group:
        if content[member.suffix].endswith(b"\0") and tar.in_hole(member.data, member.size):
            return UnreadableImage("the shard cannot be read here: a hole of zeros begins inside this sample")
    return content


def missing(damage: DamagedShard | None) -> Exception:
    if damage is not None:
        return UnreadableImage(f"the shard cannot be read here: {damage}")
    return UnreadableImage("not in the shard any more; did it change after planning?")


def decode_timed(fetching: float, *work: Any) -> Decoded:
    """`decode`, and what it took."""
    mark = time.perf_counter()
    sample = decode(*work)
    return replace(sample, fetching=fetching, decoding=time.perf_counter() - mark)
