"""Fuzzing: seeded mutations of good files, what reads them, and what must hold of that.

A target takes bytes and must return, or raise what it declares. `tests/test_fuzz.py` tries a few hundred
inputs of each, `python benchmarks/fuzz.py` as many as there is time for.
"""

import io
import resource
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import SIZE, encode, picture
from PIL import Image, ImageCms

from benchmarks.bad_input import npy, tar_of
from operators import masks
from pipeline.job import Data
from pipeline.metrics.source import as_it_is
from pipeline.pictures import png16
from pipeline.plan import make_plan, read_members, read_units
from pipeline.read import Images, Measurements, decode, read_unit
from pipeline.sharding import Options, Source, store
from pipeline.shards import DamagedShard

SECONDS = 10  # of one input at most
MEMORY = 2 << 30  # bytes that a process may take more than before the first input
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


@dataclass(frozen=True)
class Target:
    """What reads bytes.

    Attributes:
        seeds: good files. check: reads one, and asserts what must hold.
        declared: errors that it may raise.
    """

    seeds: list[bytes]
    check: Callable[[bytes], None]
    declared: tuple[type[Exception], ...] = ()


def mutations(rng: np.random.Generator, content: bytes) -> bytes:
    """The bytes with one to four changes; of a PNG half of the time with checksums that fit."""
    changed = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        changed = CHANGES[rng.integers(len(CHANGES))](rng, changed)
    result = bytes(changed)
    return with_checksums(result) if result.startswith(b"\x89PNG") and rng.random() < 0.5 else result


def place(rng: np.random.Generator, content: bytearray) -> int:
    """Anywhere, but half of the time near the beginning, where headers are."""
    return int(rng.integers(min(len(content), 512 if rng.random() < 0.5 else len(content)) or 1))


def flip(rng: np.random.Generator, content: bytearray) -> bytearray:
    if content:
        content[place(rng, content)] ^= 1 << int(rng.integers(8))
    return content


def extreme(rng: np.random.Generator, content: bytearray) -> bytearray:
    """A number of one to four bytes that is the largest, the smallest or beside them."""
    value, form = EXTREMES[rng.integers(len(EXTREMES))], ["B", "<H", ">H", "<I", ">I"][rng.integers(5)]
    size, start = struct.calcsize(form), place(rng, content)
    content[start : start + size] = struct.pack(form, value % (1 << 8 * size))
    return content


def cut(rng: np.random.Generator, content: bytearray) -> bytearray:
    return content[: place(rng, content)]


