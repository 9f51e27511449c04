"""Checkpoints of guided-diffusion (ADM, arXiv 2105.05233) and improved-diffusion (arXiv 2102.09672).

Their architecture is read from the names and shapes in the file, except for what no file tells
(`adm_training`). `entries` lists every parameter of a layout once: a file is checked against
that list, and its tensors are renamed by it into diffusers' `UNet2DModel`.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path as FilePath
from typing import Annotated

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointError, CheckpointPath, State
from kintsugi.priors import tables
from kintsugi.priors.base import Parametrization
from kintsugi.priors.classes import Conditional, Conditioning
from kintsugi.priors.formats.adm_training import Known, Schedule, Signature, Told
from kintsugi.priors.formats.layout import Entry, Shape, UNetLayout, affine, in_file, module_names
from kintsugi.priors.paths import DDPM, Path

logger = logging.getLogger(__name__)

MARK = "time_embed.0.weight"
Steps = Annotated[int, Field(ge=50, le=100_000)]
SCHEDULE = {"sqrt_alphas_cumprod": DDPM.a, "sqrt_1m_alphas_cumprod": DDPM.s}
"""Tables over the labels that deepinv keeps beside the weights of its DiffUNet."""


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
        known: what no file tells.
        convolved: levels are resampled by convolutions, not in residual blocks.
        modulated: the embedding scales and shifts what is normalised; otherwise it is added before.
        file: the checkpoint. said: where the weights lay in it, if not as published, and how it is guided.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    classes: int | None
    outputs: int
    known: Known
    convolved: bool = False
    modulated: bool = True
    file: FilePath = field(default=FilePath(), compare=False)
    said: str = field(default="", compare=False)

    @property
    def parameters(self) -> int:
        """How many the network has, by the shapes in the file."""
        return sum(math.prod(entry.shape) for entry in entries(self))


class AdmPrior(Conditional):
    """ε-prediction on the path of betas, for images (B, 3, H, W) that the layout takes (`multiple`).

    Times are labels from 0 to one less than there are steps, fractional ones included. Weights are
    float32, whatever the file has.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, layout: Layout, network: nn.Module, conditioning: Conditioning):
        super().__init__(layout.classes, conditioning)
        self.training = layout.known.training
        self.path: Path = self.training.path()
        self.network = network
        self.sha256 = sha256(layout.file)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        seen = self.training.seen(t)
        return self.conditioned(
            lambda classes: self.network(x, seen, classes, return_dict=False)[0][:, :3], x
        )


def adm(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    head_channels: PositiveInt | None = None,
    heads: PositiveInt | None = None,
    schedule: Schedule | None = None,
    steps: Steps | None = None,
    rescaled: bool | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    weights: str | None = None,
) -> AdmPrior:
    """A checkpoint of guided-diffusion (ImageNet, LSUN, FFHQ), of improved-diffusion, or one's own.

    One's own must have ε-prediction and the legacy order of q, k and v. What published ones were trained with
    is known, and the fields up to rescaled are for others.

    Args:
        path: the file as published, or as a training script wraps it; see `priors.tables`.
        head_channels: channels per attention head, for layouts other than the published ones.
        heads: their number at every width, in place of that.
        schedule: of the noise, linear or cosine; linear if the network is of guided-diffusion.
        steps: number of labels, 1000.
        rescaled: the network saw labels times 1000 / steps, as by default in improved-diffusion.
        label: one class for all images, for class-conditional networks.
        cfg: the scale of classifier-free guidance, by a second evaluation with the class null_label; 1: none.
        null_label: the class that stands for none, of networks that were trained with one; the published
            ones were not.
        weights: the table to use, for files with several, such as ema or state_dict.model.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
        SpecError: a label that the network does not know, or guidance without a class that stands for none.
    """
    layout, state = opened(path, Told(head_channels, heads, schedule, steps, rescaled), weights)
    conditioning = Conditioning(label, cfg, null_label)
    conditioning.check(layout.classes)
    network = build(layout)
    checkpoint.adopt(network, renamed(state, layout), path)
    return AdmPrior(layout, network.to(device), conditioning)


