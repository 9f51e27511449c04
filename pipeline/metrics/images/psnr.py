"""Peak signal-to-noise ratio."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, batched
from kintsugi.pipeline.metrics.similarity import mean_of_each

PERFECT = 100.0
"""dB, as which an infinite PSNR, or a larger one, enters every mean and difference."""


def psnr(restored: Tensor, truth: Tensor) -> Tensor:
    """10 log₁₀(1/MSE), dB, (B,)."""
    return -10 * mean_of_each((restored - truth).square_()).log10()


METRIC = ImageMetric(
    "PSNR, dB",
    "higher",
    "Peak signal-to-noise ratio, 10 log₁₀(1/MSE), in dB; infinite for identical images.\n"
    "float64, on [0, 1]. Restorations of a run are clipped and not rounded; pictures that `score` reads "
    f"have 8 bits. In means and differences more than {PERFECT:g} dB count as {PERFECT:g}.",
    batched(psnr),
    range=(0.0, PERFECT),
    most=PERFECT,
)
