"""Structural similarity of the luma."""

from torch import Tensor

from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric, batched
from kintsugi.pipeline.metrics.similarity import WINDOW, joined, mean_of_each, similarities


def ssim_y(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels whose window lies within the image, (B,), in float32."""
    luminance, structure = similarities(joined(*(luma(image) / 255 for image in (restored, truth))))
    return mean_of_each(luminance * structure)


METRIC = ImageMetric(
    "SSIM of luma",
    "higher",
    "SSIM of the Y channel, as tables of super-resolution have it, at most 1.\n"
    "Of the luma of `psnr_y` on [0, 255]; Gaussian window of σ = 1.5 and 11 pixels, where it lies within the "
    "image, as in Wang's code and BasicSR.",
    batched(ssim_y),
    range=(-1.0, 1.0),
    smallest=WINDOW,
    channels=GREY_OR_RGB,
)
