"""LPIPS of AlexNet, and what loads that of any network."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from kintsugi.numerics import in_whole_batches
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, Batched, ImageMetric, Measure
from kintsugi.pipeline.metrics.weights import ALEXNET, Weights


def lpips(network: str, weights: Weights) -> Callable[[torch.device], Measure]:
    """What loads LPIPS with torchmetrics' network of that name; its trunk's weights are a file."""

    def load(device: torch.device) -> Measure:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        weights.find()  # else torchvision would fetch them
        net = LearnedPerceptualImagePatchSimilarity(net_type=network, normalize=True).net.to(device)

        def measure(restored: Tensor, truth: Tensor) -> Tensor:
            images = (image.float().expand(-1, 3, -1, -1) for image in (restored, truth))
            return in_whole_batches(partial(net, normalize=True), device, *images).flatten()

        return Batched(measure)

    return load


METRIC = ImageMetric(
    "LPIPS (AlexNet)",
    "lower",
    "Distance of deep features, 0 for equal images: AlexNet, version 0.1.\n"
    "Inputs on [-1, 1], no resizing; grey as three equal channels (Zhang et al., CVPR 2018, 1801.03924).",
    lpips("alex", ALEXNET),
    smallest=32,
    channels=GREY_OR_RGB,
    weights=ALEXNET,
)
