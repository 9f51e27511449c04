"""Operators as matrices, and the files that some need."""

import tempfile
from functools import cache
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from kintsugi.operators.nonlinear_blur import Network, Sizes

SHAPE = (3, 8, 16)


def channel_mask():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.6


def draw(operator, shape, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator).to(operator.singular_values)


def dense(function, shape):
    """The matrix of a linear function, from the images of the unit vectors."""
    n = int(torch.tensor(shape).prod())
    return function(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T


def blur_weights(sizes):
    """Random weights with the published names and shapes, each a function of its name alone."""

    def drawn(name, shape):
        scale = 0.1 if len(shape) == 1 else 0.9 * np.prod(shape[1:]) ** -0.5
        return torch.from_numpy(
            scale * np.random.RandomState(crc32(name.encode())).standard_normal(shape)
        ).float()

    return {name: drawn(name, tuple(value.shape)) for name, value in Network(sizes).state_dict().items()}


SMALL = Sizes(image=3, features=1, code=8, last=1, before=1, behind=1)


@cache
def blur_file():
    """Of a network for `nonlinear_blur`, of the smallest sizes."""
    folder = tempfile.TemporaryDirectory()
    file = Path(folder.name) / "blur.pth"
    torch.save(blur_weights(SMALL), file)
    FOLDERS.append(folder)
    return str(file)


FOLDERS = []
"""Kept until the process ends."""


SKEW = [[0.0, 1.0, 0.0, 2.0], [3.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.5, 0.0]]
STEEP = [[0.5, 0.0, 0.0, 0.0], [4.0, 6.0, 0.5, 0.0], [0.0, 1.0, 0.0, 1.0]]
FLAT = [[1.0, 2.0, 1.0, 1.0], [2.0, 4.0, 1.5, 1.0], [1.0, 1.0, 2.0, 0.5]]
KERNELS = (SKEW, STEEP, FLAT)
"""Of full rank, an even and an odd side, their weight off the centre."""
DISCS = [[[0.0, a, 0.0], [b, 4.0, b], [0.0, a, 0.0]] for a, b in ((1.0, 1.0), (0.5, 2.0), (3.0, 0.5))]


def composed(first, second):
    """Specs of compositions of two kinds, part by part."""
    return [{"name": "compose", "operators": list(parts)} for parts in zip(first, second, strict=True)]


def each(name, field, values, **common):
    """Specs that differ in one field."""
    return [{"name": name, field: value, **common} for value in values]


WIDTHS = each("gaussian_blur", "sigma", (0.7, 1.5, 3.0))
MASKS = each("inpaint", "seed", (1, 2, 3), mask="random", keep=0.6)
MOTIONS = each("motion_blur", "seed", (1, 2, 3), taps=7)
GREYS = [{"name": "colorize"}, {"name": "colorize", "weights": "luma"}, {"name": "colorize"}]
SENSINGS = each("compressed_sensing", "seed", (0, 1, 2))
QUALITIES = each("jpeg", "quality", (5, 40, 90))
PER_SAMPLE = [
    *(WIDTHS, MASKS, MOTIONS, GREYS, SENSINGS, QUALITIES),
    each("gaussian_blur", "boundary", ("reflect", "zero", "circular"), sigma=1.0, taps=9),
    each("uniform_blur", "taps", (3, 5, 9)),
    each("anisotropic_blur", "sigmas", ((2.0, 0.7), (20.0, 1.0), (0.5, 3.0))),
    each("anisotropic_blur", "angle", (20.0, 30.0, 75.0), sigmas=(2.0, 0.7)),
    each("linear_motion_blur", "angle", (0.0, 30.0, 100.0), length=4.0),
    each("average_pool", "factor", (2, 2, 2)),
    each("bicubic", "factor", (2, 2, 2)),
    each("resize", "kernel", ("cubic", "box", "lanczos3"), factor=1.7),
    each("blur", "kernel", KERNELS),
    each("blur", "kernel", ([[1.0, 2.0, 1.0]], [[1.0, 1.0, 1.0]], [[1.0, 2.0, 4.0]])),
    each("blur", "kernel", DISCS, boundary="reflect"),
    *(each("blur", "kernel", KERNELS, boundary=edge) for edge in ("reflect", "zero", "valid")),
    each("compressed_sensing", "seed", (0, 1, 2), ratio=0.25, block=4),
    each("denoise", "name", ("denoise",) * 3),
    each("gaussian_blur_rediff", "name", ("gaussian_blur_rediff",) * 3),
    each("hdr", "factor", (1.5, 2.0, 3.0)),
    each("inpaint", "mask", ("box", "half", channel_mask())),
    each("nonlinear_blur", "seed", (0, 1, 2), weights=blur_file()),
    each("phase_retrieval", "oversample", (1.0, 1.0, 1.0)),
    each("quantize", "bits", (1, 2, 3)),
    composed(WIDTHS, each("resize", "kernel", ("cubic", "box", "linear"), factor=1.5)),
    composed(GREYS, WIDTHS),
    composed(MASKS, each("inpaint", "mask", ("half",) * 3)),
    composed(MOTIONS, GREYS),
    composed(GREYS, SENSINGS),
    composed(each("bicubic", "factor", (2,) * 3), QUALITIES),
    composed(each("hdr", "factor", (1.5, 2.0, 3.0)), each("quantize", "bits", (4, 3, 2))),
]
"""Specs for the samples of a batch: every registered operator, with what may differ between its samples."""
