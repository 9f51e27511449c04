"""Structural similarity of the luma."""

from torch import Tensor

from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric, plain

WINDOW = 11
RADIUS = WINDOW // 2


def ssim_y(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean over the pixels whose window lies within the image, in float32."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    lumas = [(luma(image) / 255).float() for image in (restored, truth)]
    _, similarity = structural_similarity_index_measure(*lumas, data_range=1.0, return_full_image=True)
    return similarity[..., RADIUS:-RADIUS, RADIUS:-RADIUS].mean()


METRIC = ImageMetric(
    "SSIM of luma",
    "higher",
    "SSIM of the Y channel, as tables of super-resolution have it, at most 1.\n"
    "Of the luma of `psnr_y` on [0, 255]; Gaussian window of σ = 1.5 and 11 pixels, where it lies within the "
    "image, as in Wang's code and BasicSR.",
    plain(ssim_y),
    range=(-1.0, 1.0),
    smallest=WINDOW,
    channels=GREY_OR_RGB,
)
