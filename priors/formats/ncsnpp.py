"""NCSN++ and DDPM++ in the files of score_sde (Song et al. 2021, 2011.13456) and of rectified flow.

A file numbers its modules, all in one list. `entries` has every parameter of a layout once, in the order of
the file: a file is checked against that, and its tensors are renamed by it into EDM's `SongUNet`, which is
the same network.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path as FilePath
from typing import Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from kintsugi import checkpoint
from kintsugi.checkpoint import CheckpointError, State
from kintsugi.priors import tables
from kintsugi.priors.formats.edm_network import Song, SongUNet
from kintsugi.priors.formats.layout import Entry, Shape, UNetLayout, affine, in_file, module_names

MARK = "all_modules.1.weight"
FREQUENCIES = "all_modules.0.W"  # of the embedding of time: not trained
SIGMAS = "sigmas"  # noise levels of score matching, from the largest to the least

FIR = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True)
class Layout(UNetLayout):
    """The architecture of a network.

    Attributes:
        widths: channels of each level, the finest first; each level halves the resolution.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention: the levels with attention; the middle always has it.
        base: channels of the first convolution, by default of the first level. images: of images.
        fourier: the noise is told by random features, not sinusoidal ones.
        down, up: what is done with smaller images beside the levels.
        file: the checkpoint. said: where the weights lay in it, and what they are.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    base: int = 0
    images: int = 3
    fourier: bool = True
    down: Literal["standard", "skip", "residual"] = "skip"
    up: Literal["standard", "skip"] = "skip"
    file: FilePath = field(default=FilePath(), compare=False)
    said: str = field(default="", compare=False)

    @property
    def parameters(self) -> int:
        """How many the network has that are trained, by the shapes in the file."""
        return sum(math.prod(entry.shape) for entry in entries(self) if entry.file != FREQUENCIES)

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return self.images

    @property
    def first(self) -> int:
        """Channels of the first convolution."""
        return self.base or self.widths[0]

    def side(self, level: int) -> int:
        """By which a level is called in the network: that of the smallest images that it takes."""
        return self.multiple >> level

    def settings(self) -> Song:
        """That of the network; raises a CheckpointError if there is none."""
        if problem := next((width for width in self.widths if width % self.first), None):
            raise CheckpointError(f"path: {problem} channels are no multiple of the first {self.first}")
        try:
            return Song(
                img_resolution=self.multiple,
                img_channels=self.images,
                model_channels=self.first,
                channel_mult=tuple(width // self.first for width in self.widths),
                num_blocks=self.blocks,
                attn_resolutions=tuple(map(self.side, self.attention)),
                embedding_type="fourier" if self.fourier else "positional",
                channel_mult_noise=2 if self.fourier else 1,
                encoder_type=self.down,
                decoder_type=self.up,
                # No file tells; DDPM++ is the one without smaller images.
                resample_filter=(1.0, 1.0) if self.down == "standard" else FIR,
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise CheckpointError(
                f"path: {str(self.file)!r} is no NCSN++: {first['loc']}: {first['msg']}"
            ) from error


def opened(path: FilePath, weights: str | None, device: str) -> tuple[tables.Found, Tensor | None]:
    """The table of weights to sample with, and the noise levels beside it."""
    untrained = {FREQUENCIES, SIGMAS}
    found = tables.find(checkpoint.read(path, device), path, MARK, weights=weights, untrained=untrained)
    return found, found.state.pop(SIGMAS, None)


def infer(state: Mapping[str, Tensor], path: FilePath) -> Layout:
    """The layout of a state dict, all of whose names, types and shapes then fit.

    Raises:
        CheckpointError: it is of another network; the message names the key or shape.
    """
    modules = module_names(state)

    def has(module: int, name: str) -> bool:
        return f"all_modules.{module}.{name}" in modules

    def shape(key: str, dimensions: int = 4) -> Shape:
        if key not in state or state[key].ndim != dimensions:
            raise CheckpointError(f"path: {str(path)!r} is no NCSN++ or DDPM++: no {key!r}")
        return tuple(state[key].shape)

    # Modules 0 to 2 embed the noise, or 0 and 1 where its features are sinusoidal.
    first = 3 if FREQUENCIES in state else 2
    base, images = shape(f"all_modules.{first}.weight")[:2]
    past = next((i for i in count(first) if f"all_modules.{i}" not in modules), first)
    residual = [i for i in range(first, past) if has(i, "GroupNorm_0") and has(i, "Conv_0")]
    # What resamples is convolved past, too, though its channels stay.
    halving = []
    for i in residual:
        if has(i, "Conv_2") and len(set(shape(f"all_modules.{i}.Conv_2.weight")[:2])) == 1:
            halving.append(i)
    halving = halving[: len(halving) // 2]
    after = (halving[0] if halving else past) + 1
    beside: Literal["standard", "skip", "residual"] = "standard"
    if has(after, "Conv_0") and not has(after, "GroupNorm_0"):
        beside = "skip"
    elif has(after, "Conv2d_0"):
        beside = "residual"
    firsts = [first + 1, *(i + (1 if beside == "standard" else 2) for i in halving)]
    norms = sum(state.get(f"all_modules.{i}.weight", torch.empty(0, 0)).ndim == 1 for i in range(first, past))
    layout = Layout(
        widths=tuple(shape(f"all_modules.{i}.Conv_0.weight")[0] for i in firsts),
        blocks=sum(i < (halving[0] if halving else past) for i in residual),
        attention=tuple(level for level, i in enumerate(firsts) if has(i + 1, "NIN_0")),
        base=base,
        images=images,
        fourier=FREQUENCIES in state,
        down=beside,
        up="skip" if norms > 1 else "standard",
        file=path,
    )
    if problem := checkpoint.difference(in_file(entries(layout)), state):
        raise CheckpointError(f"path: {str(path)!r} is not the NCSN++ it resembles: {problem}")
    return layout


class Naming:
    """Entries of the modules of a file, one after the other."""

    def __init__(self, embedding: int):
        self.files = (f"all_modules.{i}" for i in count())
        self.embedding = embedding

    def affine(self, network: str, *shape: int, part: str = "") -> Iterator[Entry]:
        """Those of a module by itself, or of its only part."""
        yield from affine(f"{next(self.files)}{part}", network, *shape)

    def residual(self, network: str, inputs: int, outputs: int, resampled: bool = False) -> Iterator[Entry]:
        """Those of a residual block."""
        file = next(self.files)
        yield from affine(f"{file}.GroupNorm_0", f"{network}.norm0", inputs)
        yield from affine(f"{file}.Conv_0", f"{network}.conv0", outputs, inputs, 3, 3)
        yield from affine(f"{file}.Dense_0", f"{network}.affine", outputs, self.embedding)
        yield from affine(f"{file}.GroupNorm_1", f"{network}.norm1", outputs)
        yield from affine(f"{file}.Conv_1", f"{network}.conv1", outputs, outputs, 3, 3)
        if resampled or inputs != outputs:
            yield from affine(f"{file}.Conv_2", f"{network}.skip", outputs, inputs, 1, 1)

    def attention(self, network: str, width: int) -> Iterator[Entry]:
        """Those of attention, of which q, k and v become one in the network."""
        file = next(self.files)
        yield from affine(f"{file}.GroupNorm_0", f"{network}.norm2", width)
        for i, name in enumerate(("qkv.0", "qkv.1", "qkv.2", "proj")):
            yield Entry(f"{file}.NIN_{i}.W", f"{network}.{name}.weight", (width, width))
            yield Entry(f"{file}.NIN_{i}.b", f"{network}.{name}.bias", (width,))


def entries(layout: Layout) -> Iterator[Entry]:
    """Every parameter of a layout, in the order of the file."""
    widths, base = layout.widths, layout.first
    name = Naming(4 * base)
    if layout.fourier:
        yield Entry(f"{next(name.files)}.W", "map_noise.freqs", (base,))
    yield from name.affine("map_layer0", 4 * base, 2 * base if layout.fourier else base)
    yield from name.affine("map_layer1", 4 * base, 4 * base)
    sides = [f"{side}x{side}" for side in map(layout.side, range(len(widths)))]
    yield from name.affine(f"enc.{sides[0]}_conv", base, layout.images, 3, 3)
    passed, seen = [base], layout.images
    for level, width in enumerate(widths):
        at = f"enc.{sides[level]}"
        if level:
            before = passed[-1]
            yield from name.residual(f"{at}_down", before, before, resampled=True)
            if layout.down == "skip":
                yield from name.affine(f"{at}_aux_skip", before, seen, 1, 1, part=".Conv_0")
            elif layout.down == "residual":
                yield from name.affine(f"{at}_aux_residual", before, seen, 3, 3, part=".Conv2d_0")
                seen = before
            passed.append(before)
        for i in range(layout.blocks):
            yield from name.residual(f"{at}_block{i}", passed[-1], width)
            if level in layout.attention:
                yield from name.attention(f"{at}_block{i}", width)
            passed.append(width)
    yield from name.residual(f"dec.{sides[-1]}_in0", width, width)
    yield from name.attention(f"dec.{sides[-1]}_in0", width)
    yield from name.residual(f"dec.{sides[-1]}_in1", width, width)
    inputs = width
    for level, width in reversed(list(enumerate(widths))):
        at = f"dec.{sides[level]}"
        if level < len(widths) - 1:
            yield from name.residual(f"{at}_up", inputs, inputs, resampled=True)
        for i in range(layout.blocks + 1):
            yield from name.residual(f"{at}_block{i}", inputs + passed.pop(), width)
            inputs = width
        if level in layout.attention:
            yield from name.attention(f"{at}_block{layout.blocks}", width)
        if layout.up == "skip" or level == 0:
            yield from name.affine(f"{at}_aux_norm", width)
            yield from name.affine(f"{at}_aux_conv", layout.images, width, 3, 3)


def renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """The file's tensors under the network's names; all are views, except for q, k and v."""
    result: State = {}
    of_attention: dict[str, list[Tensor]] = {}
    for entry in entries(layout):
        tensor = state[entry.file]
        if ".NIN_" in entry.file and tensor.ndim == 2:  # multiplied from the right
            tensor = tensor.T[..., None, None]
        whole, part, rest = entry.network.partition(".qkv.")
        if part:
            of_attention.setdefault(f"{whole}.qkv.{rest[2:]}", []).append(tensor)
        else:
            result[entry.network] = tensor
    # In the network their channels take turns.
    return result | {key: torch.stack(parts, 1).flatten(0, 1) for key, parts in of_attention.items()}


def build(layout: Layout) -> SongUNet:
    """The network of a layout, without memory for its weights."""
    settings = layout.settings()
    return checkpoint.empty(lambda: SongUNet(settings))
