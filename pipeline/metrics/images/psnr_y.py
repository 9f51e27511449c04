"""Peak signal-to-noise ratio of the luma."""

from torch import Tensor

from kintsugi.pipeline.metrics.images.psnr import PERFECT, psnr
from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric, batched


def psnr_y(restored: Tensor, truth: Tensor) -> Tensor:
    """10 log₁₀(255²/MSE) of the lumas, dB, (B,)."""
    return psnr(luma(restored) / 255, luma(truth) / 255)


METRIC = ImageMetric(
    "PSNR of luma, dB",
    "higher",
    "PSNR of the Y channel, as tables of super-resolution have it, in dB; infinite for equal images.\n"
    "Images are rounded to 8 bits; luma is BT.601's in studio swing, not rounded, as in BasicSR, "
    "and the peak 255. No border is left out. In means and differences more than "
    f"{PERFECT:g} dB count as {PERFECT:g}.",
    batched(psnr_y),
    range=(0.0, PERFECT),
    most=PERFECT,
    channels=GREY_OR_RGB,
)