def remove(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    del content[start : start + int(rng.integers(1, 64))]
    return content


def repeat(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    end = start + int(rng.integers(1, 64))
    return content[:end] + content[start:end] * int(rng.integers(1, 8)) + content[end:]


def noise(rng: np.random.Generator, content: bytearray) -> bytearray:
    start = place(rng, content)
    content[start : start + 16] = rng.bytes(16)
    return content


CHANGES = [flip, flip, extreme, extreme, cut, remove, repeat, noise]


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what is in them, as far as it has chunks."""
    parts, start = [png[:8]], 8
    while start + 12 <= len(png):
        size = struct.unpack_from(">I", png, start)[0]
        body = png[start + 4 : start + 8 + size]
        if start + 12 + size > len(png):
            break
        parts.append(png[start : start + 4] + body + struct.pack(">I", zlib.crc32(body)))
        start += 12 + size
    return b"".join(parts) + png[start:]


# Images


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def images() -> list[bytes]:
    """One of every format and kind."""
    image, other = Image.fromarray(picture(0)), Image.fromarray(picture(1))
    more = {"save_all": True, "append_images": [other]}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    deep = picture(2).astype(np.uint16) * 257 + 5
    grey = Image.fromarray(deep[..., 0])
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(saved(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM", "GIF", "AVIF")),
        *(saved(image, kind, **more) for kind in ("PNG", "WEBP", "TIFF", "GIF", "AVIF", "MPO")),
        *(saved(image, kind, icc_profile=profile) for kind in ("PNG", "JPEG", "TIFF")),
        saved(image, "TIFF", compression="tiff_lzw"),
        saved(image, "TIFF", compression="jpeg"),
        saved(image, "JPEG", exif=exif, progressive=True),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image.quantize(16), "PNG"),
        saved(image.convert("RGBA"), "PNG", exif=exif),
        *(saved(grey, kind) for kind in ("PNG", "TIFF", "PPM")),
        saved(image.convert("F"), "TIFF"),
        png16(deep),
        b"P6 32 32 65535\n" + deep.tobytes(),
    ]


def check_image(content: bytes) -> None:
    """As an image, as a measurement, for `score`: pixels of the right kind, or an error, never both."""
    source = Source({"a.png": len(content)}, lambda name: content, [], [])
    for convert in (Images(SIZE, "resize_crop", "[0,1]"), Measurements(1), Measurements(3), as_it_is):
        sample = decode("key", 0, {"png": content}, convert, None)
        assert (sample.image is None) == bool(sample.error), sample
        if sample.image is not None:
            assert sample.image.dtype in (np.uint8, np.float32)
            assert sample.image.ndim == 3
            assert np.isfinite(sample.image).all()
    for size in (None, SIZE):
        stored = store(source, "a.png", Options(size=size))
        assert isinstance(stored, str) or stored[1]


def check_array(content: bytes) -> None:
    sample = decode("key", 0, {"npy": content}, Measurements(3), None)
    assert (sample.image is None) == bool(sample.error), sample
    assert sample.image is None or (sample.image.dtype == np.float32 and np.isfinite(sample.image).all())


# Masks


def mask_check(suffix: str) -> Callable[[bytes], None]:
    def check(content: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(content)
            file.flush()
            known = masks.from_file(file.name, SIZE, SIZE, "white")
        assert known.shape[-2:] == (SIZE, SIZE)
        assert known.any()
        assert not known.all()

    return check


HOLE = np.tri(SIZE, dtype=np.uint8)


def npz(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, m=HOLE)
    return buffer.getvalue()


# Shards


def check_shard(content: bytes) -> None:
    """Every key of the plan has one sample, in the plan's order, whatever is in the tar."""
    with tempfile.TemporaryDirectory() as folder:
        shard, plan = Path(folder) / "s.tar", Path(folder) / "plan.parquet"
        shard.write_bytes(content)
        make_plan(Data(shards="unused", size=SIZE, damaged="salvage"), [shard], 2, plan)
        for unit in read_units(plan):
            members = read_members(plan, unit)
            read = [s.key for batch in read_unit(unit, members, Images(SIZE, "exact"), 2) for s in batch]
            assert read == list(members.keys)


def shards() -> list[bytes]:
    files = [(f"{n}.png", encode(picture(n, 8))) for n in range(4)]
    return [tar_of(*files), tar_of(*[(f"{'long' * 40}/{name}", file) for name, file in files])]


def targets() -> dict[str, Target]:
    """By name; seeds are made anew each time."""
    from pipeline.errors import JobError

    array = np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 8, 8)
    return {
        "images": Target(images(), check_image),
        "npy": Target([npy(array), npy(array.astype(float)), npy(np.asfortranarray(array))], check_array),
        "masks.png": Target([saved(Image.fromarray(HOLE * 255), "PNG")], mask_check(".png"), (ValueError,)),
        "masks.npy": Target([npy(HOLE), npy(HOLE / 1.0)], mask_check(".npy"), (ValueError,)),
        "masks.npz": Target([npz(True), npz(False)], mask_check(".npz"), (ValueError,)),
        "tars": Target(shards(), check_shard, (JobError, DamagedShard)),
    }


def inputs(target: Target, seed: int) -> Iterator[bytes]:
    """Mutations without end, of the seeds in turn."""
    rng = np.random.default_rng(seed)
    while True:
        for content in target.seeds:
            yield mutations(rng, content)


def memory() -> int:
    """Bytes that this process has ever held at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def failure(target: Target, content: bytes) -> str | None:
    """What is wrong with how a target takes an input, if anything."""
    started = time.perf_counter()
    try:
        target.check(content)
    except target.declared:
        pass
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    taken = time.perf_counter() - started
    return f"took {taken:.0f} s" if taken > SECONDS else None
