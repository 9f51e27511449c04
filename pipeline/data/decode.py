"""Decode a sample: what is made of its members, or why there is none; and how image files are opened."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kintsugi.errors import UnreadableImage, error_text
from kintsugi.pipeline.data.colour import in_srgb
from kintsugi.pipeline.data.depth import deep, rounded
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES
from kintsugi.pipeline.storage.location import pause

# fmt: off
FORMATS = {
    "PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm", "GIF": "gif",
    "AVIF": "avif",
}
# fmt: on
"""What Pillow may take a file for, with a suffix: some of its other decoders start programs."""
MAX_PIXELS = 100_000_000
MAX_PAGES = 64  # that are looked at for whether they are images of their own
REDUCED_OR_MASK, SUBFILE_TYPE = 5, 254  # of TIFF: the page belongs to another one
MEMORY_ATTEMPTS = 4  # to decode a sample for which there is too little
Content = dict[str, Any] | Exception
"""A sample's members by suffix, or why the shard does not give them."""
BESIDE = "/beside"  # in place of a suffix: the files that are wanted beside the image, by `Wanted.beside`

Convert = Callable[[dict[str, Any], Callable[[str], None]], np.ndarray]
"""Makes a sample of its members; says format, mode and size as soon as it knows them."""


@dataclass(frozen=True)
class Decoded:
    """One sample of a unit, or the error that takes its place.

    Attributes:
        image: an image (H, W, C), uint8 or, of more than 8 bits, float32 on [-1, 1]; or a measurement
            (C, h, w) float32 on [-1, 1].
        beside: the contents of the files that are wanted beside it, by what follows the key in their names.
        truth: of a measurement that has one beside it, as an image.
        skipped: it was not to be decoded; there is neither image nor error.
        fetching, decoding: seconds that a thread took to get its bytes, and to make the image of them.
    """

    key: str
    index: int
    image: np.ndarray | None = None
    error: str | None = None
    label: int | None = None
    source: str | None = None
    file: str | None = None
    beside: Mapping[str, bytes] = field(default_factory=dict)
    truth: np.ndarray | None = None
    skipped: bool = False
    fetching: float = 0.0
    decoding: float = 0.0

    @property
    def array(self) -> np.ndarray:
        """Its image; raises a ValueError where it has none."""
        if self.image is None:
            raise ValueError(f"{self.key}: {self.error or 'not decoded'}")
        return self.image


def decode(
    key: str,
    index: int,
    content: Content,
    convert: Convert,
    file: str | None,
    skipped: bool = False,
    true: Callable[[Mapping[str, bytes]], np.ndarray] | None = None,
) -> Decoded:
    """Decode one sample, unless it is to be skipped; every failure becomes the sample's error.

    true: makes its true image of the files beside it.
    """
    if skipped:
        return Decoded(key, index, file=file, skipped=True)
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
            image = convert({name: of for name, of in content.items() if name != BESIDE}, note)
            beside = content.get(BESIDE, {})
            truth = None if true is None else true(beside)
            return Decoded(key, index, image, None, label, source, file, beside, truth)
        except Exception as error:  # one bad sample is one failed row
            failed = Decoded(key, index, None, error_text(error), label, source, file)
            if not isinstance(error, MemoryError):  # of the machine, which others use too: it may come back
                break
    return failed


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


def image_of(content: dict[str, Any], note: Callable[[str], None]) -> Image.Image:
    """The image among a sample's members; raises as `open_image`, or if there is none."""
    suffix = next((s for s in IMAGE_SUFFIXES if s in content), None)
    if suffix is None:
        raise UnreadableImage(f"no image among its members ({', '.join(sorted(content)) or 'none'})")
    return open_image(content[suffix], note)


def read_label(members: dict[str, Any]) -> int | None:
    """The class among a sample's members, 0 … 10¹⁸ − 1, if there is one."""
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
    """Shorter side to `size` (bicubic, antialiased), then the central square; raises as `resize`."""
    return crop_centre(resize(image, size), size)


def resize(image: Image.Image, size: int, filter: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """Shorter side to `size` pixels.

    Raises:
        UnreadableImage: so long and thin that there would be more than MAX_PIXELS.
    """
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width}x{image.height} would become {width}x{height} pixels")
    return image.resize((width, height), filter) if (width, height) != image.size else image


def crop_centre(image: Image.Image, size: int) -> Image.Image:
    """The central square of size × size."""
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
