"""`natural_latent`, the embedded latent prior: a small autoencoder, and a small network on its latents.

The weights are beside this file; README.md is the model card, train_autoencoder.py and train.py the recipe.
"""

import json
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from kintsugi.cache import checksum
from kintsugi.checkpoint import adopt, empty, read
from kintsugi.priors.base import Parametrization
from kintsugi.priors.paths import Path, VariancePreserving

FOLDER = FilePath(__file__).parent
WEIGHTS = FOLDER / "natural_latent.safetensors"
AUTOENCODER = FOLDER / "autoencoder.safetensors"
FILES = (AUTOENCODER, WEIGHTS)
FACTOR, CHANNELS = 4, 4


class NaturalLatentPrior:
    """ε-prediction on the VP path, for latents (B, 4, H/4, W/4) of images with sides divisible by `multiple`.

    Attributes:
        autoencoder: a module with `encode` and `decode`; see `priors.base.Autoencoder`.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, *, device: str | torch.device = "cpu"):
        # diffusers takes a second to import; a job that brings its own prior should not pay for it.
        from kintsugi.priors.natural_latent.autoencoder import NaturalAutoencoder
        from kintsugi.priors.natural_latent.network import LatentUNet

        self.sha256 = checksum(FILES)
        self.path: Path = VariancePreserving()
        config = read_config()
        self.network = empty(lambda: LatentUNet(tuple(config["channels"]), config["layers"]))
        adopt(self.network, read(WEIGHTS), WEIGHTS)
        self.autoencoder = empty(NaturalAutoencoder)
        adopt(self.autoencoder, read(AUTOENCODER), AUTOENCODER)
        self.network.to(device)
        # A fifth faster, on a CPU, too.
        self.autoencoder.to(device).to(memory_format=torch.channels_last)
        self.multiple = self.autoencoder.factor * self.network.multiple

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


def read_config() -> dict[str, Any]:
    """The configuration of the network that comes with the package."""
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    return config


@dataclass(frozen=True)
class Sizes:
    """What an autoencoder is without weights; see `priors.base.Autoencoder`."""

    factor: int
    channels: int
    enlarge: int


@dataclass(frozen=True)
class Description:
    """What the embedded latent prior is; see `priors.base.Described`."""

    multiple: int
    parameters: int
    files: tuple[FilePath, ...]
    autoencoder: Sizes


def describe() -> Description:
    """Read from its files."""
    parameters = sum(tensor.numel() for file in FILES for tensor in read(file, "meta").values())
    return Description(FACTOR * read_config()["multiple"], parameters, FILES, Sizes(FACTOR, CHANNELS, 1))


def natural_latent(device: str | torch.device = "cpu") -> NaturalLatentPrior:
    """The embedded latent prior: natural images and faces at a quarter of the resolution, sizes of 16 n."""
    return NaturalLatentPrior(device=device)
