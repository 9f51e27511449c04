"""How blurred an image looks."""

from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, plain


def blur(restored: Tensor) -> float:
    """scikit-image's `blur_effect`, of colours that of their grey, of others of the mean of the channels."""
    from skimage.measure import blur_effect

    image = restored[0].cpu().numpy()
    return float(blur_effect(image, channel_axis=0) if len(image) == 3 else blur_effect(image.mean(0)))


METRIC = ImageMetric(
    "blur",
    None,
    "How little a further blur changes an image, 0 for sharp to 1 for blurred; needs no truth.\n"
    "Neither sharp nor smooth is good by itself: noise is sharp. scikit-image's blur_effect, a mean of 11 "
    "pixels, of the grey of colours (Crete et al., SPIE 2007).",
    plain(blur),
    needs_truth=False,
    range=(0.0, 1.0),
    smallest=12,
)