def describe(
    *,
    path: CheckpointPath,
    head_channels: PositiveInt | None = None,
    heads: PositiveInt | None = None,
    schedule: Schedule | None = None,
    steps: Steps | None = None,
    rescaled: bool | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    weights: str | None = None,
) -> Layout:
    """The layout of a checkpoint, by its names and shapes alone; arguments and errors as for `adm`."""
    layout, _ = opened(path, Told(head_channels, heads, schedule, steps, rescaled), weights, "meta")
    conditioning = Conditioning(label, cfg, null_label)
    conditioning.check(layout.classes)
    build(layout)  # refuses widths that its normalisation cannot divide
    said = (layout.said, layout.known.training.said, conditioning.said)
    return replace(layout, said=", ".join(filter(None, said)))


def opened(path: FilePath, told: Told, weights: str | None, device: str = "cpu") -> tuple[Layout, State]:
    """The layout of a file, and its parameters to sample with."""
    found = tables.find(checkpoint.read(path, device), path, MARK, weights=weights, spare=SCHEDULE)
    layout = infer(found.state, path, told)
    training = layout.known.training
    labels = torch.arange(training.steps, dtype=torch.float64)
    for name, table in found.left.items():
        expected = SCHEDULE[name](training.path(), labels).to(table)
        if not table.is_meta and (table.shape != expected.shape or not table.allclose(expected, atol=1e-3)):
            logger.warning("%s: %r is not that of its betas, with which the network is used", path, name)
    return replace(layout, said=found.said), found.state


def infer(state: Mapping[str, Tensor], path: FilePath, told: Told) -> Layout:
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
    convolved = any(key.endswith(".op.weight") for key in state)
    rows = next(row for row in count() if f"output_blocks.{row}" not in modules)
    last = "conv" if convolved else "in_layers"
    ends = [r for r in range(rows) if modules & {f"output_blocks.{r}.{i}.{last}" for i in (1, 2)}]
    blocks = (ends or [rows - 1])[0]
    firsts = [1 + level * (blocks + 1) for level in range(len(ends) + 1)]
    widths = tuple(shape(f"input_blocks.{first}.0.in_layers.2.weight", 4)[0] for first in firsts)
    attention = tuple(level for level, first in enumerate(firsts) if f"input_blocks.{first}.1" in modules)

    told_twice = shape("input_blocks.1.0.emb_layers.1.weight", 2)[0]
    layout = Layout(
        channels,
        widths,
        blocks,
        attention,
        classes,
        outputs,
        known=Known(),
        convolved=convolved,
        modulated=told_twice == 2 * widths[0],
        file=path,
    )
    if problem := checkpoint.difference(in_file(entries(layout)), state):
        raise CheckpointError(f"path: {str(path)!r} is not the guided-diffusion UNet it resembles: {problem}")
    common = math.gcd(*(widths[level] for level in attention), widths[-1])
    signature = Signature(channels, widths, blocks, attention, convolved, layout.modulated)
    return replace(layout, known=told.known(signature, classes is not None, common))


def attention(file: str, network: str, width: int) -> Iterator[Entry]:
    """The parameters of attention in one place."""
    yield from affine(f"{file}.norm", f"{network}.group_norm", width)
    yield from affine(f"{file}.qkv", f"{network}.qkv", 3 * width, width, 1)
    yield from affine(f"{file}.proj_out", f"{network}.to_out.0", width, width, 1)


