"""Checkpoints of guided-diffusion UNets (ADM; Dhariwal & Nichol 2021, arXiv 2105.05233).

Their architecture is read from the names and shapes in the file, except for the channels per attention
head, which no file tells. `entries` lists every parameter of a layout once: a file is checked against
that list, and its tensors are renamed by it into diffusers' `UNet2DModel`.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path as FilePath

import torch
from pydantic import FiniteFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointError, CheckpointPath, State
from kintsugi.priors import tables
from kintsugi.priors.base import Parametrization
from kintsugi.priors.classes import Conditional, Conditioning
from kintsugi.priors.formats.layout import Entry, Shape, UNetLayout, affine, in_file, module_names
from kintsugi.priors.paths import DDPM, Path

logger = logging.getLogger(__name__)

MARK = "time_embed.0.weight"
SCHEDULE = {"sqrt_alphas_cumprod": DDPM.a, "sqrt_1m_alphas_cumprod": DDPM.s}
"""Tables over the labels that deepinv keeps beside the weights of its DiffUNet."""

Signature = tuple[int, tuple[int, ...], int, tuple[int, ...]]
"""What tells layouts apart: model channels, widths, residual blocks per level, levels with attention."""

HEAD_CHANNELS: dict[Signature, int] = {
    # ImageNet 256, conditional or not, and LSUN.
    (256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5)): 64,
    # ImageNet 512.
    (256, (128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6)): 64,
    # FFHQ 256, of the authors of DPS.
    (128, (128, 128, 256, 256, 512, 512), 1, (4,)): 64,
}
UNSUPPORTED: dict[Signature, str] = {
    (192, (192, 384, 576, 768), 3, (1, 2, 3)): "ImageNet 64 has cosine betas and another order of q, k, v",
    (256, (256, 256, 512, 768, 1024), 2, (2, 3, 4)): "ImageNet 128 has four heads at every width",
}


@dataclass(frozen=True)
class Layout(UNetLayout):
    """The architecture of a guided-diffusion UNet.

    Attributes:
        channels: the model channels, which set the size of the time embedding.
        widths: channels of each level, the finest first; each level halves the resolution.
        blocks: residual blocks per level on the way down, one more on the way up.
        attention: the levels with attention; the middle always has it.
        classes: number of classes of a class-conditional network, otherwise None.
        outputs: 6 where the variance is learned, 3 for ε alone.
        head_channels: channels per attention head.
        file: the checkpoint. said: where the weights lay in it, if not as published, and how it is guided.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    classes: int | None
    outputs: int
    head_channels: int
    file: FilePath = field(default=FilePath(), compare=False)
    said: str = field(default="", compare=False)

    @property
    def parameters(self) -> int:
        """How many the network has, by the shapes in the file."""
        return sum(math.prod(entry.shape) for entry in entries(self))


