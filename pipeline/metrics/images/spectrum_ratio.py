"""Power of fine detail, beside the truth's."""

import torch
from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, batched
from kintsugi.pipeline.metrics.texture import ring_powers


def spectrum_ratio(restored: Tensor, truth: Tensor) -> Tensor:
    """Geometric mean over the rings of the spectrum, (B,)."""
    return torch.stack([ratio(*pair) for pair in zip(restored, truth, strict=True)])


def ratio(restored: Tensor, truth: Tensor) -> Tensor:
    """Of one image (C, H, W): transforms of many at once may add in another order."""
    return (ring_powers(restored) / ring_powers(truth)).log().mean().exp()


METRIC = ImageMetric(
    "fine spectrum",
    "one",
    "Power of fine detail relative to the truth's: 1 is ideal, less is blurred, more is noisy.\n"
    "Geometric mean, over the rings between a half and the whole of Nyquist's frequency, of the ratio of "
    "the radial power spectra; Hann window, mean of the channels.",
    batched(spectrum_ratio),
    smallest=8,
)
