"""The networks of EDM (Karras et al. 2022, 2206.00364, table 7): DDPM++, NCSN++ and ADM.

Written from the paper, and checked against its release; parameters have the names of the release.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, scaled_dot_product_attention, silu

METADATA = "kintsugi.edm"
"""The key of a safetensors file's metadata that has the class and arguments of the network, as JSON."""

Multipliers = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=10)]
Few = Annotated[int, Field(ge=1, le=64)]
Taps = Annotated[tuple[float, ...], Field(min_length=2, max_length=8)]


class Common(BaseModel):
    """What the networks of EDM and EDM2 are made with, by the names of the release.

    Attributes:
        img_resolution: that levels are named by; images may have others.
        attn_resolutions: the levels with attention; the coarsest always has it in the middle.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    img_resolution: Annotated[int, Field(ge=1, le=8192)]
    img_channels: Annotated[int, Field(ge=1, le=256)]
    label_dim: Annotated[int, Field(ge=0, le=100_000)] = 0
    model_channels: Annotated[int, Field(ge=4, le=8192)] = 192
    channel_mult: Multipliers = (1, 2, 3, 4)
    num_blocks: Few = 3
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    dropout: float = 0.0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, the finest first; each level halves the resolution."""
        return tuple(self.model_channels * factor for factor in self.channel_mult)

    def side(self, level: int) -> int:
        """The resolution of a level, which names it."""
        return self.img_resolution >> level


class Adm(Common):
    """The arguments of `DhariwalUNet`, ADM's architecture."""

    augment_dim: int = 0
    channel_mult_emb: Few = 4
    label_dropout: float = 0.0
    out_channels: int | None = None


class Song(Common):
    """The arguments of `SongUNet`: DDPM++; NCSN++ with Fourier features, a filter, a residual encoder."""

    model_channels: Annotated[int, Field(ge=4, le=8192)] = 128
    channel_mult: Multipliers = (1, 2, 2, 2)
    num_blocks: Few = 4
    attn_resolutions: tuple[int, ...] = (16,)
    augment_dim: int = 0
    channel_mult_emb: Few = 4
    channel_mult_noise: Few = 1
    label_dropout: float = 0.0
    embedding_type: Literal["positional", "fourier"] = "positional"
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: Taps = (1.0, 1.0)


class Resample(nn.Module):
    """Half or twice the resolution by a separable filter; depthwise, without parameters.

    Args:
        taps: of the filter, an even number, of any sum. padding: False leaves it out of halving.
    """

    def __init__(self, direction: Literal["down", "up"], taps: tuple[float, ...], padding: bool = True):
        super().__init__()
        self.taps = [tap / sum(taps) for tap in taps]
        self.direction, self.padding = direction, (len(taps) - 1) // 2 if padding else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2) or (B, C, 2H, 2W)."""
        channels = x.shape[1]
        taps = torch.stack([x.new_full((), tap) for tap in self.taps])  # filled in: no copy from the host
        kernel = taps.outer(taps).expand(channels, 1, -1, -1)
        if self.direction == "down":
            return conv2d(x, kernel, stride=2, padding=self.padding, groups=channels)
        return conv_transpose2d(x, 4 * kernel, stride=2, padding=self.padding, groups=channels)


