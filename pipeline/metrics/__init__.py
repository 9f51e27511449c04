"""What is measured: of every restored image (`IMAGE`), of the set of all (`SETS`), and of clips (`CLIPS`)."""

from kintsugi.pipeline.metrics.metric import ClipMetric, ImageMetric, Metric, SetMetric, batched, plain
from kintsugi.pipeline.metrics.registry import CLIPS, IMAGE, REGISTRY, SETS

__all__ = [
    "CLIPS",
    "IMAGE",
    "REGISTRY",
    "SETS",
    "ClipMetric",
    "ImageMetric",
    "Metric",
    "SetMetric",
    "batched",
    "plain",
]
