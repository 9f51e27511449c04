"""Every metric of a job for every image of a batch.

Images are compared one at a time, so that a value cannot depend on the batch (batched, the last digits do).
"""

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from kintsugi.errors import JobError, error_text
from kintsugi.pipeline.metrics.metric import Measure
from kintsugi.pipeline.metrics.registry import IMAGE
from kintsugi.pipeline.metrics.weights import MissingWeights

LARGEST = 1e90  # of a measure: sums of the third powers of many are finite, too


class Scorer:
    """The image metrics among `names`, loaded for a device.

    Raises:
        MissingWeights: a metric's file is not there.
        JobError: a metric cannot be loaded.
    """

    def __init__(self, names: Sequence[str], device: str | torch.device = "cpu"):
        self.measures = {name: load(name, torch.device(device)) for name in names if name in IMAGE}

    @torch.no_grad()
    def __call__(self, restored: Tensor, truth: Tensor | None) -> dict[str, list[float]]:
        """The values of each metric.

        Args:
            restored, truth: (B, C, H, W) in [-1, 1]; `restored` is clipped. Without a truth only metrics that
                need none are among the names.

        Raises:
            Exception: what a metric raises, with a note of its name; ValueError if it gives no number.
        """
        pairs = [
            [((x[i : i + 1].double() + 1) / 2).clamp(0, 1) for x in (restored, truth) if x is not None]
            for i in range(len(restored))
        ]
        return {
            name: [value(name, measure, pair if IMAGE[name].needs_truth else pair[:1]) for pair in pairs]
            for name, measure in self.measures.items()
        }


def load(name: str, device: torch.device) -> Measure:
    """The function of a metric of images; raises as `Scorer`."""
    try:
        return IMAGE[name].load(device)
    except (MissingWeights, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # perhaps the code of others
        raise JobError(f"metrics: {name} cannot be loaded: {error_text(error)}") from error


def value(name: str, measure: Measure, images: Sequence[Tensor]) -> float:
    """What a metric gives for an image (1, C, H, W), and the truth if it needs that; raises as `Scorer`."""
    try:
        found = measure(*images)
        if not isinstance(found, Real) and not (isinstance(found, Tensor) and found.numel() == 1):
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"it gives {what}, and not one number")
        number = float(found)
        if LARGEST < abs(number) < math.inf:
            raise ValueError(f"it gives {number:g}, which is beyond ±{LARGEST:g}")
    except Exception as error:
        error.add_note(f"in the metric {name}")
        raise
    return number


def residual(forward_of_restored: Tensor, y: Tensor) -> list[float]:
    """Root mean square of H x̂ − y per image, on the [-1, 1] scale."""
    values: list[float] = (forward_of_restored - y).double().square().mean((1, 2, 3)).sqrt().tolist()
    return values
