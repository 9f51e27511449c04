"""Inpainting masks, boolean (H, W), true = known pixel. All are functions of their seed alone."""

from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from operators.registry import ShapeError

SUFFIXES = (".png", ".npz")  # of files of masks


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


def random(height: int, width: int, known: float, seed: int) -> Tensor:
    """Known: each pixel by itself with probability `known`."""
    rng = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(rng.random((height, width)) < known)


def freeform(height: int, width: int, holes: tuple[float, float], seed: int) -> Tensor:
    """Unknown: random brush strokes that cover a share of the image within `holes`.

    Strokes are random walks with turning angles and varying width, after the free-form masks of
    gated convolution (Yu et al. 2019, 1806.03589); strokes that overshoot the range are redrawn.
    """
    low, high = holes
    rng = np.random.Generator(np.random.Philox(seed))
    size = min(height, width)
    canvas = Image.new("1", (width, height), 1)
    for _ in range(10_000):
        unknown = 1 - np.asarray(canvas).mean()
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
        if 1 - np.asarray(trial).mean() <= high:
            canvas = trial
    raise ShapeError(f"holes: no strokes cover between {low} and {high} of a {height}×{width} image")


def from_file(path: str, height: int, width: int, known: str) -> Tensor:
    """A mask from a PNG or the array `m` (or the only array) of an .npz, (H, W) or (C, H, W).

    `known` says which value marks known pixels: "white" (non-zero; above half for 8 bit) or "black".
    A mask of another size with the same proportions is resized by nearest neighbour.
    """
    if path.endswith(".npz"):
        try:
            with np.load(path, allow_pickle=False) as arrays:
                name = "m" if "m" in arrays else arrays.files[0]
                array = arrays[name]
        except (BadZipFile, IndexError) as error:
            raise ValueError(f"mask: {path} holds no array: {error}") from error
        white = torch.from_numpy(array != 0)
    else:
        with Image.open(path, formats=("PNG",)) as image:
            white = torch.from_numpy(np.asarray(image.convert("L")) > 127)
    if white.ndim not in (2, 3):
        raise ValueError(f"mask: {path} has shape {tuple(white.shape)}, expected (H, W) or (C, H, W)")
    h, w = white.shape[-2:]
    if (h, w) != (height, width):
        if h * width != w * height:
            raise ShapeError(f"mask: {path} is {h}×{w}, which does not fit images of {height}×{width}")
        rows = (torch.arange(height) * h) // height
        columns = (torch.arange(width) * w) // width
        white = white[..., rows[:, None], columns]
    return white if known == "white" else ~white
