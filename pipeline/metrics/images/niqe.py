"""Distance from the statistics of natural scenes."""

import io
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric, Measure
from kintsugi.pipeline.metrics.scenes import BLOCK, block_features
from kintsugi.pipeline.metrics.weights import NIQE


def load(device: torch.device) -> Measure:
    """The measure, with the model of pristine images from its file.

    Raises:
        ValueError: the file holds no such model.
    """
    mean, covariance = pristine(NIQE.find().read_bytes())

    def niqe(restored: Tensor) -> float:
        height, width = restored.shape[-2:]
        if (height // BLOCK) * (width // BLOCK) < 2:
            return math.nan
        found = block_features(luma(restored).round()).cpu().numpy()
        known = found[np.isfinite(found).all(1)]
        if len(known) < 2:  # the others are flat
            return math.nan
        apart = mean - np.nanmean(found, axis=0)
        return float(np.sqrt(apart @ np.linalg.pinv((covariance + np.cov(known, rowvar=False)) / 2) @ apart))

    return niqe


def pristine(content: bytes) -> tuple[Any, Any]:
    """Mean (36,) and covariance (36, 36) of the features of pristine images; raises a ValueError."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            mean, covariance = (file[name].astype(float) for name in ("mu_pris_param", "cov_pris_param"))
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise ValueError(f"{NIQE.name} holds no model of pristine images: {error}") from error
    if mean.size != 36 or covariance.shape != (36, 36):
        raise ValueError(f"{NIQE.name} holds no model of 36 features")
    return mean.reshape(36), covariance


METRIC = ImageMetric(
    "NIQE",
    "lower",
    "Distance from the statistics of pristine photographs, 0 is best; needs no truth.\n"
    "Of 36 features of blocks of 96 pixels of the luma of `psnr_y`, rounded, as in MATLAB and BasicSR; not "
    "defined for fewer than two whole blocks. Textures that a network made up may lower it (Mittal et al., "
    "IEEE SPL 2013).",
    load,
    needs_truth=False,
    smallest=2 * BLOCK,
    channels=GREY_OR_RGB,
    weights=NIQE,
)
