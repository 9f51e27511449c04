"""Structural similarity over scales."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, plain


def ms_ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Of five scales, in float32; see `ssim`."""
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    return multiscale_structural_similarity_index_measure(
        restored.float(), truth.float(), data_range=1.0, normalize="relu"
    )


METRIC = ImageMetric(
    "MS-SSIM",
    "higher",
    "Structural similarity over five scales, 0 to 1.\n"
    "Negative terms count as zero (Wang et al., Asilomar 2003).",
    plain(ms_ssim),
    range=(0.0, 1.0),
    smallest=176,  # four halvings must leave more than the 11-pixel window
)
