"""Images of any size: a prior that sees overlapping tiles of them.

Only the network's input is cut. The sampler's state, the operator and the guidance stay on the whole
image, so every sampler and operator works unchanged and a measurement knows nothing of the tiles; the
predictions are averaged where tiles overlap, at every step. Source: MultiDiffusion (Bar-Tal et al. 2023,
2302.08113); with weights that fall towards a tile's edges, Mixture of Diffusers (Jiménez 2023, 2302.02412).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kintsugi.errors import SpecError
from kintsugi.numerics import reflect
from kintsugi.priors.base import ClassConditional, Parametrization, Prior
from kintsugi.priors.paths import Path

OVERLAP = 32
"""Pixels. With the embedded prior no seam is left from here on: steps across a tile's edges are those of
the whole restoration, and more overlap brings it no closer (`benchmarks/tiles.py`).
"""


class Tiled:
    """A prior evaluated on tiles of images (B, C, H, W), H and W as they come.

    Sides are continued by reflection at their ends to a multiple of `multiple`. One of at most `tile` is a
    single window; a longer one has evenly spread windows of `tile` pixels, neighbours with at least
    `overlap` in common. Under autograd, activations are recomputed in the backward pass, so that the
    network's memory is that of one batch of tiles. On a GPU, sums of the few pixels in three or more
    windows of an axis have no fixed order.

    Args:
        prior: what predicts the tiles; stays at hand as `prior`.
        tile: side of a tile in pixels, divisible by `multiple`.
        multiple: what the network's input sides must be divisible by.
        overlap: least overlap of neighbouring tiles in pixels.
        batch: tiles per network call; the last call of an evaluation may have fewer.

    Attributes:
        classes, label, labels: those of the images, as in `priors.base.ClassConditional`; each tile has
            the class of its image. All None where the prior knows no classes.

    Raises:
        SpecError: a tile or an overlap that does not fit; the message names the field.
    """

    def __init__(self, prior: Prior, tile: int, multiple: int, overlap: int = OVERLAP, batch: int = 1):
        if tile < 1 or tile % multiple:
            raise SpecError(
                f"tile: must be a positive multiple of {multiple}, which the network needs (got {tile})"
            )
        if not 0 <= overlap <= tile - multiple:
            raise SpecError(
                f"overlap: must be from 0 to {tile - multiple} for tiles of {tile} (got {overlap})"
            )
        if batch < 1:
            raise SpecError(f"batch: must be at least 1 tile (got {batch})")
        self.prior, self.tile, self.multiple, self.overlap, self.batch = prior, tile, multiple, overlap, batch
        self.path: Path = prior.path
        self.parametrization: Parametrization = prior.parametrization
        self.sha256: str | None = getattr(prior, "sha256", None)
        conditional = prior if isinstance(prior, ClassConditional) else None
        self._conditional = conditional
        self.classes: int | None = None if conditional is None else conditional.classes
        self.label: int | None = None if conditional is None else conditional.label
        self._labels: Tensor | None = None if conditional is None else conditional.labels

    @property
    def labels(self) -> Tensor | None:
        """The class of each image, (B,) int64, or None; setting what does not fit raises a SpecError."""
        return self._labels

    @labels.setter
    def labels(self, labels: Tensor | None) -> None:
        """Checked, then used by the calls that follow."""
        if self._conditional is None:
            raise SpecError("labels: the prior knows no classes")
        self._conditional.labels = labels  # which checks them
        self._labels = labels

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.labels is not None and len(self.labels) != len(x):
            raise SpecError(f"labels: {len(self.labels)} given for {len(x)} images")
        rows, columns = (
            windows(side, self.tile, self.multiple, self.overlap, x.device, x.dtype) for side in x.shape[2:]
        )
        tiles = cut(x, rows, columns)
        repeats = len(tiles) // len(x)
        times = torch.split(t.expand(len(x)).repeat_interleave(repeats), self.batch)
        classes: Sequence[Tensor | None] = [None] * len(times)
        if self.labels is not None:
            classes = torch.split(self.labels.repeat_interleave(repeats), self.batch)
        parts = list(zip(torch.split(tiles, self.batch), times, classes, strict=True))
        if len(parts) == 1:
            outputs = self.evaluate(*parts[0])
        elif torch.is_grad_enabled() and tiles.requires_grad:
            # What the network keeps for the backward pass is that of one call, not of the whole image.
            outputs = torch.cat(
                [
                    checkpoint(self.evaluate, *part, use_reentrant=False, preserve_rng_state=False)
                    for part in parts
                ]
            )
        else:
            outputs = torch.cat([self.evaluate(*part) for part in parts])
        return blend(outputs, rows, columns)

    def evaluate(self, tiles: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """The prior's outputs for tiles (N, C, h, w) at times t (N,), with these labels."""
        if self._conditional is not None and labels is not None:
            self._conditional.labels = labels  # also when called again for the backward pass
        return self.prior(tiles, t)


