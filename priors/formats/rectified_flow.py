"""Checkpoints of rectified flow at 256² (Liu et al. 2022, arXiv 2209.03003): NCSN++ networks.

`entries` lists every parameter of a layout once, in the order of the file: a file is checked against
that list, and its tensors are renamed by it into diffusers' `UNet2DModel`.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointError, CheckpointPath, State
from kintsugi.priors import tables
from kintsugi.priors.base import Parametrization
from kintsugi.priors.formats.layout import Entry, UNetLayout, affine, in_file, module_names
from kintsugi.priors.paths import Path, RectifiedFlow

logger = logging.getLogger(__name__)

MARK = "all_modules.3.weight"
FREQUENCIES = "all_modules.0.W"  # of the embedding of time: not trained
SIGMAS = "sigmas"  # noise levels of score matching, unused by the flow

FIRST_TIME = 1e-3
"""Where the released sampler starts; the network divides its output by the time."""


@dataclass(frozen=True)
class Layout(UNetLayout):
    """The architecture of an NCSN++ with Fourier embedding, FIR resampling, input and output skips.

    Attributes:
        widths: channels of each level, the finest first; each level halves the resolution.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention: the levels with attention; the middle always has it.
        file: the checkpoint. said: where the weights lay in it.
    """

    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    file: FilePath = field(default=FilePath(), compare=False)
    said: str = field(default="", compare=False)

    @property
    def parameters(self) -> int:
        """How many the network has, by the shapes in the file."""
        return sum(math.prod(entry.shape) for entry in entries(self))


@dataclass(frozen=True)
class UnitRangeFlow(RectifiedFlow):
    """The straight path to images (x₀ + 1)/2 on [0, 1], scaled and shifted: t x₀ + 2 (1 − t) z."""

    def s(self, t: Tensor) -> Tensor:
        """2 (1 − t): data in [0, 1] are half as wide."""
        return 2 * (1 - t)

    def ds(self, t: Tensor) -> Tensor:
        """−2."""
        return torch.full_like(t, -2.0)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The logistic function of log(a/s) + log 2."""
        return torch.sigmoid(log_snr + math.log(2))


class RectifiedFlowPrior:
    """Velocity on the straight path, for images (B, 3, H, W) that the layout takes (`multiple`).

    Times run from 0 (noise) to 1 (data); below 0.001 the network is given 0.001, because it divides by
    its time. Weights are float32, whatever the file has.
    """

    parametrization: Parametrization = "v"

    def __init__(self, layout: Layout, network: nn.Module, centered: bool):
        self.path: Path = RectifiedFlow() if centered else UnitRangeFlow()
        self.network, self.centered = network, centered
        self.sha256 = sha256(layout.file)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output, of x's shape (B, C, H, W), at times t (B,) in [0, 1]."""
        output: Tensor = self.network(x, 999 * t.clamp(min=FIRST_TIME), return_dict=False)[0]
        return output

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.centered:
            return self.velocity(x, t)
        # Its own state is (x + t)/2, with the velocity (u + 1)/2; it maps [0, 1] to [-1, 1] itself.
        return 2 * self.velocity(x + t.view(-1, 1, 1, 1) - 1, t) - 1


def rectified_flow(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    centered: bool = True,
    weights: str | None = None,
) -> RectifiedFlowPrior:
    """A rectified-flow checkpoint: CelebA-HQ, AFHQ-cat, LSUN bedroom or church, or one's own.

    The moving average of the weights is used, which the released sampler uses too; the trained weights,
    with a warning, where the file has no average.

    Args:
        path: the file as published, or as another training script wraps it; see `priors.tables`.
        centered: trained on images in [-1, 1], as CelebA-HQ and AFHQ; false for images in [0, 1], as LSUN
            bedroom and church. No file tells.
        weights: the table to use, for files with several, such as ema or model.module.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
    """
    layout, state = opened(path, weights)
    network = build(layout)
    checkpoint.adopt(network, renamed(state, layout), path)
    return RectifiedFlowPrior(layout, network.to(device), centered)