def entries(layout: Layout) -> Iterator[Entry]:
    """Every parameter of a layout."""
    widths, embedding = layout.widths, 4 * layout.channels
    coarsest, told = len(widths) - 1, 2 if layout.modulated else 1

    def residual(file: str, network: str, inputs: int, outputs: int) -> Iterator[Entry]:
        yield from affine(f"{file}.in_layers.0", f"{network}.norm1", inputs)
        yield from affine(f"{file}.in_layers.2", f"{network}.conv1", outputs, inputs, 3, 3)
        yield from affine(f"{file}.emb_layers.1", f"{network}.time_emb_proj", told * outputs, embedding)
        yield from affine(f"{file}.out_layers.0", f"{network}.norm2", outputs)
        yield from affine(f"{file}.out_layers.3", f"{network}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            yield from affine(f"{file}.skip_connection", f"{network}.conv_shortcut", outputs, inputs, 1, 1)

    def resampled(file: str, network: str, convolution: str, width: int) -> Iterator[Entry]:
        if layout.convolved:
            yield from affine(f"{file}.{convolution}", f"{network}.conv", width, width, 3, 3)
        else:
            yield from residual(file, network, width, width)

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
            yield from resampled(f"input_blocks.{next(row)}.0", f"{block}.downsamplers.0", "op", width)
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
            yield from resampled(f"{file}.{last}", f"{block}.upsamplers.0", "conv", width)
    yield from affine("out.0", "conv_norm_out", widths[0])
    yield from affine("out.2", "conv_out", layout.outputs, widths[0], 3, 3)


def renamed(state: Mapping[str, Tensor], layout: Layout) -> State:
    """The file's tensors under the network's names; all are views, except for q, k and v."""
    result: State = {}
    known = layout.known
    for entry in entries(layout):
        tensor = state[entry.file]
        if tensor.ndim == 3:  # a convolution over positions with kernel size 1
            tensor = tensor[..., 0]
        if ".qkv." not in entry.network:
            result[entry.network] = tensor
            continue
        # Mostly the file has the q, k and v of the first head, then those of the second, and so on.
        size = len(tensor) // 3
        size = size if known.thirds else known.head_channels or size // known.heads
        heads = tensor.view(-1, 3, size, *tensor.shape[1:])
        for name, part in zip(("to_q", "to_k", "to_v"), heads.unbind(1), strict=True):
            result[entry.network.replace("qkv", name)] = part.flatten(0, 1)
    return result


def build(layout: Layout) -> nn.Module:
    """The network of a layout, without memory for its weights."""
    # diffusers takes a second to import, and must not be imported while tensors are made on "meta".
    from diffusers import UNet2DModel
    from diffusers.models.attention_processor import Attention
    from diffusers.models.embeddings import TimestepEmbedding, Timesteps

    levels = range(len(layout.widths))
    plain = ("DownBlock2D", "UpBlock2D")
    if not layout.convolved:
        plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    down = ("AttnDownBlock2D" if level in layout.attention else plain[0] for level in levels)
    up = ("AttnUpBlock2D" if level in layout.attention else plain[1] for level in levels)
    heads = layout.known.heads
    resampling = "conv" if layout.convolved else "resnet"

    def make() -> nn.Module:
        network = UNet2DModel(
            out_channels=layout.outputs,
            block_out_channels=layout.widths,
            layers_per_block=layout.blocks,
            down_block_types=tuple(down),
            up_block_types=tuple(up)[::-1],
            downsample_type=resampling,
            upsample_type=resampling,
            resnet_time_scale_shift="scale_shift" if layout.modulated else "default",
            attention_head_dim=layout.known.head_channels or None,
            attn_norm_num_groups=32,
            time_embedding_dim=4 * layout.channels,
            num_class_embeds=layout.classes,
        )
        # It follows the model channels and not the first width, which is half of them in ImageNet 512.
        network.time_proj = Timesteps(layout.channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        network.time_embedding = TimestepEmbedding(layout.channels, 4 * layout.channels)
        for module in network.modules():
            if heads and isinstance(module, Attention):
                module.heads, module.scale = heads, (module.inner_dim / heads) ** -0.5
        return network

    return checkpoint.empty(make)
