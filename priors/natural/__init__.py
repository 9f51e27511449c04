"""`natural`, the embedded default prior: a small network trained on natural images and faces.

The weights are beside this file; README.md is the model card, train.py the recipe.
"""

import json
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor

from kintsugi.cache import sha256
from kintsugi.checkpoint import adopt, empty, read
from kintsugi.priors.base import Parametrization
from kintsugi.priors.paths import Path, VariancePreserving

FOLDER = FilePath(__file__).parent
WEIGHTS = FOLDER / "natural.safetensors"


class NaturalPrior:
    """ε-prediction on the VP path, for images (B, 3, H, W) with sides divisible by `multiple`."""

    parametrization: Parametrization = "eps"

    def __init__(self, *, device: str | torch.device = "cpu"):
        # diffusers takes a second to import; a job that brings its own prior should not pay for it.
        from kintsugi.priors.natural.network import NaturalUNet

        self.sha256 = sha256(WEIGHTS)
        self.path: Path = VariancePreserving()
        config = read_config()
        self.network = empty(lambda: NaturalUNet(tuple(config["channels"]), config["layers"]))
        adopt(self.network, read(WEIGHTS), WEIGHTS)
        self.network.to(device)
        self.multiple = self.network.multiple

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


def read_config() -> dict[str, Any]:
    """The configuration of the network that comes with the package."""
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text())
    return config


@dataclass(frozen=True)
class Description:
    """What the embedded prior is; see `priors.base.Described`."""

    multiple: int
    parameters: int
    files: tuple[FilePath, ...]


def describe() -> Description:
    """Read from its files."""
    parameters = sum(tensor.numel() for tensor in read(WEIGHTS, "meta").values())
    return Description(read_config()["multiple"], parameters, (WEIGHTS,))


def natural(device: str | torch.device = "cpu") -> NaturalPrior:
    """The embedded prior: 6.6 M parameters, natural images and faces, any size divisible by 8."""
    return NaturalPrior(device=device)
