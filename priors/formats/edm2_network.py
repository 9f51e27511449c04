"""The network of EDM2 (Karras et al. 2024, 2312.02696, config G, figure 21): it preserves magnitudes.

Written from the paper, and checked against its release. What the release does to weights at every call,
normalisation and gains, is done to them once, by `normalised`.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from kintsugi.checkpoint import State
from kintsugi.priors.formats.edm_network import Common, Few, Resample, Taps

EPS = 1e-4
UNUSED = ("logvar_fourier.", "logvar_linear.")
"""What estimates the loss in training."""

Share = Annotated[float, Field(ge=0, le=1)]


class Edm2(Common):
    """The arguments of EDM2's `UNet` and of its blocks."""

    attn_resolutions: tuple[int, ...] = (16, 8)
    channel_mult_noise: Few | None = None
    channel_mult_emb: Few | None = None
    label_balance: Share = 0.5
    concat_balance: Share = 0.5
    resample_filter: Taps = (1.0, 1.0)
    channels_per_head: Annotated[int, Field(ge=1)] = 64
    res_balance: Share = 0.3
    attn_balance: Share = 0.3
    clip_act: Annotated[float, Field(gt=0)] | None = 256.0


def normalised(state: Mapping[str, Tensor]) -> State:
    """The weights that the layers are used with (equations 47 and 66), times their gains.

    Each row has the norm 1, but for `EPS`, over the root of its size; a gain goes into what it scales.
    """
    found: State = {}
    for key, value in state.items():
        if key.startswith(UNUSED) or key.endswith("_gain"):
            continue
        if not key.endswith(".weight"):
            found[key] = value
            continue
        weight = value.float()
        size = math.prod(weight.shape[1:])
        length = torch.linalg.vector_norm(weight.flatten(1), dim=1) + EPS * math.sqrt(size)
        weight = weight / length.view(-1, *[1] * (weight.ndim - 1))
        if key.endswith("emb_linear.weight") or key == "out_conv.weight":
            gain = key.replace("emb_linear.weight", "emb_gain").replace("out_conv.weight", "out_gain")
            if gain not in state:
                continue
            weight = weight * state[gain].float()
        if key == "emb_label.weight":
            weight = weight * math.sqrt(size)
        found[key] = weight
    return found


