"""Checkpoints of denoising-diffusion-pytorch (lucidrains) since 1.9: its `Unet` within `GaussianDiffusion`.

The architecture is read from names and shapes; the noise is in the file (`betas`), and what the network
predicts is told by how its loss was weighted (`loss_weight`). Written from the shapes, and checked against
the package; parameters have its names.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path as FilePath
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention, silu

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointError, CheckpointPath, State
from kintsugi.priors import tables
from kintsugi.priors.base import Parametrization
from kintsugi.priors.formats.layout import module_names
from kintsugi.priors.paths import DDPM, Path

logger = logging.getLogger(__name__)

MARK = "init_conv.weight"
Objective = Literal["pred_noise", "pred_x0", "pred_v"]


@dataclass(frozen=True)
class Attending:
    """Attention at a level: its heads, whether between all positions or linear, and its own keys."""

    heads: int
    head_channels: int
    memories: int
    full: bool


@dataclass(frozen=True)
class Settings:
    """The architecture.

    Attributes:
        dim: half the size of the features of time. kernel: of the first convolution.
        widths: channels of the first convolution, and after each level; all but the last level halve.
        attending: by level, and in the middle.
        channels: of images. twice: the network takes its last prediction, too; it is given none.
        groups: of the norms in residual blocks before version 2.0, 0 since.
    """

    dim: int
    kernel: int
    widths: tuple[int, ...]
    attending: tuple[Attending, ...]
    channels: int
    twice: bool
    groups: int


class Norm(nn.Module):
    """Channels scaled to the root mean square g."""

    def __init__(self, channels: int):
        super().__init__()
        self.g = nn.Parameter(torch.empty(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape (B, C, H, W)."""
        return normalize(x, dim=1) * self.g * math.sqrt(x.shape[1])


class Part(nn.Module):
    """Convolution and norm."""

    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm = nn.GroupNorm(groups, outputs) if groups else Norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) → (B, outputs, H, W)."""
        return self.norm(self.proj(x))


class Residual(nn.Module):
    """A residual block, modulated by the time."""

    def __init__(self, inputs: int, outputs: int, of: Settings):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(4 * of.dim, 2 * outputs))
        self.block1, self.block2 = Part(inputs, outputs, of.groups), Part(outputs, outputs, of.groups)
        self.res_conv = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, H, W) with the embedding (B, E) → (B, outputs, H, W)."""
        scale, shift = self.mlp(embedding)[..., None, None].chunk(2, 1)
        h = silu(self.block1(x) * (1 + scale) + shift)
        return silu(self.block2(h)) + self.res_conv(x)


