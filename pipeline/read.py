"""Read a unit: its bytes of the shard, decoded in background threads."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.commit import error_text
from pipeline.plan import Members, Unit
from pipeline.shards import BLOCK, IMAGE_SUFFIXES, DamagedShard, Member, Tar, measure
from pipeline.storage import Location, at, size

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}
"""What Pillow may take a file for, with a suffix: some of its other decoders start programs."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30  # of one sample's members together
BATCHES_AHEAD = 3
BYTES_AHEAD = 1 << 30  # of decoded images, if that is less
DECODERS = 2

Content = dict[str, Any] | Exception
"""A sample's members by suffix, or why the shard does not give them."""


@dataclass(frozen=True)
class Decoded:
    """One sample of a unit, or the error that takes its place.

    Attributes:
        image: an image (H, W, 3) uint8, or a measurement (C, h, w) float32 on [-1, 1].
        fetching, decoding: seconds that a thread took to get its bytes, and to make the image of them.
    """

    key: str
    index: int
    image: np.ndarray | None = None
    error: str | None = None
    label: int | None = None
    source: str | None = None
    file: str | None = None
    fetching: float = 0.0
    decoding: float = 0.0


class UnreadableImage(Exception):
    """The sample cannot be used as the job asks; the message says why and what to change."""


def read_unit(
    unit: Unit,
    members: Members,
    convert: "Convert",
    batch_size: int,
    skip: Callable[[str], Exception | None] = lambda key: None,
) -> Iterator[list[Decoded]]:
    """The unit's samples in order, in batches; a few batches are decoded ahead, fewer of large images.

    Batch k always holds samples k·batch_size … of the unit, readable or not, so that results do not
    depend on what went before. Every key of the plan appears once.

    Args:
        skip: an error for samples that are not to be decoded.
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
                work = (key, unit.start + place, skip(key) or content, convert, file)
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
            if not measure(folder):
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
        if content[member.suffix].endswith(bytes(BLOCK)) and tar.in_hole(member.data, member.size):
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


def decode(key: str, index: int, content: Content, convert: "Convert", file: str | None) -> Decoded:
    """Decode one sample; every failure becomes the sample's error."""
    label = source = None

    def note(what: str) -> None:
        nonlocal source
        source = what

    try:
        if isinstance(content, Exception):
            raise content
        label = read_label(content)
        return Decoded(key, index, convert(content, note), None, label, source, file)
    except Exception as error:  # one bad sample is one failed row
        return Decoded(key, index, None, error_text(error), label, source, file)


Convert = Callable[[dict[str, Any], Callable[[str], None]], np.ndarray]
"""Makes a sample of its members; says format, mode and size as soon as it knows them."""


@dataclass(frozen=True)
class Images:
    """Images of one size: (H, W, 3) uint8."""

    size: int
    fit: Literal["exact", "resize_crop"]

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        with opened(content, note) as image:
            if self.fit == "exact" and image.size != (self.size, self.size):  # before it is decoded
                raise UnreadableImage(
                    f"{image.width}x{image.height} pixels, but data.size is {self.size}; "
                    "set data.fit=resize_crop to resize and crop"
                )
            return np.asarray(resize_crop(to_rgb(image), self.size))


@dataclass(frozen=True)
class Measurements:
    """Measurements of any size: (channels, h, w) float32 on [-1, 1]."""

    channels: int

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        if "npy" in content:
            return self.from_array(content["npy"], note)
        with opened(content, note) as image:
            if image.mode.startswith("I;16"):  # the one kind of 16 bits that Pillow reads as such
                levels = np.asarray(image, np.float32)[..., None] / 32767.5
                levels = np.repeat(levels, self.channels, -1)
            else:
                converted = to_rgb(image)
                levels = np.asarray(converted if self.channels == 3 else converted.convert("L"), np.float32)
                levels = levels.reshape(*levels.shape[:2], -1) / 127.5
        return np.ascontiguousarray((levels - 1).transpose(2, 0, 1))

    def from_array(self, content: bytes, note: Callable[[str], None]) -> np.ndarray:
        """An .npy file, which must hold floating point numbers."""
        stream = BytesIO(content)
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in reader:
            raise UnreadableImage(f"an .npy file of version {version}; write it with numpy.save")
        try:
            shape, _, kind = reader[version](stream)  # before any memory is taken for the values
        except Exception as error:  # numpy's own message advises to trust the file
            raise UnreadableImage("an .npy file with a header that numpy.save does not write") from error
        note(f"NPY {kind} {'x'.join(map(str, shape))}")
        if kind.kind != "f" or len(shape) != 3:
            raise UnreadableImage(
                f"an array of {kind} with shape {shape}; measurements are float (C, h, w) on [-1, 1]"
            )
        if np.prod(shape, dtype=float) > 3 * MAX_PIXELS:
            raise UnreadableImage(f"an array of shape {shape}: more than {3 * MAX_PIXELS:,} values")
        if min(shape) < 0 or stream.tell() + np.prod(shape, dtype=float) * kind.itemsize > len(content):
            raise UnreadableImage(f"cut: {len(content):,} bytes do not hold an array of shape {shape}")
        values = np.load(BytesIO(content), allow_pickle=False).astype(np.float32)
        if not np.isfinite(values).all():
            raise UnreadableImage("the array holds NaN or infinity")
        return values


def open_image(content: bytes) -> Image.Image:
    """An image of one of `FORMATS`, not yet decoded.

    Raises:
        UnidentifiedImageError: it is none.
    """
    try:
        return Image.open(BytesIO(content), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"cannot identify image file: none of {', '.join(FORMATS)}") from None


@contextmanager
def opened(content: dict[str, Any], note: Callable[[str], None]) -> Iterator[Image.Image]:
    """The image among a sample's members, not yet decoded, of bounded size."""
    suffix = next((s for s in IMAGE_SUFFIXES if s in content), None)
    if suffix is None:
        raise UnreadableImage(f"no image among its members ({', '.join(sorted(content)) or 'none'})")
    with open_image(content[suffix]) as image:
        note(f"{image.format} {image.mode} {image.width}x{image.height}")
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
        yield image


def read_label(members: dict[str, Any]) -> int | None:
    text = members.get("cls", b"").strip()
    return int(text) if text.isdigit() and len(text) < 19 else None  # int64


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode, upright: grey is repeated, palettes are looked up, alpha is over white.

    Raises:
        UnreadableImage: floating point numbers, of which nothing says what white is.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 → 255
    if image.mode == "F":  # Pillow would cut it to 0 … 255, whatever its range is
        raise UnreadableImage("an image of floating point numbers; store 8 or 16 bits")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def resize_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` with PIL's antialiased bicubic, then the central square.

    Raises:
        UnreadableImage: so long and thin that it would be too large in between.
    """
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}x{image.height} would become {width}x{height} pixels")
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