def mp_silu(x: Tensor) -> Tensor:
    """SiLU that keeps the magnitude of normal numbers (equation 81)."""
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The sum in which b has a share (equation 88)."""
    return ((1 - share) * a + share * b) / math.hypot(1 - share, share)


def mp_cat(a: Tensor, b: Tensor, share: float) -> Tensor:
    """The channels of both, of which those of b have a share (equation 103)."""
    of_a, of_b = a.shape[1], b.shape[1]
    total = math.sqrt(of_a + of_b) / math.hypot(1 - share, share)
    return torch.cat([a * (total * (1 - share) / math.sqrt(of_a)), b * (total * share / math.sqrt(of_b))], 1)


def unit(x: Tensor, dim: int) -> Tensor:
    """Divided by the root mean square along a dimension (equation 30)."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (length / math.sqrt(x.shape[dim]) + EPS).to(x.dtype)


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """Of the same size; these networks have no biases."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


class Block(nn.Module):
    """A residual block of the encoder or decoder, which may resample, and attention behind it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int,
        settings: Edm2,
        side: Literal["enc", "dec"],
        resample: Literal["down", "up"] | None = None,
        attends: bool = False,
    ):
        super().__init__()
        self.side, self.settings = side, settings
        self.resample = Resample(resample, settings.resample_filter) if resample else nn.Identity()
        self.conv_res0 = convolution(outputs if side == "enc" else inputs, outputs, 3)
        self.conv_res1 = convolution(outputs, outputs, 3)
        self.emb_linear = nn.Linear(embedding, outputs, bias=False)
        self.conv_skip = convolution(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.heads = outputs // settings.channels_per_head if attends else 0
        if self.heads:
            self.attn_qkv, self.attn_proj = (convolution(outputs, n * outputs, 1) for n in (3, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, H, W) with the embedding (B, E) → (B, outputs, H', W')."""
        x = self.resample(x)
        if self.side == "enc":
            x = unit(self.conv_skip(x), 1)
        h = self.conv_res0(mp_silu(x)) * (1 + self.emb_linear(embedding)[..., None, None])
        h = self.conv_res1(mp_silu(h))
        x = mp_sum(x if self.side == "enc" else self.conv_skip(x), h, self.settings.res_balance)
        if self.heads:
            x = mp_sum(x, self.attention(x), self.settings.attn_balance)
        limit = self.settings.clip_act
        return x if limit is None else x.clamp(-limit, limit)

    def attention(self, x: Tensor) -> Tensor:
        """Of positions to each other, with q, k and v of unit magnitude, whose channels take turns."""
        channels = self.attn_qkv(x).view(len(x), self.heads, -1, 3, x[0, 0].numel())
        q, k, v = (part.mT for part in unit(channels, 2).unbind(3))
        return self.attn_proj(scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class Fourier(nn.Module):
    """Features of the noise of unit magnitude (equation 75); frequencies and phases are in the file."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(count))
        self.register_buffer("phases", torch.empty(count))

    def forward(self, noise: Tensor) -> Tensor:
        """(B,) → (B, count)."""
        angles = noise.outer(self.freqs) + self.phases  # type: ignore[arg-type,operator]
        return math.sqrt(2) * angles.cos()


class Edm2UNet(nn.Module):
    """EDM2's U-Net, of `normalised` weights."""

    def __init__(self, settings: Edm2):
        super().__init__()
        self.settings, widths = settings, settings.widths
        noise = settings.model_channels * (settings.channel_mult_noise or settings.channel_mult[0])
        embedding = settings.model_channels * (settings.channel_mult_emb or max(settings.channel_mult))
        self.emb_fourier, self.emb_noise = Fourier(noise), nn.Linear(noise, embedding, bias=False)
        self.emb_label = nn.Linear(settings.label_dim, embedding, bias=False) if settings.label_dim else None
        modules: dict[str, nn.Module] = {}
        passed: list[int] = []
        for level, width in enumerate(widths):
            side = settings.side(level)
            name, attends = f"{side}x{side}", side in settings.attn_resolutions
            if level:
                modules[f"{name}_down"] = Block(passed[-1], passed[-1], embedding, settings, "enc", "down")
                passed.append(passed[-1])
            else:
                modules[f"{name}_conv"] = convolution(settings.img_channels + 1, width, 3)
                passed.append(width)
            for i in range(settings.num_blocks):
                block = Block(passed[-1], width, embedding, settings, "enc", attends=attends)
                modules[f"{name}_block{i}"] = block
                passed.append(width)
        self.enc, modules = nn.ModuleDict(modules), {}
        for level in reversed(range(len(widths))):
            side = settings.side(level)
            name, attends = f"{side}x{side}", side in settings.attn_resolutions
            if level == len(widths) - 1:
                modules[f"{name}_in0"] = Block(width, width, embedding, settings, "dec", attends=True)
                modules[f"{name}_in1"] = Block(width, width, embedding, settings, "dec")
            else:
                modules[f"{name}_up"] = Block(width, width, embedding, settings, "dec", "up")
            for i in range(settings.num_blocks + 1):
                inputs, width = width + passed.pop(), widths[level]
                block = Block(inputs, width, embedding, settings, "dec", attends=attends)
                modules[f"{name}_block{i}"] = block
        self.dec, self.out_conv = nn.ModuleDict(modules), convolution(width, settings.img_channels, 3)

    def forward(self, x: Tensor, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """F (B, C, H, W) of scaled images, of the noise (B,), and of classes, (B, label_dim) of 0 and 1."""
        embedding = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and classes is not None:
            embedding = mp_sum(embedding, self.emb_label(classes), self.settings.label_balance)
        embedding = mp_silu(embedding)
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        passed: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("conv") else module(x, embedding)
            passed.append(x)
        for name, module in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, passed.pop(), self.settings.concat_balance)
            x = module(x, embedding)
        return self.out_conv(x)
