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
    def __call__(
        self, restored: Tensor, truth: Tensor | None, again: Tensor | None = None
    ) -> dict[str, list[float]]:
        """The values of each metric that there is what it needs for.

        Args:
            restored, truth: (B, C, H, W) in [-1, 1]; `restored` is clipped. Without a truth only metrics that
                need none are among the names.
            again: what the prior made of `restored` there and back, where it is known.

        Raises:
            Exception: what a metric raises, with a note of its name; ValueError if it gives no number.
        """
        found = {}
        for name, measure in self.measures.items():
            metric = IMAGE[name]
            if metric.needs_prior and again is None:
                continue
            beside = truth if metric.needs_truth else again if metric.needs_prior else None
            pair = [restored] if beside is None else [restored, beside]
            found[name] = [value(name, measure, [of_unit(x[i]) for x in pair]) for i in range(len(restored))]
        return found

    @property
    def needs_prior(self) -> bool:
        """Whether a metric takes what the prior makes of an image."""
        return any(IMAGE[name].needs_prior for name in self.measures)


def of_unit(image: Tensor) -> Tensor:
    """An image (C, H, W) on [-1, 1] as metrics see it: (1, C, H, W), float64 in [0, 1]."""
    return ((image[None].double() + 1) / 2).clamp(0, 1)


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