def describe(*, path: CheckpointPath, centered: bool = True, weights: str | None = None) -> Layout:
    """The layout of a checkpoint, by its names and shapes alone; else as `rectified_flow`."""
    return opened(path, weights, "meta")[0]


def opened(path: FilePath, weights: str | None, device: str = "cpu") -> tuple[Layout, State]:
    """The layout of a file, and its parameters to sample with."""
    content = checkpoint.read(path, device)
    untrained = {FREQUENCIES, SIGMAS}
    found = tables.find(content, path, MARK, weights=weights, untrained=untrained)
    found.state.pop(SIGMAS, None)
    layout = replace(infer(found.state, path), said=found.said)
    if not found.average and weights is None:
        logger.warning("%s has no moving average: the trained weights are used as they are", path)
    return layout, found.state


def infer(state: Mapping[str, Tensor], path: FilePath) -> Layout:
    """The layout of a state dict, all of whose names, types and shapes then fit."""

    def width(module: int) -> int:
        key = f"all_modules.{module}.Conv_0.weight"
        if key not in state or state[key].ndim != 4:
            raise CheckpointError(f"path: {str(path)!r} is no NCSN++ of rectified flow: no {key!r}")
        return len(state[key])

    modules = module_names(state)

    def has(module: int, name: str) -> bool:
        return f"all_modules.{module}.{name}" in modules

    if FREQUENCIES not in state:
        raise CheckpointError(
            f"path: {str(path)!r} is no NCSN++ of rectified flow: no {FREQUENCIES!r} (Fourier embedding)"
        )
    # Modules 0 to 2 embed the time, 3 is the first convolution. Only input skips have no normalisation.
    skips = [i for i in range(4, len(state)) if has(i, "Conv_0") and not has(i, "GroupNorm_0")]
    if not skips:
        raise CheckpointError(f"path: {str(path)!r} is no NCSN++ of rectified flow: it has no input skips")
    firsts = [4, *(i + 1 for i in skips)]
    layout = Layout(
        widths=tuple(width(first) for first in firsts),
        blocks=sum(has(i, "Conv_0") for i in range(4, skips[0])) - 1,
        attention=tuple(level for level, first in enumerate(firsts) if has(first + 1, "NIN_0")),
        file=path,
    )
    if problem := checkpoint.difference(in_file(entries(layout)), state):
        raise CheckpointError(f"path: {str(path)!r} is not the NCSN++ it resembles: {problem}")
    return layout


