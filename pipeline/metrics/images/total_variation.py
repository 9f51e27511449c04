"""Total variation."""

import torch
from torch import Tensor

from kintsugi.pipeline.metrics.metric import ImageMetric, batched


def total_variation(restored: Tensor) -> Tensor:
    """Per value of the image, (B,)."""
    down, right = restored.diff(dim=-2).abs_(), restored.diff(dim=-1).abs_()
    return torch.stack([a.sum() + b.sum() for a, b in zip(down, right, strict=True)]) / restored[0].numel()


METRIC = ImageMetric(
    "total variation",
    None,
    "Mean absolute difference of neighbouring values, on [0, 1]; needs no truth.\n"
    "Neither smooth nor rough is good by itself. "
    "Down and to the right, added (Rudin, Osher and Fatemi, Physica D 1992).",
    batched(total_variation),
    needs_truth=False,
)
