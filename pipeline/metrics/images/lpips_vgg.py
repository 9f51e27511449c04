"""LPIPS of VGG16."""

from kintsugi.pipeline.metrics.images.lpips import lpips
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric
from kintsugi.pipeline.metrics.weights import VGG16

METRIC = ImageMetric(
    "LPIPS (VGG)",
    "lower",
    "Distance of deep features, 0 for equal images: VGG16, version 0.1.\n"
    "Inputs on [-1, 1], no resizing; grey as three equal channels (Zhang et al., CVPR 2018, 1801.03924).",
    lpips("vgg", VGG16),
    smallest=32,
    channels=GREY_OR_RGB,
    weights=VGG16,
)
