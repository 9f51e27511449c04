"""The autoencoders that diffusers has for images, as `Autoencoder`s."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from kintsugi.priors.formats.diffusers_files import misfit

AUTOENCODERS = ("AutoencoderKL", "VQModel", "AutoencoderTiny")


class LatentAutoencoder(nn.Module):
    """An autoencoder of diffusers: latents are (E(x) − shift) · scale, as its configuration says.

    It computes in the type of its weights, float32 unless it was cast, whatever runs in half precision around
    it: that of SDXL overflows in float16 (its `force_upcast`); bfloat16 it takes. Images and latents are
    float32.

    Args:
        module: of a class in AUTOENCODERS. enlarge: see `Autoencoder`.

    Attributes:
        shift, scale: of each channel, or one of all.

    Raises:
        CheckpointError: it is for other images than RGB, or its numbers are no scale.
    """

    def __init__(self, module: Any, enlarge: int = 1):
        super().__init__()
        config = module.config
        for field in ("in_channels", "out_channels"):
            if config[field] != 3:
                raise misfit("config.json", field, config[field], "the autoencoder's images need 3 channels")
        self.module, self.enlarge = module, enlarge
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.quantized = type(module).__name__ == "VQModel"
        self.channels: int = (self.quantized and config.vq_embed_dim) or config.latent_channels
        self.shift, self.scale = affine(config, self.channels)

    def encode(self, x: Tensor) -> Tensor:
        """z (B, channels, H/factor, W/factor): the mode; of a VQModel, before it is quantised."""
        with torch.autocast(x.device.type, enabled=False):
            encoded = self.module.encode(x.to(self.module.dtype), return_dict=False)[0]
        latent: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return (latent.to(x.dtype) - per_channel(self.shift, x)) * per_channel(self.scale, x)

    def decode(self, z: Tensor) -> Tensor:
        """x (B, 3, H, W); of a VQModel by its nearest codes, whose derivative is taken to be that of z."""
        latent = z / per_channel(self.scale, z) + per_channel(self.shift, z)
        with torch.autocast(z.device.type, enabled=False):
            decoded: Tensor = self.module.decode(latent.to(self.module.dtype), return_dict=False)[0]
        return decoded.to(z.dtype)


def affine(config: Any, channels: int) -> tuple[list[float], list[float]]:
    """Shift and scale of a configuration; raises a CheckpointError for what is no number, or scale 0."""
    mean = "shift_factor" if config.get("latents_mean") is None else "latents_mean"
    scale = numbers(config, "scaling_factor", 1.0, 1)[0]
    return numbers(config, mean, 0.0, channels), [
        scale / deviation for deviation in numbers(config, "latents_std", 1.0, channels)
    ]


def numbers(config: Any, field: str, default: float, channels: int) -> list[float]:
    """Of each channel, or one of all; where the default is not 0, none is."""
    value = default if config.get(field) is None else config[field]
    found = list(value) if isinstance(value, (list, tuple)) else [value]
    good = all(isinstance(v, (int, float)) and math.isfinite(v) and (v or not default) for v in found)
    if not good or len(found) not in (1, channels):
        raise misfit("config.json", field, value, f"a number, or {channels}, is expected, of a scale not 0")
    return [float(one) for one in found]


def per_channel(values: list[float], x: Tensor) -> Tensor | float:
    """One number, or (1, C, 1, 1) as x."""
    return values[0] if len(values) == 1 else x.new_tensor(values).view(1, -1, 1, 1)
