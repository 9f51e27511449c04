"""Checkpoints of rectified flow (Liu et al. 2022, arXiv 2209.03003): NCSN++ and DDPM++ networks.

Their files are those of score_sde, on whose code the release is built: `ncsnpp` reads both, and no file
tells which of the two it is.
"""

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path as FilePath

import torch
from torch import Tensor, nn

from kintsugi import checkpoint
from kintsugi.cache import sha256
from kintsugi.checkpoint import CheckpointPath, State
from kintsugi.priors.base import Parametrization
from kintsugi.priors.formats import ncsnpp
from kintsugi.priors.paths import Path, RectifiedFlow

logger = logging.getLogger(__name__)

FIRST_TIME = 1e-3
"""Where the released sampler starts; networks of NCSN++ divide their output by the time."""


@dataclass(frozen=True)
class UnitRangeFlow(RectifiedFlow):
    """The straight path to images (x₀ + 1)/2 on [0, 1], scaled and shifted: t x₀ + 2 (1 − t) z."""

    def s(self, t: Tensor) -> Tensor:
        """2 (1 − t): data in [0, 1] are half as wide."""
        return 2 * (1 - t)

    def ds(self, t: Tensor) -> Tensor:
        """−2."""
        return torch.full_like(t, -2.0)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The logistic function of log(a/s) + log 2."""
        return torch.sigmoid(log_snr + math.log(2))


class RectifiedFlowPrior:
    """Velocity on the straight path, for images (B, 3, H, W) that the layout takes (`multiple`).

    Times run from 0 (noise) to 1 (data); below 0.001 the network is given 0.001, because NCSN++ divides by
    its time. Weights are float32, whatever the file has.
    """

    parametrization: Parametrization = "v"

    def __init__(self, layout: ncsnpp.Layout, network: nn.Module, centered: bool):
        self.path: Path = RectifiedFlow() if centered else UnitRangeFlow()
        self.network, self.centered, self.fourier = network, centered, layout.fourier
        self.sha256 = sha256(layout.file)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output, of x's shape (B, C, H, W), at times t (B,) in [0, 1]."""
        seen = 999 * t.clamp(min=FIRST_TIME)
        output: Tensor = self.network(x, seen.log() if self.fourier else seen)
        return output / seen.view(-1, 1, 1, 1) if self.fourier else output

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.centered:
            return self.velocity(x, t)
        # Its own state is (x + t)/2, with the velocity (u + 1)/2; it maps [0, 1] to [-1, 1] itself.
        return 2 * self.velocity(x + t.view(-1, 1, 1, 1) - 1, t) - 1


def rectified_flow(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    centered: bool = True,
    weights: str | None = None,
) -> RectifiedFlowPrior:
    """A rectified-flow checkpoint: CelebA-HQ, AFHQ-cat, LSUN, CIFAR-10, or one's own.

    The moving average of the weights is used, which the released sampler uses too; the trained weights,
    with a warning, where the file has no average.

    Args:
        path: the file as published, or as another training script wraps it; see `priors.tables`.
        centered: trained on images in [-1, 1], as CelebA-HQ, AFHQ and CIFAR-10; false for images in [0, 1],
            as LSUN bedroom and church. No file tells.
        weights: the table to use, for files with several, such as ema or model.module.

    Raises:
        CheckpointError: the file is damaged or not such a network; the message names the key or shape.
    """
    layout, state = opened(path, weights)
    network = ncsnpp.build(layout)
    checkpoint.adopt(network, ncsnpp.renamed(state, layout), path)
    return RectifiedFlowPrior(layout, network.to(device), centered)


def describe(*, path: CheckpointPath, centered: bool = True, weights: str | None = None) -> ncsnpp.Layout:
    """The layout of a checkpoint, by its names and shapes alone; else as `rectified_flow`."""
    return opened(path, weights, "meta")[0]


def opened(path: FilePath, weights: str | None, device: str = "cpu") -> tuple[ncsnpp.Layout, State]:
    """The layout of a file, and its parameters to sample with."""
    found, _ = ncsnpp.opened(path, weights, device)
    layout = replace(ncsnpp.infer(found.state, path), said=found.said)
    layout.settings()  # refuses widths that the network cannot have
    if not found.average and weights is None:
        logger.warning("%s has no moving average: the trained weights are used as they are", path)
    return layout, found.state
