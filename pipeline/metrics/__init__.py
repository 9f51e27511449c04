"""What is measured: of every restored image (`IMAGE`), and of the set of all (`SETS`)."""

from kintsugi.pipeline.metrics.metric import ImageMetric, SetMetric, batched, plain
from kintsugi.pipeline.metrics.registry import IMAGE, REGISTRY, SETS

__all__ = ["IMAGE", "REGISTRY", "SETS", "ImageMetric", "SetMetric", "batched", "plain"]