def entries(layout: Layout) -> Iterator[Entry]:
    """Every parameter of a layout, in the order of the file."""
    widths, embedding = layout.widths, 4 * layout.widths[0]
    coarsest = len(widths) - 1
    files = (f"all_modules.{i}" for i in count())

    def residual(network: str, inputs: int, outputs: int, resampled: bool = False) -> Iterator[Entry]:
        file = next(files)
        yield from affine(f"{file}.GroupNorm_0", f"{network}.norm1", inputs)
        yield from affine(f"{file}.Conv_0", f"{network}.conv1", outputs, inputs, 3, 3)
        yield from affine(f"{file}.Dense_0", f"{network}.time_emb_proj", outputs, embedding)
        yield from affine(f"{file}.GroupNorm_1", f"{network}.norm2", outputs)
        yield from affine(f"{file}.Conv_1", f"{network}.conv2", outputs, outputs, 3, 3)
        if resampled or inputs != outputs:
            yield from affine(f"{file}.Conv_2", f"{network}.conv_shortcut", outputs, inputs, 1, 1)

    def attention(network: str, width: int) -> Iterator[Entry]:
        file = next(files)
        yield from affine(f"{file}.GroupNorm_0", f"{network}.group_norm", width)
        for i, name in enumerate(("to_q", "to_k", "to_v", "to_out.0")):
            yield Entry(f"{file}.NIN_{i}.W", f"{network}.{name}.weight", (width, width))
            yield Entry(f"{file}.NIN_{i}.b", f"{network}.{name}.bias", (width,))

    yield Entry(f"{next(files)}.W", "time_proj.weight", (widths[0],))
    yield from affine(next(files), "time_embedding.linear_1", embedding, 2 * widths[0])
    yield from affine(next(files), "time_embedding.linear_2", embedding, embedding)

    yield from affine(next(files), "conv_in", widths[0], 3, 3, 3)
    skips = [widths[0]]
    for level, width in enumerate(widths):
        block, attends = f"down_blocks.{level}", level in layout.attention
        for i in range(layout.blocks):
            network = f"{block}.resnets.{i}"
            yield from residual(f"{network}.residual" if attends else network, skips[-1], width)
            if attends:
                yield from attention(f"{network}.attention", width)
            skips.append(width)
        if level < coarsest:
            yield from residual(f"{block}.resnet_down", width, width, resampled=True)
            yield from affine(f"{next(files)}.Conv_0", f"{block}.skip_conv", width, 3, 1, 1)
            skips.append(width)

    yield from residual("mid_block.resnets.0", width, width)
    yield from attention("mid_block.attentions.0", width)
    yield from residual("mid_block.resnets.1", width, width)

    inputs = width
    for level, width in reversed(list(enumerate(widths))):
        block = f"up_blocks.{coarsest - level}"
        for i in range(layout.blocks + 1):
            network = f"{block}.resnets.{i}"
            attends = level in layout.attention and i == layout.blocks
            yield from residual(f"{network}.residual" if attends else network, inputs + skips.pop(), width)
            if attends:
                yield from attention(f"{network}.attention", width)
            inputs = width
        yield from affine(next(files), f"{block}.skip_norm" if level else "conv_norm_out", width)
        yield from affine(next(files), f"{block}.skip_conv" if level else "conv_out", 3, width, 3, 3)
        if level:
            yield from residual(f"{block}.resnet_up", width, width, resampled=True)


def renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """The file's tensors under the network's names; all are views."""
    result: State = {}
    for entry in entries(layout):
        tensor = state[entry.file]
        # "Network in network" layers multiply from the right; the W of the embedding is a vector.
        result[entry.network] = tensor.T if entry.file.endswith(".W") and tensor.ndim == 2 else tensor
    return result


class Attended(nn.Module):
    """A residual block followed by attention, in the place of the block."""

    def __init__(self, residual: nn.Module, attention: nn.Module):
        super().__init__()
        self.residual, self.attention = residual, attention

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The residual block, then attention; of x's shape but for the channels."""
        output: Tensor = self.attention(self.residual(x, embedding))
        return output


def build(layout: Layout) -> nn.Module:
    """The network of a layout, without memory for its weights."""
    # diffusers takes a second to import, and must not be imported while tensors are made on "meta".
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention

    def attended(residual: nn.Module, width: int) -> nn.Module:
        return Attended(
            residual,
            Attention(
                width,
                heads=1,
                dim_head=width,
                norm_num_groups=min(width // 4, 32),
                eps=1e-6,
                rescale_output_factor=math.sqrt(2),
                residual_connection=True,
                bias=True,
            ),
        )

    def make() -> nn.Module:
        network = UNet2DModel(
            block_out_channels=layout.widths,
            layers_per_block=layout.blocks,
            # Without attention: diffusers' blocks with it normalise in groups of other sizes than NCSN++.
            down_block_types=("SkipDownBlock2D",) * len(layout.widths),
            up_block_types=("SkipUpBlock2D",) * len(layout.widths),
            time_embedding_type="fourier",
            mid_block_scale_factor=math.sqrt(2),
            attention_head_dim=None,
            norm_num_groups=None,
            norm_eps=1e-6,
        )
        for level in layout.attention:
            width = layout.widths[level]
            down, up = network.down_blocks[level].resnets, network.up_blocks[-1 - level].resnets
            for i in range(layout.blocks):
                down[i] = attended(down[i], width)
            up[-1] = attended(up[-1], width)
        return network

    return checkpoint.empty(make)
