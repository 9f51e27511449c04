"""Checkpoints of score_sde (Song et al. 2021, arXiv 2011.13456): NCSN++ and DDPM++ of VE, VP and sub-VP SDEs.

All are given as ε. Networks of the VE SDE were trained on images in [0, 1], which they map to [-1, 1]
themselves, so that on [-1, 1] the noise is twice as strong; the others on images in [-1, 1].
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointError, CheckpointPath, State
from kintsugi.priors.base import Parametrization
from kintsugi.priors.formats import ncsnpp
from kintsugi.priors.paths import Path, SubVariancePreserving, VarianceExploding, VariancePreserving

logger = logging.getLogger(__name__)

Sde = Literal["ve", "vp", "subvp"]
NAMES = {"ve": "VE", "vp": "VP", "subvp": "sub-VP"}


class ScoreSdePrior:
    """ε-prediction for images (B, C, H, W) that the layout takes (`multiple`).

    Times are σ of [-1, 1] for the VE SDE, and t in [0, 1] otherwise. Weights are float32, whatever the file
    has.

    Args:
        sigmas: the noise levels of the VE SDE on [0, 1], from the largest to the least.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, layout: ncsnpp.Layout, network: nn.Module, sde: Sde, sigmas: Tensor | None):
        self.network, self.sha256 = network, sha256(layout.file)
        self.seen: Callable[[Tensor], Tensor] = lambda t: 999 * t
        self.sign = 1
        if sigmas is None:
            self.path: Path = VariancePreserving() if sde == "vp" else SubVariancePreserving()
            return
        largest, least, labels = float(sigmas.max()), float(sigmas.min()), len(sigmas)
        self.path, self.sign = VarianceExploding(2 * largest), -1

        def logarithm(t: Tensor) -> Tensor:
            return (t / 2).clamp(min=least).log()

        def label(t: Tensor) -> Tensor:
            return (labels - 1) * (math.log(largest) - logarithm(t)) / math.log(largest / least)

        self.seen = logarithm if layout.fourier else label

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.network(x, self.seen(t))
        return self.sign * output if self.sign < 0 else output


def score_sde(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    sde: Sde | None = None,
    weights: str | None = None,
) -> ScoreSdePrior:
    """A checkpoint of score_sde, NCSN++ or DDPM++: CIFAR-10, CelebA-HQ, FFHQ, LSUN, or one's own.

    The moving average of the weights is used; the trained weights, with a warning, where there is none.

    Args:
        path: the file as published, or as another training script wraps it; see `priors.tables`.
        sde: ve, vp or subvp, which only networks with Fourier features tell: they are of the VE SDE.
        weights: the table to use, for files with several, such as ema or model.module.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
    """
    layout, kind, sigmas, state = opened(path, sde, weights)
    network = ncsnpp.build(layout)
    checkpoint.adopt(network, ncsnpp.renamed(state, layout), path)
    return ScoreSdePrior(layout, network.to(device), kind, sigmas)


def describe(*, path: CheckpointPath, sde: Sde | None = None, weights: str | None = None) -> ncsnpp.Layout:
    """The layout of a checkpoint, by its names and shapes alone; else as `score_sde`."""
    return opened(path, sde, weights, "meta")[0]


def opened(
    path: CheckpointPath, sde: Sde | None, weights: str | None, device: str = "cpu"
) -> tuple[ncsnpp.Layout, Sde, Tensor | None, State]:
    """The layout of a file, its SDE with its noise levels, and its parameters to sample with."""
    found, sigmas = ncsnpp.opened(path, weights, device)
    layout = ncsnpp.infer(found.state, path)
    layout.settings()  # refuses widths that the network cannot have
    if layout.fourier and sde not in (None, "ve"):
        raise CheckpointError("sde: the network has Fourier features, and so is of the VE SDE")
    kind: Sde | None = "ve" if layout.fourier else sde
    if kind is None:
        raise CheckpointError(
            "sde: the file does not tell the SDE of its network; give vp, subvp or ve, as its configuration "
            "has it (training.sde)"
        )
    if kind == "ve":
        check_levels(sigmas, path)
    if not found.average and weights is None:
        logger.warning("%s has no moving average: the trained weights are used as they are", path)
    said = ", ".join(filter(None, (f"of the {NAMES[kind]} SDE", found.said)))
    return replace(layout, said=said), kind, sigmas if kind == "ve" else None, found.state


def check_levels(sigmas: Tensor | None, path: CheckpointPath) -> None:
    """Raise a CheckpointError for what is no table of noise levels; on "meta" by its shape alone."""
    fitting = sigmas is not None and sigmas.ndim == 1 and len(sigmas) > 1
    if fitting and sigmas is not None and not sigmas.is_meta:
        fitting = bool(0 < sigmas.min() < sigmas.max() < 1e6)
    if not fitting:
        raise CheckpointError(f"path: {str(path)!r} has no table of noise levels, 'sigmas', of the VE SDE")