class Attention(nn.Module):
    """Attention of positions to each other and to keys that were learned, or its linear form (2012.12258)."""

    def __init__(self, channels: int, of: Attending):
        super().__init__()
        self.of, inner = of, of.heads * of.head_channels
        self.norm = Norm(channels)
        each = (of.memories, of.head_channels) if of.full else (of.head_channels, of.memories)
        self.mem_kv = nn.Parameter(torch.empty(2, of.heads, *each))
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        out: nn.Module = nn.Conv2d(inner, channels, 1)
        self.to_out = out if of.full else nn.Sequential(out, Norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape (B, C, H, W)."""
        q, k, v = self.to_qkv(self.norm(x)).view(len(x), 3, self.of.heads, -1, x[0, 0].numel()).unbind(1)
        memories = self.mem_kv.mT if self.of.full else self.mem_kv
        own_k, own_v = memories.to(q.dtype).unsqueeze(1).expand(-1, len(x), -1, -1, -1)
        k, v = torch.cat([own_k, k], -1), torch.cat([own_v, v], -1)
        if self.of.full:
            h = scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        else:
            q = q.softmax(-2) / math.sqrt(self.of.head_channels)
            h = v @ k.softmax(-1).mT @ q
        return self.to_out(h.reshape(len(x), -1, *x.shape[2:]))


class Unet(nn.Module):
    """The network."""

    def __init__(self, of: Settings):
        super().__init__()
        self.of, widths, embedding = of, of.widths, 4 * of.dim
        self.init_conv = nn.Conv2d(
            of.channels * (2 if of.twice else 1), widths[0], of.kernel, padding=of.kernel // 2
        )
        self.time_mlp = nn.Sequential(
            nn.Identity(), nn.Linear(of.dim, embedding), nn.GELU(), nn.Linear(embedding, embedding)
        )
        downs, ups, last = [], [], len(widths) - 2
        for level in range(last + 1):
            inputs, outputs = widths[level : level + 2]
            halving = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * inputs, outputs, 1))
            doubling = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(outputs, inputs, 3, padding=1))
            parts = [Residual(inputs, inputs, of) for _ in range(2)]
            smaller = halving if level < last else nn.Conv2d(inputs, outputs, 3, padding=1)
            downs.append(nn.ModuleList([*parts, Attention(inputs, of.attending[level]), smaller]))
            parts = [Residual(inputs + outputs, outputs, of) for _ in range(2)]
            larger = doubling if level else nn.Conv2d(outputs, inputs, 3, padding=1)
            ups.append(nn.ModuleList([*parts, Attention(outputs, of.attending[level]), larger]))
        self.downs, self.ups = nn.ModuleList(downs), nn.ModuleList(ups[::-1])
        self.mid_block1, self.mid_block2 = (Residual(widths[-1], widths[-1], of) for _ in range(2))
        self.mid_attn = Attention(widths[-1], of.attending[-1])
        self.final_res_block = Residual(2 * widths[0], widths[0], of)
        self.final_conv = nn.Conv2d(widths[0], of.channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """What it predicts, of x's shape (B, C, H, W), at labels t (B,)."""
        half = self.of.dim // 2
        exponents = torch.arange(half, dtype=torch.float32, device=x.device) / max(1, half - 1)
        angles = t.outer(10_000.0**-exponents)
        embedding = self.time_mlp(torch.cat([angles.sin(), angles.cos()], 1))
        x = self.init_conv(torch.cat([torch.zeros_like(x), x], 1) if self.of.twice else x)
        passed = [x]
        for level in self.downs:
            first, second, attention, smaller = level.children()
            passed.append(first(x, embedding))
            x = second(passed[-1], embedding)
            passed.append(x + attention(x))
            x = smaller(passed[-1])
        x = self.mid_block1(x, embedding)
        x = self.mid_block2(x + self.mid_attn(x), embedding)
        for level in self.ups:
            first, second, attention, larger = level.children()
            x = first(torch.cat([x, passed.pop()], 1), embedding)
            x = second(torch.cat([x, passed.pop()], 1), embedding)
            x = larger(x + attention(x))
        return self.final_conv(self.final_res_block(torch.cat([x, passed.pop()], 1), embedding))


@dataclass(frozen=True)
class Description:
    """A file that was found to fit.

    Attributes:
        network: without memory for its weights.
    """

    file: FilePath
    settings: Settings
    network: nn.Module
    betas: Tensor
    objective: Objective
    state: State
    said: str

    @property
    def multiple(self) -> int:
        """What the sides of images must be divisible by."""
        return 2 ** (len(self.settings.widths) - 2)

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return self.settings.channels

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def files(self) -> tuple[FilePath]:
        """The checkpoint alone."""
        return (self.file,)


class LucidrainsPrior:
    """ε on the path of the file's betas, for images (B, C, H, W); times are labels, fractional ones too."""

    parametrization: Parametrization = "eps"

    def __init__(self, description: Description, device: str | torch.device):
        self.path: Path = DDPM(betas=description.betas)
        self.table = DDPM(betas=description.betas.to(device))
        self.objective, self.network = description.objective, description.network
        checkpoint.adopt(self.network, description.state, description.file)
        self.network.to(device)
        self.sha256 = sha256(description.file)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.network(x, t)
        if self.objective == "pred_noise":
            return output
        a, s = (level(t.double()).to(x.dtype).view(-1, 1, 1, 1) for level in (self.table.a, self.table.s))
        return a * output + s * x if self.objective == "pred_v" else (x - a * output) / s


def lucidrains(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    objective: Objective | None = None,
    groups: PositiveInt = 8,
    weights: str | None = None,
) -> LucidrainsPrior:
    """A checkpoint of denoising-diffusion-pytorch's Trainer: results/model-10.pt.

    The moving average of the weights is used. Networks that predict from their last prediction
    (self_condition) are given none.

    Args:
        path: the file.
        objective: pred_noise, pred_x0 or pred_v, for files that do not tell.
        groups: resnet_block_groups, for files of versions before 2.0.
        weights: the table to use, for files with several, such as model.model.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
    """
    return LucidrainsPrior(describe(path=path, objective=objective, groups=groups, weights=weights), device)


def describe(
    *,
    path: CheckpointPath,
    objective: Objective | None = None,
    groups: PositiveInt = 8,
    weights: str | None = None,
) -> Description:
    """What a checkpoint is; arguments and errors as for `lucidrains`. Of its weights none is read."""
    content = checkpoint.read(path)  # its betas are read, and the rest stays in the file
    found = tables.find(content, path, MARK, weights=weights)
    settings = infer(found.state, path, groups)
    try:
        network = checkpoint.empty(lambda: Unet(settings))
    except ValueError as error:  # of its norms
        raise CheckpointError(f"groups: must divide the channels of every level (got {groups})") from error
    if problem := checkpoint.difference(network.state_dict(), found.state):
        raise CheckpointError(f"path: {str(path)!r} is not the Unet it resembles: {problem}")
    betas = beside(content, "betas")
    if betas is None or len(betas) < 2 or not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError(
            f"path: {str(path)!r} has no betas between 0 and 1 beside its Unet; save the state dict of its "
            "GaussianDiffusion, as its Trainer does"
        )
    told = objective or predicted(betas, beside(content, "loss_weight"))
    if told is None:
        raise CheckpointError(
            "objective: the file does not tell what its network predicts; give pred_noise, pred_x0 or pred_v"
        )
    if not found.average and weights is None:
        logger.warning("%s has no moving average: the trained weights are used as they are", path)
    where = found.said.partition(", without")[0]  # what lies beside is its diffusion
    said = f"{told}, {len(betas)} betas{', ' if where else ''}{where}"
    return Description(path, settings, network, betas, told, found.state, said)


def beside(content: Any, name: str) -> Tensor | None:
    """The first table of numbers with a name, in whatever dict and behind whatever prefix."""
    for _, values in tables.walk(content):
        for key, value in values.items():
            if isinstance(key, str) and key.rpartition(".")[2] == name:
                return value.double() if isinstance(value, Tensor) and value.ndim == 1 else None
    return None


def predicted(betas: Tensor, weights: Tensor | None) -> Objective | None:
    """What a network predicts whose loss had these weights by label; None where that is not clear.

    They are 1 for ε, the ratio r of the powers of signal and noise for x₀, and r/(1 + r) for v, unless r is
    large.
    """
    alpha_bar = (1 - betas).cumprod(0)
    ratio = alpha_bar / (1 - alpha_bar)
    where = (ratio > 0.1) & (ratio < 2)
    if weights is None or weights.shape != betas.shape or not where.any():
        return None
    ratio, weights = ratio[where], weights[where]
    expected: Mapping[Objective, Tensor] = {
        "pred_noise": torch.ones_like(ratio),
        "pred_x0": ratio,
        "pred_v": ratio / (1 + ratio),
    }
    return next((name for name, value in expected.items() if torch.allclose(weights, value, rtol=1e-2)), None)


def infer(state: Mapping[str, Tensor], path: FilePath, groups: int) -> Settings:
    """The architecture of a state dict; raises a CheckpointError where it is of another network."""

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        if key not in state or state[key].ndim != dimensions:
            raise CheckpointError(
                f"path: {str(path)!r} is no Unet of denoising-diffusion-pytorch: no {key!r} of {dimensions} "
                "dimensions"
            )
        return tuple(state[key].shape)

    first, _, kernel, _ = shape(MARK, 4)
    inputs, channels = shape(MARK, 4)[1], shape("final_conv.weight", 4)[0]
    if any(".fn." in key for key in state):
        raise CheckpointError(
            f"path: {str(path)!r} is a Unet of denoising-diffusion-pytorch before 1.9, which is not read"
        )
    if inputs not in (channels, 2 * channels) or "time_mlp.0.weights" in state:
        raise CheckpointError(
            f"path: {str(path)!r} is a Unet with a learned variance or learned features of time, and these "
            "are not read"
        )
    modules = module_names(state)
    levels = next(level for level in count() if f"downs.{level}" not in modules)

    def attending(name: str) -> Attending:
        full = f"{name}.to_out.weight" in state
        _, heads, *each = shape(f"{name}.mem_kv", 4)
        memories, head_channels = each if full else each[::-1]
        return Attending(heads, head_channels, memories, full)

    ends = ("3.1" if f"downs.{level}.3.1.weight" in state else "3" for level in range(levels))
    widths = [shape(f"downs.{level}.{end}.weight", 4)[0] for level, end in enumerate(ends)]
    return Settings(
        dim=shape("time_mlp.1.weight", 2)[1],
        kernel=kernel,
        widths=(first, *widths),
        attending=(*(attending(f"downs.{level}.2") for level in range(levels)), attending("mid_attn")),
        channels=channels,
        twice=inputs != channels,
        groups=groups if "downs.0.0.block1.norm.weight" in state else 0,
    )
