"""Total variation."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, plain


def total_variation(restored: Tensor) -> Tensor:
    """Per value of the image."""
    from torchmetrics.functional.image import total_variation

    return total_variation(restored) / restored.numel()


METRIC = ImageMetric(
    "total variation",
    None,
    "Mean absolute difference of neighbouring values, on [0, 1]; needs no truth.\n"
    "Neither smooth nor rough is good by itself. "
    "Down and to the right, added (Rudin, Osher and Fatemi, Physica D 1992).",
    plain(total_variation),
    needs_truth=False,
)
