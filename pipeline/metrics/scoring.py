"""Every metric of a job for every image of a batch.

Images are compared one at a time, so that a value cannot depend on the batch (batched, the last digits do).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kintsugi.pipeline.metrics import IMAGE


class Scorer:
    """The image metrics among `names`, loaded for a device.

    Raises:
        MissingWeights: a metric's file is not there.
    """

    def __init__(self, names: Sequence[str], device: str | torch.device = "cpu"):
        self.measures = {name: IMAGE[name].load(torch.device(device)) for name in names if name in IMAGE}

    @torch.no_grad()
    def __call__(self, restored: Tensor, truth: Tensor | None) -> dict[str, list[float]]:
        """The values of each metric.

        Args:
            restored, truth: (B, C, H, W) in [-1, 1]; `restored` is clipped. Without a truth only metrics that
                need none are among the names.
        """
        pairs = [
            [((x[i : i + 1].double() + 1) / 2).clamp(0, 1) for x in (restored, truth) if x is not None]
            for i in range(len(restored))
        ]
        return {
            name: [float(measure(*(pair if IMAGE[name].needs_truth else pair[:1]))) for pair in pairs]
            for name, measure in self.measures.items()
        }


def residual(forward_of_restored: Tensor, y: Tensor) -> list[float]:
    """Root mean square of H x̂ − y per image, on the [-1, 1] scale."""
    values: list[float] = (forward_of_restored - y).double().square().mean((1, 2, 3)).sqrt().tolist()
    return values
