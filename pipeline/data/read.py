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
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kintsugi.errors import UnreadableImage, error_text
from kintsugi.operators.arrays import read_array
from kintsugi.pipeline.data.colour import in_srgb
from kintsugi.pipeline.data.depth import deep, of_eight_bits, on_range, rounded
from kintsugi.pipeline.data.plan import Members, Unit
from kintsugi.pipeline.data.shards import IMAGE_SUFFIXES, DamagedShard, Member, Tar, fingerprint
from kintsugi.pipeline.job import Range
from kintsugi.pipeline.storage import Location, at, pause, size

# fmt: off
FORMATS = {
    "PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm", "GIF": "gif",
    "AVIF": "avif",
}
# fmt: on
"""What Pillow may take a file for, with a suffix: some of its other decoders start programs."""

MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 30  # of one sample's members together
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of BT.601, as Pillow's mode L
MAX_PAGES = 64  # that are looked at for whether they are images of their own
REDUCED_OR_MASK, SUBFILE_TYPE = 5, 254  # of TIFF: the page belongs to another one
BATCHES_AHEAD = 3
BYTES_AHEAD = 1 << 30  # of decoded images, if that is less
DECODERS = 2
MEMORY_ATTEMPTS = 4  # to decode a sample for which there is too little

Content = dict[str, Any] | Exception
"""A sample's members by suffix, or why the shard does not give them."""


@dataclass(frozen=True)
class Decoded:
    """One sample of a unit, or the error that takes its place.

    Attributes:
        image: an image (H, W, 3), uint8 or, of more than 8 bits, float32 on [-1, 1]; or a measurement
            (C, h, w) float32 on [-1, 1].
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


def decode(key: str, index: int, content: Content, convert: "Convert", file: str | None) -> Decoded:
    """Decode one sample; every failure becomes the sample's error."""
    label = source = None

    def note(what: str) -> None:
        nonlocal source
        source = what

    for attempt in range(MEMORY_ATTEMPTS):
        if attempt:
            time.sleep(pause(attempt))
        try:
            if isinstance(content, Exception):
                raise content
            label = read_label(content)
            return Decoded(key, index, convert(content, note), None, label, source, file)
        except Exception as error:  # one bad sample is one failed row
            failed = Decoded(key, index, None, error_text(error), label, source, file)
            if not isinstance(error, MemoryError):  # of the machine, which others use too: it may come back
                break
    return failed


Convert = Callable[[dict[str, Any], Callable[[str], None]], np.ndarray]
"""Makes a sample of its members; says format, mode and size as soon as it knows them."""


