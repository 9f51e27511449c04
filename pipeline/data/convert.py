"""What makes a sample of its members: an image of the job's size and channels, or a measurement of any size.

Three channels are sRGB, one its luma. Any other number is as it is stored: nothing is converted, and an alpha
channel is one like the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from kintsugi.errors import UnreadableImage, error_text
from kintsugi.operators.arrays import read_array
from kintsugi.pipeline.data.decode import as_rgb, image_of, resize_crop, to_rgb
from kintsugi.pipeline.data.depth import bits_of, bounded, deep, of_eight_bits, on_range, white
from kintsugi.pipeline.data.names import IMAGE_SUFFIXES, kind_of
from kintsugi.pipeline.data.pictures import MAX_VALUES
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB
from kintsugi.pipeline.wanted import Range, Truth

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of BT.601, as Pillow's mode L


@dataclass(frozen=True)
class Images:
    """Images of one size: (H, W, channels), uint8 or, of more than 8 bits, float32 on [-1, 1]."""

    size: int
    fit: Literal["exact", "resize_crop"]
    range: Range | None = None
    channels: int = 3

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        if prefers_array(content, self.channels):
            planes = array_of(content["npy"], note, self.channels, self.range)
            refuse_channels(len(planes), self.channels, f"an array of {len(planes)} channels")
            self.refuse_size(*planes.shape[:0:-1])
            return self.fitted(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        with image_of(content, note) as image:
            self.refuse_size(*image.size)  # before it is decoded
            levels = self.fitted(levels_of(image, self.channels, self.range))
        return np.repeat(levels, self.channels // levels.shape[-1], -1)

    def refuse_size(self, width: int, height: int) -> None:
        """Raise an UnreadableImage for another size than the job's, where that is to be exact."""
        if 0 in (width, height) or (self.fit == "exact" and (width, height) != (self.size, self.size)):
            raise UnreadableImage(
                f"{width}x{height} pixels, but data.size is {self.size}; "
                "set data.fit=resize_crop to resize and crop"
            )

    def fitted(self, levels: np.ndarray) -> np.ndarray:
        """(H, W, C) as `resize_crop` makes it, within the range."""
        if levels.shape[-1] == 3 and levels.dtype == np.uint8:
            return np.asarray(resize_crop(Image.fromarray(levels), self.size))
        planes = [resize_crop(Image.fromarray(levels[..., i]), self.size) for i in range(levels.shape[-1])]
        cropped = np.stack([np.asarray(plane) for plane in planes], -1)
        return cropped if cropped.dtype == np.uint8 else cropped.clip(-1, 1)


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
        with image_of(content, note) as image:
            return self.from_image(image)

    def from_image(self, image: Image.Image) -> np.ndarray:
        """An image, upright, and over white if it has 1 or 3 channels; raises as `deep` and `to_rgb`."""
        levels = deep(image, self.range) if self.channels in GREY_OR_RGB else None
        if levels is None:
            levels = eight_bits_of(image, self.channels).astype(np.float32) / 127.5 - 1
        levels = of_channels(levels, self.channels)
        levels = np.repeat(levels, self.channels // levels.shape[-1], -1)
        return np.ascontiguousarray(levels.transpose(2, 0, 1))

    def from_array(self, content: bytes, note: Callable[[str], None]) -> np.ndarray:
        """An .npy file; of what is no image it must hold floating point numbers."""
        if not self.pixels:
            return read_values(content, note, ("f2", "f4", "f8"), (3,)).astype(np.float32)
        levels = array_of(content, note, self.channels, self.range, self.deviation)
        return levels if levels.dtype == np.float32 else levels / np.float32(127.5) - 1


def prefers_array(content: dict[str, Any], channels: int) -> bool:
    """Whether a sample's array is its image: of 1 and 3 channels only where there is no picture."""
    others = any(suffix in content for suffix in IMAGE_SUFFIXES)
    return "npy" in content and not (channels in GREY_OR_RGB and others)


def levels_of(image: Image.Image, channels: int, stated: str | None) -> np.ndarray:
    """(H, W, 1 or channels) of an image, uint8 or, of more than 8 bits, float32 on [-1, 1].

    Raises:
        UnreadableImage: as `deep`, `to_rgb` and `eight_bits_of`.
    """
    levels = deep(image, stated) if channels in GREY_OR_RGB else None
    if levels is None:
        return eight_bits_of(image, channels)
    if of_eight_bits(levels):
        return in_channels(as_rgb(levels), channels)
    return of_channels(levels, channels)


def eight_bits_of(image: Image.Image, channels: int) -> np.ndarray:
    """(H, W, channels) uint8, upright: sRGB over white or its luma, of other numbers of channels as stored.

    Raises:
        UnreadableImage: as `to_rgb`, or what is stored has another number of channels, or more than 8 bits.
    """
    if channels in GREY_OR_RGB:
        return in_channels(to_rgb(image), channels)
    refuse_channels(len(image.getbands()), channels, f"an image of mode {image.mode}")
    if bits_of(image) > 8 or image.mode == "CMYK":
        raise UnreadableImage(
            f"{bits_of(image)} bits a channel of {image.mode}, which are not read as {channels} channels; "
            "write an .npy (C, H, W)"
        )
    return np.asarray(ImageOps.exif_transpose(image))


def in_channels(rgb: Image.Image, channels: int) -> np.ndarray:
    """(H, W, channels) of an RGB image, 3 of them, or its luma."""
    found = np.asarray(rgb if channels == 3 else rgb.convert("L"))
    return found.reshape(*found.shape[:2], -1)


def of_channels(levels: np.ndarray, channels: int) -> np.ndarray:
    """Levels (H, W, C) with at most so many channels: where there is room for one, colours become luma."""
    return levels if levels.shape[-1] <= channels else (levels @ LUMINANCE)[..., None]


def refuse_channels(found: int, channels: int, what: str) -> None:
    """Raise an UnreadableImage for another number of channels than the job's."""
    if found != channels:
        raise UnreadableImage(f"{what}, but {channels} channels are asked for (data.channels)")


def array_of(
    content: bytes, note: Callable[[str], None], channels: int, stated: str | None, deviation: float = 0.0
) -> np.ndarray:
    """(C, H, W) of an .npy file that is an image: uint8, or float32 on [-1, 1].

    Of 8 bits white is 255, of 16 what it is in pictures, and floats are on `data.range`.

    Args:
        channels: where it is one, (H, W) will do. deviation: of the noise, on [-1, 1].

    Raises:
        UnreadableImage: it is cut, of another type or shape, or on another range.
    """
    values = read_values(content, note, ("f2", "f4", "f8", "u1", "u2"), (3, 2) if channels == 1 else (3,))
    planes = values[None] if values.ndim == 2 else values
    if planes.dtype.kind == "f":
        return on_range(planes, stated, deviation)
    if planes.dtype == np.uint8:
        return planes
    top = white(planes, stated)
    return bounded(planes, 0, top).astype(np.float32) / np.float32(top / 2) - 1


def read_values(
    content: bytes, note: Callable[[str], None], kinds: Sequence[str], dimensions: Sequence[int]
) -> np.ndarray:
    """The array of an .npy file of some types and dimensions; raises an UnreadableImage."""

    def check(shape: tuple[int, ...], kind: np.dtype) -> None:
        note(f"NPY {kind} {'x'.join(map(str, shape))}")
        if f"{kind.kind}{kind.itemsize}" not in kinds or len(shape) not in dimensions:
            also = ", or of 8 or 16 bits without a sign" if "u1" in kinds else ""
            raise UnreadableImage(
                f"an array of {kind} with shape {shape}; it must be (C, h, w), of floats on [-1, 1] or "
                f"data.range{also}"
            )

    try:
        values = read_array(content, MAX_VALUES, check)
    except ValueError as error:
        raise UnreadableImage(str(error)) from error
    if not np.isfinite(values).all():
        raise UnreadableImage("the array holds NaN or infinity")
    return values


def true_image(beside: Mapping[str, bytes], truth: Truth) -> np.ndarray:
    """The true image among the files beside a measurement, of any size, as `Images` has them.

    Raises:
        UnreadableImage: there is none in the file. MemoryError: there is too little of it.
    """
    try:
        with image_of({kind_of(truth.member): beside[truth.member]}, lambda what: None) as image:
            levels = levels_of(image, truth.channels, truth.range)
            return np.repeat(levels, truth.channels // levels.shape[-1], -1)
    except MemoryError:  # of the machine, which others use too
        raise
    except Exception as error:
        raise UnreadableImage(f"its truth, {truth.member}: {error_text(error)}") from error
