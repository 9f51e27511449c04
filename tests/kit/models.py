"""Files of models that metrics without a truth need, with numbers that mean nothing."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from kintsugi.pipeline.metrics import ImageMetric, SetMetric
from kintsugi.pipeline.metrics.weights import BRISQUE, NIQE


def is_installed(metric: ImageMetric | SetMetric) -> bool:
    """Whether the package that a metric needs is here."""
    return metric.extra is None or find_spec(metric.extra.package) is not None


def save_models(folder: Path) -> None:
    """Write those of NIQE and BRISQUE."""
    np.savez(folder / NIQE.name, mu_pris_param=np.ones((1, 36)), cov_pris_param=np.eye(36))
    generator = torch.Generator().manual_seed(0)
    vectors = (torch.randn(774, 1, generator=generator), 2 * torch.rand(774, 36, generator=generator) - 1)
    torch.save(vectors, folder / BRISQUE.name)