@dataclass(frozen=True)
class Images:
    """Images of one size: (H, W, 3), uint8 or, of more than 8 bits, float32 on [-1, 1]."""

    size: int
    fit: Literal["exact", "resize_crop"]
    range: Range | None = None

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        with opened(content, note) as image:
            if self.fit == "exact" and image.size != (self.size, self.size):  # before it is decoded
                raise UnreadableImage(
                    f"{image.width}x{image.height} pixels, but data.size is {self.size}; "
                    "set data.fit=resize_crop to resize and crop"
                )
            levels = deep(image, self.range)
            if levels is None or of_eight_bits(levels):
                rgb = to_rgb(image) if levels is None else as_rgb(levels)
                return np.asarray(resize_crop(rgb, self.size))
        planes = [resize_crop(Image.fromarray(levels[..., i]), self.size) for i in range(levels.shape[-1])]
        cropped = np.stack([np.asarray(plane) for plane in planes], -1).clip(-1, 1)
        return np.repeat(cropped, 3 // cropped.shape[-1], -1)


@dataclass(frozen=True)
class Measurements:
    """Measurements of any size: (channels, h, w) float32 on [-1, 1].

    Attributes:
        range: `data.range`. deviation: of the noise, on [-1, 1].
        pixels: whether measurements are images; the values of others have no range.
    """

    channels: int
    range: Range | None = None
    deviation: float = 0.0
    pixels: bool = True

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        if "npy" in content:
            return self.from_array(content["npy"], note)
        with opened(content, note) as image:
            levels = deep(image, self.range)
            if levels is None:
                converted = to_rgb(image)
                levels = np.asarray(converted if self.channels == 3 else converted.convert("L"), np.float32)
                levels = levels.reshape(*levels.shape[:2], -1) / 127.5 - 1
            elif levels.shape[-1] > self.channels:
                levels = (levels @ LUMINANCE)[..., None]
            else:
                levels = np.repeat(levels, self.channels // levels.shape[-1], -1)
        return np.ascontiguousarray(levels.transpose(2, 0, 1))

    def from_array(self, content: bytes, note: Callable[[str], None]) -> np.ndarray:
        """An .npy file, which must hold floating point numbers."""

        def check(shape: tuple[int, ...], kind: np.dtype) -> None:
            note(f"NPY {kind} {'x'.join(map(str, shape))}")
            if kind.kind != "f" or len(shape) != 3:
                raise UnreadableImage(
                    f"an array of {kind} with shape {shape}; measurements are float (C, h, w), on [-1, 1] or "
                    "data.range"
                )

        try:
            values = read_array(content, 3 * MAX_PIXELS, check)
        except ValueError as error:
            raise UnreadableImage(str(error)) from error
        if not np.isfinite(values).all():
            raise UnreadableImage("the array holds NaN or infinity")
        return on_range(values, self.range, self.deviation) if self.pixels else values.astype(np.float32)


def readable() -> tuple[str, ...]:
    """Those of `FORMATS` that the Pillow of this machine reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_image(content: bytes, note: Callable[[str], None] = lambda what: None) -> Image.Image:
    """An image of one of `FORMATS`, not yet decoded, of bounded size and the only one in its file.

    Raises:
        UnidentifiedImageError: it is none.
        UnreadableImage: it is too large, or one of several.
    """
    try:
        image = Image.open(BytesIO(content), formats=readable())
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp":  # the container of both
            raise UnreadableImage(
                "a HEIC or AVIF that the Pillow of this machine does not read; convert it to PNG or JPEG"
            ) from None
        raise UnidentifiedImageError(f"cannot identify image file: none of {', '.join(FORMATS)}") from None
    note(f"{image.format} {image.mode} {image.width}x{image.height}")
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}x{image.height} pixels, more than {MAX_PIXELS:,}")
    if not getattr(image, "is_animated", False):
        return image
    with image:
        if several(image):
            raise UnreadableImage(
                f"a file of several images, pages or frames ({image.format}); make a file of each"
            )
    return Image.open(BytesIO(content), formats=readable())  # at its first picture, whatever was looked at


def several(image: Image.Image) -> bool:
    """Whether a file of several pictures is one of several images.

    Previews and masks in TIFFs are marked as such. The JPEGs of phones (MPO) have smaller pictures behind
    the main one: previews, depth and gain maps. Frames are images.
    """
    if image.format not in ("TIFF", "MPO"):
        return True
    area = image.width * image.height
    for number in range(1, MAX_PAGES):
        try:
            image.seek(number)
        except EOFError:  # that was the last one
            return False
        except Exception:  # a page that is broken; behind a JPEG, often a header for what was cut off
            if image.format == "TIFF":
                return True
            continue
        if image.format == "MPO":
            kind = cast(Any, image).mpinfo[0xB002][number]["Attribute"]["MPType"]
            belongs = image.width * image.height < area and not kind.startswith("Multi-Frame")
        else:
            subfile = cast(Any, image).tag_v2.get(SUBFILE_TYPE, 0)
            belongs = isinstance(subfile, int) and bool(subfile & REDUCED_OR_MASK)
        if not belongs:
            return True
    return True


@contextmanager
def opened(content: dict[str, Any], note: Callable[[str], None]) -> Iterator[Image.Image]:
    """The image among a sample's members, not yet decoded, of bounded size."""
    suffix = next((s for s in IMAGE_SUFFIXES if s in content), None)
    if suffix is None:
        raise UnreadableImage(f"no image among its members ({', '.join(sorted(content)) or 'none'})")
    with open_image(content[suffix], note) as image:
        yield image


def read_label(members: dict[str, Any]) -> int | None:
    text = members.get("cls", b"").strip()
    return int(text) if text.isdigit() and len(text) < 19 else None  # int64


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit sRGB from any mode, upright: grey is repeated, palettes are looked up, alpha is over white.

    Raises:
        UnreadableImage: nothing says what white is; or an ICC profile that is not usable.
    """
    if (levels := deep(image)) is not None:
        return as_rgb(levels)
    image = in_srgb(ImageOps.exif_transpose(image))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def as_rgb(levels: np.ndarray) -> Image.Image:
    """(H, W, 1 or 3) on [-1, 1] as 8-bit RGB."""
    return Image.fromarray(np.repeat(rounded(levels), 3 // levels.shape[-1], -1))


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