class FilteredDown(nn.Conv2d):
    """A 3 × 3 convolution, then a filter that halves the resolution."""

    def __init__(self, inputs: int, outputs: int, taps: tuple[float, ...]):
        super().__init__(inputs, outputs, 3, padding=1 + (len(taps) - 1) // 2)
        self.resample = Resample("down", taps, padding=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, outputs, H/2, W/2)."""
        assert self.bias is not None
        x = self.resample(conv2d(x, self.weight, padding=self.padding))
        return x + self.bias.to(x.dtype).view(-1, 1, 1)


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """In 32 groups, or in fewer of four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


@dataclass(frozen=True)
class Style:
    """What all residual blocks of a network share.

    Attributes:
        embedding: size of the embedding of noise and class. taps: of the filter that resamples.
        scale: of every sum of a branch and what goes past it.
        modulated: the embedding scales and shifts what is normalised; otherwise it is added before.
        projected: what goes past a block that resamples is convolved.
    """

    embedding: int
    taps: tuple[float, ...]
    eps: float
    scale: float
    modulated: bool
    projected: bool
    head_channels: int | None

    def joined(self, x: Tensor, branch: Tensor) -> Tensor:
        """The sum of what goes past a branch and the branch, of their shape."""
        return x + branch if self.scale == 1 else (x + branch) * self.scale


class Block(nn.Module):
    """A residual block, which may resample, and attention behind it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        style: Style,
        resample: Literal["down", "up"] | None = None,
        attends: bool = False,
    ):
        super().__init__()
        self.style = style
        self.resample = Resample(resample, style.taps) if resample else nn.Identity()
        self.norm0, self.norm1 = norm(inputs, style.eps), norm(outputs, style.eps)
        self.conv0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.affine = nn.Linear(style.embedding, outputs * (2 if style.modulated else 1))
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        convolved = inputs != outputs or (resample is not None and style.projected)
        self.skip = nn.Conv2d(inputs, outputs, 1) if convolved else nn.Identity()
        self.heads = 0
        if attends:
            self.heads = outputs // style.head_channels if style.head_channels else 1
        if self.heads:
            self.norm2 = norm(outputs, style.eps)
            self.qkv, self.proj = nn.Conv2d(outputs, 3 * outputs, 1), nn.Conv2d(outputs, outputs, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, inputs, H, W) with the embedding (B, E) → (B, outputs, H', W')."""
        h = self.conv0(self.resample(silu(self.norm0(x))))
        told = self.affine(embedding)[..., None, None]
        if self.style.modulated:
            scale, shift = told.chunk(2, 1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + told)
        x = self.style.joined(self.skip(self.resample(x)), self.conv1(silu(h)))
        return self.style.joined(x, self.attention(x)) if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """Of positions to each other. Channels of q, k and v take turns in the file."""
        channels = self.qkv(self.norm2(x)).view(len(x), self.heads, -1, 3, x[0, 0].numel())
        q, k, v = (part.mT for part in channels.unbind(3))
        return self.proj(scaled_dot_product_attention(q, k, v).mT.reshape(x.shape))


class Fourier(nn.Module):
    """Random features of the noise; the frequencies are in the file."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("freqs", torch.empty(count))

    def forward(self, noise: Tensor) -> Tensor:
        """(B,) → the angles (B, count)."""
        return 2 * math.pi * noise.outer(self.freqs)  # type: ignore[arg-type]


class Positional(nn.Module):
    """Sinusoidal features of the noise (Vaswani et al. 2017), to 1e-4 or just above."""

    def __init__(self, count: int, reaches_end: bool):
        super().__init__()
        self.count, self.steps = count, max(1, count - reaches_end)

    def forward(self, noise: Tensor) -> Tensor:
        """(B,) → the angles (B, count)."""
        exponents = torch.arange(self.count, dtype=torch.float32, device=noise.device) / self.steps
        return noise.outer(10_000.0**-exponents)


class SongUNet(nn.Module):
    """DDPM++ and NCSN++ (Song et al. 2021, 2011.13456), with a class.

    Attributes:
        enc, dec: by the names of the release: the level's side, and what it is.
    """

    def __init__(self, settings: Song):
        super().__init__()
        noise = settings.model_channels * settings.channel_mult_noise
        embedding = settings.model_channels * settings.channel_mult_emb
        self.map_noise: nn.Module = (
            Fourier(noise // 2) if settings.embedding_type == "fourier" else Positional(noise // 2, True)
        )
        self.map_label = nn.Linear(settings.label_dim, noise) if settings.label_dim else None
        self.map_layer0, self.map_layer1 = nn.Linear(noise, embedding), nn.Linear(embedding, embedding)
        self.style = Style(embedding, settings.resample_filter, 1e-6, math.sqrt(0.5), False, True, None)
        self.enc, widths = self.encoder(settings)
        self.dec = self.decoder(settings, widths)

    def encoder(self, settings: Song) -> tuple[nn.ModuleDict, list[int]]:
        """The modules on the way down, and the channels of what is passed over to the way up."""
        images, base, taps = settings.img_channels, settings.model_channels, settings.resample_filter
        modules: dict[str, nn.Module] = {
            f"{settings.side(0)}x{settings.side(0)}_conv": convolution(images, base)
        }
        passed, seen = [base], images
        for level, width in enumerate(settings.widths):
            side = settings.side(level)
            name = f"{side}x{side}"
            if level:
                modules[f"{name}_down"] = Block(passed[-1], passed[-1], self.style, "down")
                if settings.encoder_type == "skip":
                    modules[f"{name}_aux_down"] = Resample("down", taps)
                    modules[f"{name}_aux_skip"] = nn.Conv2d(images, passed[-1], 1)
                if settings.encoder_type == "residual":
                    modules[f"{name}_aux_residual"] = FilteredDown(seen, passed[-1], taps)
                    seen = passed[-1]
                passed.append(passed[-1])
            for i in range(settings.num_blocks):
                attends = side in settings.attn_resolutions
                modules[f"{name}_block{i}"] = Block(passed[-1], width, self.style, attends=attends)
                passed.append(width)
        return nn.ModuleDict(modules), passed

    def decoder(self, settings: Song, passed: list[int]) -> nn.ModuleDict:
        """The modules on the way up."""
        modules: dict[str, nn.Module] = {}
        width, coarsest = passed[-1], len(settings.widths) - 1
        for level in range(coarsest, -1, -1):
            side = settings.side(level)
            name, skips = f"{side}x{side}", settings.decoder_type == "skip"
            if level == coarsest:
                modules[f"{name}_in0"] = Block(width, width, self.style, attends=True)
                modules[f"{name}_in1"] = Block(width, width, self.style)
            else:
                modules[f"{name}_up"] = Block(width, width, self.style, "up")
            for i in range(settings.num_blocks + 1):
                inputs, width = width + passed.pop(), settings.widths[level]
                attends = i == settings.num_blocks and side in settings.attn_resolutions
                modules[f"{name}_block{i}"] = Block(inputs, width, self.style, attends=attends)
            if skips and level < coarsest:
                modules[f"{name}_aux_up"] = Resample("up", settings.resample_filter)
            if skips or level == 0:
                modules[f"{name}_aux_norm"] = norm(width, 1e-6)
                modules[f"{name}_aux_conv"] = convolution(width, settings.img_channels)
        return nn.ModuleDict(modules)

    def embed(self, noise: Tensor, classes: Tensor | None) -> Tensor:
        """What the blocks are told, (B, E), of the noise (B,) and the classes, (B, label_dim) of 0 and 1."""
        angles = self.map_noise(noise)
        features = torch.cat([angles.sin(), angles.cos()], 1)
        if self.map_label is not None and classes is not None:
            features = features + self.map_label(classes * math.sqrt(classes.shape[1]))
        return silu(self.map_layer1(silu(self.map_layer0(features))))

    def forward(self, x: Tensor, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """F (B, C, H, W) of the scaled images (B, C, H, W) and what `embed` takes."""
        embedding = self.embed(noise, classes)
        passed: list[Tensor] = []
        smaller = x
        for name, module in self.enc.items():
            kind = name.partition("_")[2]
            if kind == "aux_down":
                smaller = module(smaller)
            elif kind == "aux_skip":
                passed[-1] = passed[-1] + module(smaller)
            elif kind == "aux_residual":
                smaller = passed[-1] = (passed[-1] + module(smaller)) * math.sqrt(0.5)
            else:
                passed.append(module(x) if kind == "conv" else module(passed[-1], embedding))
        h, output, normalised = passed[-1], None, x
        for name, module in self.dec.items():
            kind = name.partition("_")[2]
            if kind == "aux_up":
                output = module(output)
            elif kind == "aux_norm":
                normalised = silu(module(h))
            elif kind == "aux_conv":
                output = module(normalised) if output is None else output + module(normalised)
            else:
                h = module(torch.cat([h, passed.pop()], 1) if kind.startswith("block") else h, embedding)
        assert output is not None
        return output


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3 × 3, of the same size."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class AdmUNet(nn.Module):
    """ADM's architecture (Dhariwal & Nichol 2021, 2105.05233), with heads of 64 channels."""

    def __init__(self, settings: Adm):
        super().__init__()
        base, widths = settings.model_channels, settings.widths
        embedding = base * settings.channel_mult_emb
        self.map_noise = Positional(base // 2, False)
        self.map_layer0, self.map_layer1 = nn.Linear(base, embedding), nn.Linear(embedding, embedding)
        self.map_label = nn.Linear(settings.label_dim, embedding, bias=False) if settings.label_dim else None
        style = Style(embedding, (1.0, 1.0), 1e-5, 1.0, True, False, 64)
        modules: dict[str, nn.Module] = {}
        passed: list[int] = []
        for level, width in enumerate(widths):
            side = settings.side(level)
            name, attends = f"{side}x{side}", side in settings.attn_resolutions
            if level:
                modules[f"{name}_down"] = Block(passed[-1], passed[-1], style, "down")
                passed.append(passed[-1])
            else:
                modules[f"{name}_conv"] = convolution(settings.img_channels, width)
                passed.append(width)
            for i in range(settings.num_blocks):
                modules[f"{name}_block{i}"] = Block(passed[-1], width, style, attends=attends)
                passed.append(width)
        self.enc, modules = nn.ModuleDict(modules), {}
        for level in reversed(range(len(widths))):
            side = settings.side(level)
            name, attends = f"{side}x{side}", side in settings.attn_resolutions
            if level == len(widths) - 1:
                modules[f"{name}_in0"] = Block(width, width, style, attends=True)
                modules[f"{name}_in1"] = Block(width, width, style)
            else:
                modules[f"{name}_up"] = Block(width, width, style, "up")
            for i in range(settings.num_blocks + 1):
                inputs, width = width + passed.pop(), widths[level]
                modules[f"{name}_block{i}"] = Block(inputs, width, style, attends=attends)
        self.dec = nn.ModuleDict(modules)
        self.out_norm = norm(width, 1e-5)
        self.out_conv = convolution(width, settings.out_channels or settings.img_channels)

    def embed(self, noise: Tensor, classes: Tensor | None) -> Tensor:
        """As that of `SongUNet`, by another order."""
        angles = self.map_noise(noise)
        features = torch.cat([angles.cos(), angles.sin()], 1)
        embedding = self.map_layer1(silu(self.map_layer0(features)))
        if self.map_label is not None and classes is not None:
            embedding = embedding + self.map_label(classes)
        return silu(embedding)

    def forward(self, x: Tensor, noise: Tensor, classes: Tensor | None = None) -> Tensor:
        """F (B, C, H, W) as that of `SongUNet`; of a network that learned a variance, 2C channels."""
        embedding = self.embed(noise, classes)
        passed: list[Tensor] = []
        for name, module in self.enc.items():
            x = module(x) if name.endswith("conv") else module(x, embedding)
            passed.append(x)
        for name, module in self.dec.items():
            x = module(torch.cat([x, passed.pop()], 1) if "_block" in name else x, embedding)
        return self.out_conv(silu(self.out_norm(x)))
