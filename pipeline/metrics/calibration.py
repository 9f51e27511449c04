"""Whether the spread of several samples tells the error: z-scores, coverage, and the error itself.

Of K samples with mean m and standard deviation s (K − 1) at a pixel, t = (x − m) / (s √(1 + 1/K)) is
Student's with K − 1 degrees of freedom if the truth x and the samples are draws from one Gaussian. So the
interval that covers q of it is that of a further draw, m ± t(K − 1, q) s √(1 + 1/K): exact for every K ≥ 2
where the posterior is Gaussian, an approximation elsewhere. The z-score is t on the scale of the standard
normal, where it means the same for every K. Ranks among the samples would need no Gaussian, but of four
samples they tell nothing of an interval of 90 %.
"""

import math

import numpy as np
from torch import Tensor

from kintsugi.pipeline.metrics.registry import COVERAGE

KNOWN = 1e-3  # on [-1, 1], an eighth of a level of 8 bits: samples and truth that agree so well are all one


def calibration(truth: Tensor, mean: Tensor, deviation: Tensor, count: int) -> dict[str, list[float]]:
    """By column of the rows (`registry.CALIBRATION`), the value of each image, computed by itself.

    Coverage and z-scores are of the pixels of all channels but for those that the measurement fixes, where
    the deviation and the error are both below 1e-3; NaN where there are no others. The error is that of all.

    Args:
        truth, mean, deviation: (B, C, H, W) on [-1, 1], not clipped. count: of the samples, 2 or more.
    """
    found: dict[str, list[float]] = {name: [] for name in (*COVERAGE, "z_mean", "z_rms", "error_rms")}
    for images in zip(truth, mean, deviation, strict=True):
        true, of_mean, spread = (image.double().cpu().numpy() for image in images)
        difference = true - of_mean
        open_ = (spread >= KNOWN) | (np.abs(difference) >= KNOWN)
        z = z_scores(difference[open_], spread[open_], count)
        inside = {name: np.abs(z) <= bound(share) for name, share in COVERAGE.items()}
        values = {name: average(found.astype(float)) for name, found in inside.items()}
        values |= {"z_mean": average(z), "z_rms": math.sqrt(average(z**2))}
        values["error_rms"] = math.sqrt(average(difference**2))
        for name, value in values.items():
            found[name].append(value)
    return found


def z_scores(difference: np.ndarray, deviation: np.ndarray, count: int) -> np.ndarray:
    """The truth less the mean of `count` samples, on the scale of the standard normal; of any one shape.

    Args:
        deviation: of the samples (count − 1), 0 or more.

    Returns:
        −37.6 … 37.6: what lies further out is not distinguished.
    """
    from scipy.special import ndtri, stdtr

    with np.errstate(divide="ignore"):
        t = np.abs(difference) / (deviation * math.sqrt(1 + 1 / count))
    tail = np.maximum(stdtr(count - 1, -t), np.finfo(float).tiny)
    return np.copysign(-ndtri(tail), difference)


def bound(share: float) -> float:
    """The z-score within which this share of the standard normal lies."""
    from scipy.special import ndtri

    return float(ndtri((1 + share) / 2))


def average(values: np.ndarray) -> float:
    """Their mean, NaN of none."""
    return float(values.mean()) if values.size else math.nan
