"""Images of more than 8 bits, which Pillow reads only where they are grey, and what their values mean.

Of two bytes a channel Pillow keeps the upper one. Its decoders are asked twice here, once for each byte.
"""

import sys
from io import BytesIO
from typing import Any, cast, get_args

import numpy as np
from PIL import Image, ImageOps

from kintsugi.errors import UnreadableImage
from kintsugi.pipeline.data.colour import transform_of
from kintsugi.pipeline.wanted import Range

RANGES: dict[str, tuple[float, float]] = {
    name: cast(tuple[float, float], tuple(map(float, name[1:-1].split(",")))) for name in get_args(Range)
}
DIM = 4096  # values below it may be 12 bits in 16: 6 % of white
DARK = 255  # what is nowhere brighter than this part of the range is on another one
OVERSHOOT = 2.5  # on [-1, 1]: the filters of resizing go to 1.7
DEVIATIONS = 8  # of the noise

MAX_COLOUR = 40_000_000  # pixels of 16 bits in colour, each of which takes 20 bytes
NATIVE = "L" if sys.byteorder == "little" else "B"
OTHER = {"L": "B", "B": "L"}
TIFF_BITS, TIFF_PLANES = 258, 284


def deep(image: Image.Image, stated: str | None = None) -> np.ndarray | None:
    """(H, W, 1 or 3) float32 on [-1, 1] of an image with more than 8 bits, over white; None: it has 8.

    Args:
        image: as it was opened, not yet decoded.
        stated: `data.range`.

    Raises:
        UnreadableImage: values outside of the range, or of which nothing says what white is.
    """
    bits, rawmode = bits_of(image), rawmode_of(image)
    if bits > 8 and len(image.getbands()) > 1 and image.width * image.height > MAX_COLOUR:
        raise UnreadableImage(
            f"{image.width}x{image.height} pixels of {bits} bits in colour, more than {MAX_COLOUR:,}"
        )
    if image.mode == "F":
        if stated is None:
            raise UnreadableImage(
                "an image of floating point numbers; say with data.range what they are on: [-1,1], [0,1], "
                "[0,255] or [0,65535]"
            )
        return on_range(np.asarray(ImageOps.exif_transpose(image))[..., None], stated)
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(ImageOps.exif_transpose(image))[..., None]
    elif bits <= 8:
        return None
    elif image.format == "PPM":
        values = netpbm(image)
    elif rawmode.startswith(("RGB;16", "RGBX;16", "RGBA;16", "LA;16")) and planes_together(image):
        values = both_bytes(image, rawmode)
    else:
        raise UnreadableImage(
            f"{bits} bits a channel, stored as {rawmode or 'unknown'}, which is not read; "
            "store 8 bits, or 16 of RGB"
        )
    if transform_of(image) is not None:
        raise UnreadableImage(
            "more than 8 bits with an ICC profile other than sRGB, which is not converted; convert it to sRGB"
        )
    alpha: np.ndarray | None = None
    if values.shape[-1] in (2, 4):
        values, alpha = values[..., :-1], values[..., -1:] / np.float32(65535)
    if bits == 12 or image.format == "PPM":  # the file says what white is; Pillow has scaled the latter
        top = 4095.0 if bits == 12 else 65535.0
    else:
        top = white(values, stated)
    levels: np.ndarray = bounded(values, 0, top).astype(np.float32)
    levels /= np.float32(top / 2)  # in place: such images are large
    levels -= 1
    if alpha is not None:
        levels = levels * alpha + (1 - alpha)
    elif isinstance(key := image.info.get("transparency"), int | tuple):  # of PNG: what is transparent
        levels[(values == np.asarray(key)).all(-1)] = 1
    return levels


def bits_of(image: Image.Image) -> int:
    """Bits of a channel in the file."""
    arguments = tile_arguments(image)
    if image.format == "PPM" and image.mode == "RGB" and len(arguments) > 1:
        return int(arguments[1]).bit_length()
    if image.format == "TIFF":
        stated = getattr(image, "tag_v2", {}).get(TIFF_BITS, (8,))
        return max(stated) if isinstance(stated, tuple) else 8
    return 16 if ";16" in rawmode_of(image) else 8


def tile_arguments(image: Image.Image) -> tuple[Any, ...]:
    """How Pillow will decode it, the raw mode first."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def rawmode_of(image: Image.Image) -> str:
    """Pillow's name for how its decoder unpacks the image; "" where it has none."""
    arguments = tile_arguments(image)
    return arguments[0] if arguments and isinstance(arguments[0], str) else ""


def planes_together(image: Image.Image) -> bool:
    """Whether the channels of a pixel lie beside each other, as in all but some TIFFs."""
    return getattr(image, "tag_v2", {}).get(TIFF_PLANES, 1) == 1


