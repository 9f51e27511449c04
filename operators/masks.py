"""Inpainting masks, boolean (H, W), true = known pixel. What is random is a function of its seed alone."""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.operators.arrays import array_of_zip, content_of, read_array

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".npy", ".npz")
MAX_VALUES = 100_000_000
MAX_BYTES = 1 << 28

Seed = int | np.random.Generator


def generator(seed: Seed) -> np.random.Generator:
    """The generator itself, or that of a seed."""
    return seed if isinstance(seed, np.random.Generator) else np.random.Generator(np.random.Philox(seed))


def box(height: int, width: int, fraction: float = 0.5) -> Tensor:
    """Unknown: a centred box whose sides are `fraction` of the image's."""
    known = torch.ones(height, width, dtype=torch.bool)
    h, w = round(height * fraction), round(width * fraction)
    top, left = (height - h) // 2, (width - w) // 2
    known[top : top + h, left : left + w] = False
    return known


def half(height: int, width: int) -> Tensor:
    """Unknown: the right half."""
    return (torch.arange(width) < width // 2).expand(height, width).clone()


def random(height: int, width: int, known: float, seed: Seed) -> Tensor:
    """Known: each pixel by itself with probability `known`."""
    return torch.from_numpy(generator(seed).random((height, width)) < known)


def freeform(height: int, width: int, holes: tuple[float, float], seed: Seed) -> Tensor:
    """Unknown: random brush strokes that cover a share of the image within `holes`.

    Strokes are random walks with turning angles and varying width, after the free-form masks of
    gated convolution (Yu et al. 2019, 1806.03589); strokes that overshoot the range are redrawn.
    """
    low, high = holes
    rng = generator(seed)
    size = min(height, width)
    canvas, unknown = Image.new("L", (width, height), 1), 0.0
    for _ in range(10_000):
        if unknown >= low:
            return torch.from_numpy(np.array(canvas, dtype=bool))
        trial = canvas.copy()
        draw = ImageDraw.Draw(trial)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        angle = rng.uniform(0, 2 * np.pi)
        brush = max(1, int(rng.uniform(0.02, 0.08) * size))
        for _ in range(rng.integers(2, 8)):
            angle += rng.uniform(-1.2, 1.2)
            length = rng.uniform(0.05, 0.25) * size
            nx, ny = x + length * np.cos(angle), y + length * np.sin(angle)
            draw.line((x, y, nx, ny), fill=0, width=brush)
            draw.ellipse((nx - brush / 2, ny - brush / 2, nx + brush / 2, ny + brush / 2), fill=0)
            x, y = nx, ny
        if (share := 1 - np.asarray(trial).mean()) <= high:
            canvas, unknown = trial, share
    raise ShapeError(f"holes: no strokes cover between {low} and {high} of a {height}×{width} image")


def box_at(
    height: int, width: int, sides: tuple[float, float], margin: float, rng: np.random.Generator
) -> Tensor:
    """Unknown: a box anywhere but in the margin, each of its sides a share of the image's within `sides`.

    Args:
        margin: a share of each side of the image.

    Raises:
        ShapeError: the largest box does not fit between the margins.
    """
    known = torch.ones(height, width, dtype=torch.bool)
    spans = []
    for n in (height, width):
        edge, side = round(margin * n), round(rng.uniform(*sides) * n)
        if round(sides[1] * n) > n - 2 * edge:
            raise ShapeError(
                f"margin: a box of {sides[1]:g} of the side does not fit between {margin:g} of it"
            )
        start = rng.integers(edge, n - edge - side, endpoint=True)
        spans.append(slice(start, start + side))
    known[tuple(spans)] = False
    return known


@dataclass(frozen=True)
class Brush:
    """How LaMa's masks are drawn on images of `side` pixels; ranges from … to, both possible."""

    side: int
    strokes: tuple[int, int]
    width: tuple[int, int]
    length: tuple[int, int]
    boxes: tuple[int, int] = (0, 0)
    box_side: tuple[int, int] = (0, 0)
    margin: int = 0


SEGMENTS = 5
"""Of a stroke, at most."""
DIRECTIONS = 4
"""Of a segment: 0.01, 1.01, … radians."""
BOXES = 0.3 / 1.3
"""The share of masks of boxes, where a brush has boxes; the others are of strokes."""
LAMA = {
    "thin": (
        Brush(256, strokes=(4, 51), width=(5, 14), length=(10, 49)),
        Brush(512, strokes=(4, 71), width=(5, 24), length=(10, 109)),
    ),
    "medium": (
        Brush(256, (4, 6), (5, 54), (10, 109), boxes=(1, 5), box_side=(10, 50)),
        Brush(512, (4, 11), (5, 104), (10, 209), boxes=(1, 5), box_side=(30, 150)),
    ),
    "thick": (
        Brush(256, (1, 6), (5, 104), (10, 209), boxes=(1, 3), box_side=(30, 150), margin=10),
        Brush(512, (1, 6), (5, 254), (10, 459), boxes=(1, 4), box_side=(30, 300), margin=10),
    ),
}
"""Of LaMa's configurations random_{thin,medium,thick}_{256,512}, as its generator reads them."""


def lama(height: int, width: int, kind: str, most: float, rng: np.random.Generator) -> Tensor:
    """Unknown: strokes of straight segments or, of some masks, boxes, as LaMa was trained and evaluated with.

    Of the settings for 256² and 512² those for the nearer side are taken, in proportion to the image's
    shorter side. A mask that covers more than `most` of the image is drawn anew. Source: Suvorov et al.
    2022 (2109.07161), supplement, and the configurations of its code.

    Args:
        kind: of `LAMA`. most: 0.5 in LaMa's evaluation.
    """
    side = min(height, width)
    brush = min(LAMA[kind], key=lambda one: abs(np.log(side / one.side)))
    for _ in range(1000):
        canvas = Image.new("L", (width, height), 1)
        if rng.random() < (BOXES if brush.boxes[1] else 0):
            fill_boxes(canvas, brush, rng)
        else:
            stroke(canvas, brush, rng)
        known = np.asarray(canvas, dtype=bool)
        if 1 - known.mean() <= most:
            return torch.from_numpy(known.copy())
    raise ShapeError(f"most: {kind} masks cover more than {most:g} of a {height}×{width} image")


def stroke(canvas: Image.Image, brush: Brush, rng: np.random.Generator) -> None:
    """Draw the strokes of one mask: every other one goes the mirrored ways."""
    draw, scale = ImageDraw.Draw(canvas), min(canvas.size) / brush.side
    for number in range(rng.integers(*brush.strokes, endpoint=True)):
        x, y = float(rng.integers(canvas.width)), float(rng.integers(canvas.height))
        for _ in range(rng.integers(1, SEGMENTS, endpoint=True)):
            angle = (0.01 + rng.integers(DIRECTIONS)) * (-1) ** (number + 1)
            length = scale * rng.integers(*brush.length, endpoint=True)
            thick = max(1, round(scale * rng.integers(*brush.width, endpoint=True)))
            nx = min(max(x + length * math.sin(angle), 0), canvas.width)
            ny = min(max(y + length * math.cos(angle), 0), canvas.height)
            draw.line((x, y, nx, ny), fill=0, width=thick)
            for cx, cy in ((x, y), (nx, ny)):  # round ends
                draw.ellipse((cx - thick / 2, cy - thick / 2, cx + thick / 2, cy + thick / 2), fill=0)
            x, y = nx, ny


def fill_boxes(canvas: Image.Image, brush: Brush, rng: np.random.Generator) -> None:
    """Draw the boxes of one mask, none nearer to the border than the margin."""
    draw, scale = ImageDraw.Draw(canvas), min(canvas.size) / brush.side
    margin = round(scale * brush.margin)
    for _ in range(rng.integers(*brush.boxes, endpoint=True)):
        corner = []
        for n in canvas.size:
            side = max(1, round(scale * rng.integers(*brush.box_side, endpoint=True)))
            start = int(rng.integers(margin, n - margin - side, endpoint=True))
            corner.append((start, start + side - 1))
        (left, right), (top, bottom) = corner
        draw.rectangle((left, top, right, bottom), fill=0)


def from_file(path: str, height: int, width: int, known: str) -> Tensor:
    """As `from_content`, of the file at a path; raises an OSError or a ValueError."""
    try:
        content = content_of(path, MAX_BYTES)
    except Exception as error:
        raise ValueError(f"mask: {path}: {error}") from error
    return from_content(path, content, height, width, known)


def from_content(name: str, content: bytes, height: int, width: int, known: str) -> Tensor:
    """A mask from an image, an .npy, or the array `m` (or the only array) of an .npz, (H, W) or (C, H, W).

    `known` says which pixels are known, "white" or "black". White is what is above half of the type's range:
    of 8 or 16 bits, of floating point numbers from 0 to 1; 0 and 1 of any type are black and white. Where the
    alpha of an image varies it is the mask, and opaque is white. A mask of another size with the same
    proportions is resized by nearest neighbour.

    Raises:
        ValueError: it is no such file, on another range, does not fit, or has no known or no unknown pixel.
    """
    try:
        white = torch.from_numpy(above_half(read_mask(name, content)))
    except Exception as error:  # also what Pillow makes of a broken file
        raise ValueError(f"mask: {name}: {error}") from error
    if white.ndim not in (2, 3):
        raise ValueError(f"mask: {name} has shape {tuple(white.shape)}, expected (H, W) or (C, H, W)")
    h, w = white.shape[-2:]
    if (h, w) != (height, width):
        if h * width != w * height or not h:
            raise ShapeError(f"mask: {name} is {h}×{w}, which does not fit images of {height}×{width}")
        rows = (torch.arange(height) * h) // height
        columns = (torch.arange(width) * w) // width
        white = white[..., rows[:, None], columns]
    if white.all() or not white.any():
        colour = "white" if white.all() else "black"
        what = "known" if colour == known else "unknown"
        raise ValueError(f"mask: {name} is {colour} everywhere, so that every pixel is {what}")
    return white if known == "white" else ~white


def read_mask(name: str, content: bytes) -> np.ndarray:
    """The values in a file of one of `SUFFIXES`: of an image its grey levels, or its alpha where that varies.

    Raises:
        Exception: it is broken, or too large.
    """
    suffix = name.rpartition(".")[2].lower()
    if suffix == "npy":
        return read_array(content, MAX_VALUES)
    if suffix == "npz":
        return array_of_zip(content, "m", MAX_BYTES, MAX_VALUES)
    with Image.open(BytesIO(content), formats=("PNG", "JPEG", "BMP")) as image:
        if image.width * image.height > MAX_VALUES:
            raise ValueError(f"{image.width}×{image.height} pixels, more than {MAX_VALUES:,}")
        if image.format == "PNG" and getattr(image, "is_animated", False):
            raise ValueError("several images in one file")
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
            if alpha.min() < alpha.max():
                return alpha
        deep = upright.mode == "I" or upright.mode.startswith("I;16")
        return np.asarray(upright).astype(np.uint16) if deep else np.asarray(upright.convert("L"))


def above_half(values: np.ndarray) -> np.ndarray:
    """Which values are in the upper half of their type's range.

    Raises:
        ValueError: floating point numbers outside of 0 … 1, or other types than 8 or 16 bits.
    """
    if values.size == 0:
        raise ValueError("no values")
    if values.dtype == bool:
        return values
    if values.dtype.kind not in "uif":
        raise ValueError(f"values of type {values.dtype}; a mask is boolean, of 8 or 16 bits, or float")
    low, high = values.min(), values.max()
    seen = f"values from {low:g} to {high:g} of type {values.dtype}"
    if not (low >= 0 and np.isfinite(high)):
        raise ValueError(f"{seen}; a mask has none below 0 and none that is not finite")
    if values.dtype.kind == "f":
        if high > 1:
            raise ValueError(f"{seen}; floating point numbers of a mask are between 0 and 1")
        return values > 0.5
    if high <= 1:
        return values == 1
    if values.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{seen}; integers of a mask are uint8 or uint16, or only 0 and 1")
    return values > np.iinfo(values.dtype).max // 2
