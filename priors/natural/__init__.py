"""`natural`, the embedded default prior: a small network trained on natural images and faces.

The weights are beside this file; README.md is the model card, train.py the recipe.
"""

import hashlib
import json
from pathlib import Path as FilePath

import torch
from torch import Tensor

from priors.base import Parametrization
from priors.paths import Path, VariancePreserving

FOLDER = FilePath(__file__).parent
WEIGHTS = FOLDER / "natural.safetensors"


class NaturalPrior:
    """ε-prediction on the VP path, for images (B, 3, H, W) with sides divisible by `multiple`.

    Attributes:
        sha256: checksum of the weights' file.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, *, device: str | torch.device = "cpu"):
        # diffusers takes a second to import; a job that brings its own prior should not pay for it.
        from safetensors.torch import load

        from priors.natural.network import NaturalUNet

        content = WEIGHTS.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.path: Path = VariancePreserving()
        config = json.loads((FOLDER / "config.json").read_text())
        self.network = NaturalUNet(tuple(config["channels"]), config["layers"])
        self.network.load_state_dict(load(content))
        self.network.to(device).eval().requires_grad_(False)
        self.multiple = self.network.multiple

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, t)


def natural(device: str | torch.device = "cpu") -> NaturalPrior:
    """The embedded prior: 6.6 M parameters, natural images and faces, any size divisible by 8."""
    return NaturalPrior(device=device)