class AdmPrior(Conditional):
    """ε-prediction on DDPM's path, for images (B, 3, H, W) that the layout takes (`multiple`).

    Times are labels from 0 to 999, fractional ones included. Weights are float32, whatever the file has.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, layout: Layout, network: nn.Module, conditioning: Conditioning):
        super().__init__(layout.classes, conditioning)
        self.path: Path = DDPM()
        self.network = network
        self.sha256 = sha256(layout.file)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conditioned(lambda classes: self.network(x, t, classes, return_dict=False)[0][:, :3], x)


def adm(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    head_channels: PositiveInt | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    weights: str | None = None,
) -> AdmPrior:
    """A guided-diffusion checkpoint: ImageNet 256 or 512, LSUN, FFHQ, or one's own.

    One's own must have linear betas, 1000 labels, ε-prediction and the legacy order of q, k and v, as those.

    Args:
        path: the file as published, or as a training script wraps it; see `priors.tables`.
        head_channels: channels per attention head, for layouts other than the published ones.
        label: one class for all images, for class-conditional networks.
        cfg: the scale of classifier-free guidance, by a second evaluation with the class null_label; 1: none.
        null_label: the class that stands for none, of networks that were trained with one; the published
            ones were not.
        weights: the table to use, for files with several, such as ema or state_dict.model.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
        SpecError: a label that the network does not know, or guidance without a class that stands for none.
    """
    layout, state = opened(path, head_channels, weights)
    conditioning = Conditioning(label, cfg, null_label)
    conditioning.check(layout.classes)
    network = build(layout)
    checkpoint.adopt(network, renamed(state, layout), path)
    return AdmPrior(layout, network.to(device), conditioning)


def describe(
    *,
    path: CheckpointPath,
    head_channels: PositiveInt | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    weights: str | None = None,
) -> Layout:
    """The layout of a checkpoint, by its names and shapes alone; arguments and errors as for `adm`."""
    layout, _ = opened(path, head_channels, weights, "meta")
    conditioning = Conditioning(label, cfg, null_label)
    conditioning.check(layout.classes)
    build(layout)  # refuses widths that its normalisation cannot divide
    return replace(layout, said=", ".join(filter(None, (layout.said, conditioning.said))))


def opened(
    path: FilePath, head_channels: int | None, weights: str | None, device: str = "cpu"
) -> tuple[Layout, State]:
    """The layout of a file, and its parameters to sample with."""
    found = tables.find(checkpoint.read(path, device), path, MARK, weights=weights, spare=SCHEDULE)
    labels = torch.arange(1000, dtype=torch.float64)
    for name, table in found.left.items():
        expected = SCHEDULE[name](DDPM(), labels).to(table)
        if not table.is_meta and (table.shape != expected.shape or not table.allclose(expected, atol=1e-3)):
            logger.warning("%s: %r is not that of linear betas, for which the network is used", path, name)
    return replace(infer(found.state, path, head_channels), said=found.said), found.state


def infer(state: Mapping[str, Tensor], path: FilePath, head_channels: int | None) -> Layout:
    """The layout of a state dict, all of whose names, types and shapes then fit."""

    def shape(key: str, dimensions: int) -> Shape:
        if key not in state or state[key].ndim != dimensions:
            raise CheckpointError(
                f"path: {str(path)!r} is no guided-diffusion UNet: no {key!r} of {dimensions} dimensions"
            )
        return tuple(state[key].shape)

    modules = module_names(state)
    channels = shape("time_embed.0.weight", 2)[1]
    classes = shape("label_emb.weight", 2)[0] if "label_emb.weight" in state else None
    outputs = shape("out.2.weight", 4)[0]
    if outputs not in (3, 6):
        raise CheckpointError(f"path: {str(path)!r} has {outputs} output channels, neither 3 nor 6")
    if convolution := next((key for key in state if key.endswith((".op.weight", ".conv.weight"))), None):
        raise CheckpointError(
            f"path: {str(path)!r} resamples by convolution ({convolution!r}); only networks that resample in "
            "residual blocks (resblock_updown) are supported"
        )
    rows = next(row for row in count() if f"output_blocks.{row}" not in modules)
    ends = [r for r in range(rows) if modules & {f"output_blocks.{r}.{i}.in_layers" for i in (1, 2)}]
    blocks = (ends or [rows - 1])[0]
    firsts = [1 + level * (blocks + 1) for level in range(len(ends) + 1)]
    widths = tuple(shape(f"input_blocks.{first}.0.in_layers.2.weight", 4)[0] for first in firsts)
    attention = tuple(level for level, first in enumerate(firsts) if f"input_blocks.{first}.1" in modules)

    signature = (channels, widths, blocks, attention)
    head_channels = head_channels or HEAD_CHANNELS.get(signature, 0)
    layout = Layout(*signature, classes, outputs, head_channels, path)
    if problem := checkpoint.difference(in_file(entries(layout)), state):
        raise CheckpointError(f"path: {str(path)!r} is not the guided-diffusion UNet it resembles: {problem}")
    if classes is not None and signature in UNSUPPORTED:
        raise CheckpointError(f"path: {str(path)!r} is not supported: {UNSUPPORTED[signature]}")
    common = math.gcd(*(widths[level] for level in attention), widths[-1])
    if not head_channels:
        plausible = [n for n in (16, 32, 64, 128, 256) if common % n == 0]
        raise CheckpointError(
            "head_channels: the file does not tell the channels per attention head, and its layout "
            f"is none of the published ones (which have 64); give {' or '.join(map(str, plausible))}"
        )
    if common % head_channels:
        raise CheckpointError(
            f"head_channels: must divide the channels of every attention, {common} (got {head_channels})"
        )
    return layout


def entries(layout: Layout) -> Iterator[Entry]:
    """Every parameter of a layout."""
    widths, embedding = layout.widths, 4 * layout.channels
    coarsest = len(widths) - 1

    def residual(file: str, network: str, inputs: int, outputs: int) -> Iterator[Entry]:
        yield from affine(f"{file}.in_layers.0", f"{network}.norm1", inputs)
        yield from affine(f"{file}.in_layers.2", f"{network}.conv1", outputs, inputs, 3, 3)
        yield from affine(f"{file}.emb_layers.1", f"{network}.time_emb_proj", 2 * outputs, embedding)
        yield from affine(f"{file}.out_layers.0", f"{network}.norm2", outputs)
        yield from affine(f"{file}.out_layers.3", f"{network}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            yield from affine(f"{file}.skip_connection", f"{network}.conv_shortcut", outputs, inputs, 1, 1)

    def attention(file: str, network: str, width: int) -> Iterator[Entry]:
        yield from affine(f"{file}.norm", f"{network}.group_norm", width)
        yield from affine(f"{file}.qkv", f"{network}.qkv", 3 * width, width, 1)
        yield from affine(f"{file}.proj_out", f"{network}.to_out.0", width, width, 1)

    yield from affine("time_embed.0", "time_embedding.linear_1", embedding, layout.channels)
    yield from affine("time_embed.2", "time_embedding.linear_2", embedding, embedding)
    if layout.classes is not None:
        yield Entry("label_emb.weight", "class_embedding.weight", (layout.classes, embedding))

    yield from affine("input_blocks.0.0", "conv_in", widths[0], 3, 3, 3)
    skips = [widths[0]]
    row = count(1)
    for level, width in enumerate(widths):
        block = f"down_blocks.{level}"
        for i in range(layout.blocks):
            file = f"input_blocks.{next(row)}"
            yield from residual(f"{file}.0", f"{block}.resnets.{i}", skips[-1], width)
            if level in layout.attention:
                yield from attention(f"{file}.1", f"{block}.attentions.{i}", width)
            skips.append(width)
        if level < coarsest:
            yield from residual(f"input_blocks.{next(row)}.0", f"{block}.downsamplers.0", width, width)
            skips.append(width)

    yield from residual("middle_block.0", "mid_block.resnets.0", width, width)
    yield from attention("middle_block.1", "mid_block.attentions.0", width)
    yield from residual("middle_block.2", "mid_block.resnets.1", width, width)

    row, inputs = count(), width
    for level, width in reversed(list(enumerate(widths))):
        block = f"up_blocks.{coarsest - level}"
        for i in range(layout.blocks + 1):
            file = f"output_blocks.{next(row)}"
            yield from residual(f"{file}.0", f"{block}.resnets.{i}", inputs + skips.pop(), width)
            if level in layout.attention:
                yield from attention(f"{file}.1", f"{block}.attentions.{i}", width)
            inputs = width
        if level > 0:
            last = 2 if level in layout.attention else 1
            yield from residual(f"{file}.{last}", f"{block}.upsamplers.0", width, width)
    yield from affine("out.0", "conv_norm_out", widths[0])
    yield from affine("out.2", "conv_out", layout.outputs, widths[0], 3, 3)


def renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """The file's tensors under the network's names; all are views, except for q, k and v."""
    result: State = {}
    for entry in entries(layout):
        tensor = state[entry.file]
        if tensor.ndim == 3:  # a convolution over positions with kernel size 1
            tensor = tensor[..., 0]
        if ".qkv." not in entry.network:
            result[entry.network] = tensor
            continue
        # The file has the q, k and v of the first head, then those of the second, and so on.
        heads = tensor.view(-1, 3, layout.head_channels, *tensor.shape[1:])
        for name, part in zip(("to_q", "to_k", "to_v"), heads.unbind(1), strict=True):
            result[entry.network.replace("qkv", name)] = part.flatten(0, 1)
    return result


def build(layout: Layout) -> nn.Module:
    """The network of a layout, without memory for its weights."""
    # diffusers takes a second to import, and must not be imported while tensors are made on "meta".
    from diffusers import UNet2DModel
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    levels = range(len(layout.widths))
    down = ("AttnDownBlock2D" if level in layout.attention else "ResnetDownsampleBlock2D" for level in levels)
    up = ("AttnUpBlock2D" if level in layout.attention else "ResnetUpsampleBlock2D" for level in levels)

    def make() -> nn.Module:
        network = UNet2DModel(
            out_channels=layout.outputs,
            block_out_channels=layout.widths,
            layers_per_block=layout.blocks,
            down_block_types=tuple(down),
            up_block_types=tuple(up)[::-1],
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=layout.head_channels,
            attn_norm_num_groups=32,
            time_embedding_dim=4 * layout.channels,
            num_class_embeds=layout.classes,
        )
        # It follows the model channels and not the first width, which is half of them in ImageNet 512.
        network.time_proj = Timesteps(layout.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        network.time_embedding = TimestepEmbedding(layout.channels, 4 * layout.channels)
        return network

    return checkpoint.empty(make)