def both_bytes(image: Image.Image, rawmode: str) -> np.ndarray:
    """(H, W, C) of 16 bits: decoded once as it is and once as if its bytes were in the other order."""
    twin = again(image)
    if rawmode.startswith("LA"):  # in which both bytes of both channels are a picture of four
        twin.tile = [tile._replace(args=("RGBA",)) for tile in twin.tile]
        high_low = np.asarray(ImageOps.exif_transpose(twin)).astype(np.uint16)
        return high_low[..., 0::2] << 8 | high_low[..., 1::2]
    order = NATIVE if rawmode[-1] == "N" else rawmode[-1]
    swapped = rawmode[:-1] + OTHER[order]
    twin.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:]))
        for tile in twin.tile
    ]
    values = np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    values <<= 8
    values |= np.asarray(ImageOps.exif_transpose(twin))
    return values


def again(image: Image.Image) -> Any:
    """The image opened anew, from the bytes that it is of."""
    file = cast(Any, image).fp
    place = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(place)
    return Image.open(BytesIO(content), formats=(image.format or "",))


def netpbm(image: Image.Image) -> np.ndarray:
    """(H, W, 3) of a binary PPM with two bytes a channel, scaled to 16 bits."""
    tile = cast(Any, image).tile[0]
    if tile.codec_name != "ppm":
        raise UnreadableImage("a text PPM of more than 8 bits; write a binary one")
    file = cast(Any, image).fp
    file.seek(tile.offset)
    count = image.width * image.height * 3
    content = file.read(2 * count)
    if len(content) < 2 * count:
        raise UnreadableImage(f"truncated: {len(content):,} of {2 * count:,} bytes of pixels")
    values = np.frombuffer(content, ">u2").reshape(image.height, image.width, 3)
    top = int(tile.args[1])
    return np.rint(bounded(values, 0, top) * (65535 / top)).astype(np.uint16)


def white(values: np.ndarray, stated: str | None) -> float:
    """The value of white among integers of 16 bits; raises an UnreadableImage where nothing says it."""
    if stated is not None and RANGES[stated][1] > 1:
        top = RANGES[stated][1]
        refuse_dark(values, stated)
        return top
    if 0 < (largest := values.max()) < DIM:
        raise UnreadableImage(
            f"an image of 16 bits with no value above {largest}: is it of 12 bits or fewer? Say with "
            "data.range=[0,4095] what white is, or with data.range=[0,65535] that it is as dark as that"
        )
    return 65535.0


def on_range(values: np.ndarray, stated: str | None, deviation: float = 0.0) -> np.ndarray:
    """Floating point numbers of an image on a range, as float32 on [-1, 1].

    Args:
        stated: `data.range`; None: [-1, 1] if they look so.
        deviation: of their noise, on [-1, 1].

    Raises:
        UnreadableImage: they are on another range.
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    seen = f"values from {low:g} to {high:g}"
    if not np.isfinite((low, high)).all():
        raise UnreadableImage("the array holds NaN or infinity")
    if stated is None and low >= 0 and high > 0:
        raise UnreadableImage(
            f"{seen}: say what they are on with data.range=[0,1], [0,255] or [0,65535], or with "
            "data.range=[-1,1] that nothing is darker than mid-grey"
        )
    name = stated or "[-1,1]"
    bottom, top = RANGES[name]
    refuse_dark(values, name)
    levels = values.astype(np.float32)
    if name != "[-1,1]":
        levels = (levels - np.float32(bottom)) / np.float32((top - bottom) / 2) - 1
    if max(-levels.min(initial=0), levels.max(initial=0)) > OVERSHOOT + DEVIATIONS * deviation:
        raise UnreadableImage(f"{seen}, far outside of {name}; say with data.range what they are on")
    return levels


def refuse_dark(values: np.ndarray, name: str) -> None:
    """Raise an UnreadableImage if the brightest value is so dark that the range must be another one."""
    top = RANGES[name][1]
    if top > 1 and values.size and 0 < values.max() <= top / DARK:
        raise UnreadableImage(f"no value above {values.max():g}, which on data.range={name} is black")


def bounded(values: np.ndarray, low: float, top: float) -> np.ndarray:
    """The values; raises an UnreadableImage if some are outside."""
    if values.size and (values.min() < low or values.max() > top):
        raise UnreadableImage(
            f"values from {values.min():g} to {values.max():g}, outside of [{low:g},{top:g}]; "
            "say with data.range what they are on"
        )
    return values


def of_eight_bits(levels: np.ndarray) -> bool:
    """Whether 8 bits hold all values on [-1, 1]: many a file of 16 bits was made of 8."""
    return all(
        (np.abs((row + np.float32(1)) * np.float32(127.5) - rounded(row)) < 1e-3).all() for row in levels
    )


def rounded(levels: np.ndarray) -> np.ndarray:
    """[-1, 1] → uint8."""
    return np.rint((levels + np.float32(1)) * np.float32(127.5)).clip(0, 255).astype(np.uint8)
