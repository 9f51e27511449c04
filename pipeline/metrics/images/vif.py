"""Visual information fidelity."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, plain


def vif(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean of the channels, in float32."""
    from torchmetrics.functional.image import visual_information_fidelity

    # Its visual noise, of variance 2, is that of pixels up to 255.
    return visual_information_fidelity(255 * restored.float(), 255 * truth.float())


METRIC = ImageMetric(
    "VIF",
    "higher",
    "Visual information fidelity, 0 to about 1: how much of the truth's information is there.\n"
    "In the pixel domain, four scales, visual noise of variance 2 on [0, 255], mean of the channels "
    "(Sheikh and Bovik, IEEE TIP 2006).",
    plain(vif),
    smallest=41,
)
