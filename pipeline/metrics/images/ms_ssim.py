"""Structural similarity over scales."""

from functools import reduce
from operator import mul

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, batched
from kintsugi.pipeline.metrics.similarity import halved, joined, mean_of_each, reflected, similarities

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def ms_ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Of five scales, (B,), in float32; see `ssim`.

    Contrast and structure where the window lies within the image, luminance at the coarsest scale only, with
    reflected borders: equation 7 as torchmetrics and others have it.
    """
    both, terms = joined(restored, truth), []
    for _ in WEIGHTS[1:]:
        terms.append(similarities(both)[1])
        both = halved(both)
    luminance, structure = similarities(reflected(both))
    terms.append(luminance * structure)
    powers = (mean_of_each(x).relu() ** weight for x, weight in zip(terms, WEIGHTS, strict=True))
    return reduce(mul, powers)


METRIC = ImageMetric(
    "MS-SSIM",
    "higher",
    "Structural similarity over five scales, 0 to 1.\n"
    "Negative terms count as zero (Wang et al., Asilomar 2003).",
    batched(ms_ssim),
    range=(0.0, 1.0),
    smallest=176,  # four halvings must leave more than the 11-pixel window
)
