"""Files of models that metrics without a truth need, with numbers that mean nothing."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from kintsugi.pipeline.metrics import Metric
from kintsugi.pipeline.metrics.weights import ALEXNET, BRISQUE, NIQE, VGG16


def is_installed(metric: Metric) -> bool:
    """Whether the package that a metric needs is here."""
    return metric.extra is None or find_spec(metric.extra.package) is not None


def save_models(folder: Path) -> None:
    """Write those of NIQE and BRISQUE."""
    np.savez(folder / NIQE.name, mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36))
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(774, 1, generator=generator), 2 * torch.rand(774, 36, generator=generator) - 1)
    torch.save(vectors, folder / BRISQUE.name)


def save_trunk(folder: Path, name: str) -> None:
    """A trunk of LPIPS, "alexnet" or "vgg16", as torchvision's file has it, with random weights."""
    import torchvision

    torch.manual_seed(0)
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    state = {
        key: torch.zeros(1).expand(value.shape)
        if key.startswith("classifier")
        else 0.05 * torch.randn(value.shape)
        for key, value in model.state_dict().items()
    }
    torch.save(state, folder / {"alexnet": ALEXNET, "vgg16": VGG16}[name].name)