@dataclass(frozen=True)
class Windows:
    """The K windows of n positions along an axis, and how their predictions are blended.

    Attributes:
        index: (K n,) int64, the pixel at every position of every window.
        weight: (K n,), the share of every position in its pixel: positive, 0 for padding, 1 in sum.
    """

    side: int
    count: int
    index: Tensor
    weight: Tensor

    @property
    def length(self) -> int:
        """n: the pixels of a window along the axis."""
        return len(self.index) // self.count

    @property
    def single(self) -> bool:
        """Whether there is nothing to cut, pad or blend."""
        return self.count == 1 and self.length == self.side


@lru_cache(maxsize=16)
def windows(
    side: int, tile: int, multiple: int, overlap: int, device: torch.device, dtype: torch.dtype
) -> Windows:
    """The windows of an axis with `side` pixels. Weights are sin² bumps over the window, normalised.

    Windows begin at multiples of `multiple`. A network that downsamples is equivariant to those shifts
    only: at others the predictions of neighbours differ about three times as much.
    """
    units = math.ceil(side / multiple)
    first = starts(units, tile // multiple, math.ceil(overlap / multiple))
    length = min(tile, multiple * units)
    positions = multiple * torch.tensor(first)[:, None] + torch.arange(length)
    bump = torch.sin(torch.pi * (torch.arange(length, dtype=torch.float64) + 0.5) / length) ** 2
    index, weight = reflect(positions, side).flatten(), torch.where(positions < side, bump, 0).flatten()
    weight /= torch.zeros(side, dtype=weight.dtype).index_add_(0, index, weight)[index]
    return Windows(side, len(first), index.to(device), weight.to(device, dtype))


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Where the windows begin: as few as give the overlap, evenly spread from one end to the other."""
    if side <= tile:
        return [0]
    gaps = math.ceil((side - tile) / (tile - overlap))
    return [i * (side - tile) // gaps for i in range(gaps + 1)]


def cut(x: Tensor, rows: Windows, columns: Windows) -> Tensor:
    """(B, C, H, W) → tiles (B K, C, h, w): the windows of an image by rows, then the next image's."""
    if rows.single and columns.single:
        return x
    grid = x.index_select(2, rows.index).index_select(3, columns.index)
    grid = grid.view(*x.shape[:2], rows.count, rows.length, columns.count, columns.length)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def blend(tiles: Tensor, rows: Windows, columns: Windows) -> Tensor:
    """Tiles (B K, C, h, w) → (B, C, H, W), each pixel the weighted mean of the tiles that show it."""
    if rows.single and columns.single:
        return tiles
    grid = tiles.view(-1, rows.count, columns.count, *tiles.shape[1:]).permute(0, 3, 1, 4, 2, 5)
    grid = grid.flatten(4, 5).flatten(2, 3)  # (B, C, K_h h, K_w w)
    strips = grid.new_zeros(*grid.shape[:3], columns.side)
    strips = strips.index_add(3, columns.index, grid * columns.weight)
    image = grid.new_zeros(*grid.shape[:2], rows.side, columns.side)
    return image.index_add(2, rows.index, strips * rows.weight[:, None])
