"""How noisy an image looks."""

from torch import Tensor

from kintsugi.numerics import diagonal_details, noise_in_details
from kintsugi.pipeline.metrics.metric import ImageMetric, plain


def noise(restored: Tensor) -> Tensor:
    """The mean over the channels of σ on [0, 1]."""
    return noise_in_details(diagonal_details(restored[0]))


METRIC = ImageMetric(
    "noise, σ",
    None,
    "Standard deviation of white noise that an image looks to have, on [0, 1]; needs no truth.\n"
    "Neither much nor none is good by itself: fine texture counts as noise, and smoothness as none. From the "
    "median of the finest diagonal wavelet coefficients, as scikit-image's estimate_sigma (Donoho and "
    "Johnstone, Biometrika 1994); mean of the channels.",
    plain(noise),
    needs_truth=False,
    smallest=4,
)
