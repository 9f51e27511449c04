"""Read a unit: its bytes of the shard through webdataset, decoded in background threads."""

import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO, RawIOBase
from pathlib import Path
from queue import Full, Queue
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from pipeline.commit import error_text
from pipeline.plan import Unit

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm")
MAX_PIXELS = 100_000_000
BATCHES_AHEAD = 3
DECODERS = 2


@dataclass(frozen=True)
class Decoded:
    """One sample of a unit: an image (H, W, 3) uint8, or the error that takes its place."""

    key: str
    index: int
    image: np.ndarray | None = None
    error: str | None = None
    label: int | None = None
    source: str | None = None


class UnreadableImage(Exception):
    """The sample cannot be used as the job asks; the message says why and what to change."""


def read_unit(
    unit: Unit, keys: list[str], size: int, fit: Literal["exact", "resize_crop"], batch_size: int
) -> Iterator[list[Decoded]]:
    """The unit's samples in order, in batches; a few batches are decoded ahead.

    Batch k always holds samples k·batch_size … of the unit, readable or not, so that results do not
    depend on what went before. Every key of the plan appears once.
    """
    ahead: Queue[Future[Decoded] | None] = Queue(BATCHES_AHEAD * batch_size)
    stop = threading.Event()
    pool = ThreadPoolExecutor(DECODERS)
    broken: list[BaseException] = []

    def put(item: Future[Decoded] | None) -> None:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
                return
            except Full:
                continue

    def produce() -> None:
        try:
            for index, (key, members) in enumerate(members_in_order(unit, keys), unit.start):
                put(pool.submit(decode, key, index, members, size, fit))
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
        while (future := ahead.get()) is not None:
            batch.append(future.result())
            if len(batch) == batch_size:
                yield batch
                batch = []
        if broken:
            raise broken[0]
        if batch:
            yield batch
    finally:
        stop.set()
        reader.join()
        pool.shutdown(cancel_futures=True)


def members_in_order(unit: Unit, keys: list[str]) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """(key, members by suffix) for each planned key; an exception where the shard does not give it."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    errors: list[Exception] = []

    def note(error: Exception) -> bool:
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError):
            raise error  # the storage, not the shard: the unit is tried again
        errors.append(error)
        return False

    expected = iter(keys)
    with Path(unit.shard).open("rb") as file:
        stream = Window(file, unit.offset, unit.end)
        members = tar_file_expander([{"url": unit.shard, "stream": stream}], handler=note)
        for sample in group_by_keys(members, handler=note):
            for key in expected:
                if key == sample["__key__"]:
                    yield key, sample
                    break
                yield key, missing(errors)
    for key in expected:
        yield key, missing(errors)


def missing(errors: list[Exception]) -> Exception:
    if errors:
        return UnreadableImage(f"the shard cannot be read here: {errors[-1].args[0]}")
    return UnreadableImage("not in the shard any more; did it change after planning?")


class Window(RawIOBase):
    """Bytes start … end of a file, as a file of their own."""

    def __init__(self, file: Any, start: int, end: int):
        self.file, self.left = file, end - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def __repr__(self) -> str:  # stands in webdataset's error texts, and so in rows
        return "shard"

    def read(self, n: int = -1) -> bytes:
        data: bytes = self.file.read(self.left if n < 0 else min(n, self.left))
        self.left -= len(data)
        return data


def decode(
    key: str, index: int, members: dict[str, Any] | Exception, size: int, fit: Literal["exact", "resize_crop"]
) -> Decoded:
    """Decode one sample; every failure becomes the sample's error."""
    label = source = None
    try:
        if isinstance(members, Exception):
            raise members
        label = read_label(members)
        suffix = next((s for s in IMAGE_SUFFIXES if s in members), None)
        if suffix is None:
            present = sorted(s for s in members if not s.startswith("__"))
            raise UnreadableImage(f"no image among its members ({', '.join(present) or 'none'})")
        with Image.open(BytesIO(members[suffix])) as opened:
            source = f"{opened.format} {opened.mode} {opened.width}x{opened.height}"
            if opened.width * opened.height > MAX_PIXELS:
                raise UnreadableImage(f"{opened.width}x{opened.height} pixels, more than {MAX_PIXELS:,}")
            image = to_size(to_rgb(opened), size, fit)
        return Decoded(key, index, np.asarray(image), label=label, source=source)
    except Exception as error:  # one bad sample is one failed row
        return Decoded(key, index, error=error_text(error), label=label, source=source)


def read_label(members: dict[str, Any]) -> int | None:
    text = members.get("cls", b"").strip()
    return int(text) if text.isdigit() and len(text) < 19 else None  # int64


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode, upright: grey is repeated, palettes are looked up, alpha is over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        values = np.asarray(image).astype(np.float64) / 257  # 65535 → 255
        return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_size(image: Image.Image, size: int, fit: Literal["exact", "resize_crop"]) -> Image.Image:
    """The image itself if it has the right size; otherwise as `fit` says.

    Raises:
        UnreadableImage: the size is wrong and `fit` is "exact".
    """
    if image.size == (size, size):
        image.load()
        return image
    if fit == "exact":
        raise UnreadableImage(
            f"{image.width}x{image.height} pixels, but data.size is {size}; "
            "set data.fit=resize_crop to resize and crop"
        )
    return resize_crop(image, size)


def resize_crop(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to `size` with PIL's antialiased bicubic, then the central square."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
