"""How badly the prior gives an image back."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, batched
from kintsugi.pipeline.metrics.similarity import mean_of_each


def prior_error(restored: Tensor, again: Tensor) -> Tensor:
    """Mean absolute difference of an image and what the prior made of it, (B,)."""
    return mean_of_each((restored - again).abs_())


METRIC = ImageMetric(
    "prior's error",
    None,
    "Error with which the prior gives the image back, on [0, 1]; needs no truth.\n"
    "Mean absolute error after three DDIM steps to VP time 0.1 and three back: DIRE (Wang et al., ICCV 2023, "
    "2303.09295) up to a moderate level. Large for noise and textures that the prior does not expect; less "
    "is not better, as smooth images have least. Six network forwards an image, beside the sampler's.",
    batched(prior_error),
    needs_truth=False,
    needs_prior=True,
    range=(0.0, 1.0),
)
