"""Every metric of a job for every image of a batch.

No value depends on the batch: what a metric gives for several images at once is what it gives for each alone.
On a GPU nothing is read before all metrics are computed. On a CPU images go one by one, as a batch of them
fits into no cache.
"""

import math
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from kintsugi.errors import JobError, error_text
from kintsugi.pipeline.metrics.metric import Batched, Measure
from kintsugi.pipeline.metrics.registry import IMAGE
from kintsugi.pipeline.metrics.similarity import mean_of_each
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
        at_once = 1 if restored.device.type == "cpu" else len(restored)
        found: dict[str, list[Tensor]] = {}
        for first in range(0, len(restored), at_once):
            part = slice(first, first + at_once)
            seen = of_unit(restored[part])
            true, back = (None if x is None else of_unit(x[part]) for x in (truth, again))
            for name, measure in self.measures.items():
                metric = IMAGE[name]
                if metric.needs_prior and back is None:
                    continue
                beside = true if metric.needs_truth else back if metric.needs_prior else None
                images = [seen] if beside is None else [seen, beside]
                found.setdefault(name, []).append(values(name, measure, images))
        return read({name: torch.cat(parts) for name, parts in found.items()})

    @property
    def needs_prior(self) -> bool:
        """Whether a metric takes what the prior makes of an image."""
        return any(IMAGE[name].needs_prior for name in self.measures)


def of_unit(images: Tensor) -> Tensor:
    """Images on [-1, 1] as metrics see them: (B, C, H, W), float64 in [0, 1]."""
    return (images.double() + 1).div_(2).clamp_(0, 1)


def load(name: str, device: torch.device) -> Measure:
    """The function of a metric of images; raises as `Scorer`."""
    try:
        return IMAGE[name].load(device)
    except (MissingWeights, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # perhaps the code of others
        raise JobError(f"metrics: {name} cannot be loaded: {error_text(error)}") from error


def values(name: str, measure: Measure, images: Sequence[Tensor]) -> Tensor:
    """What a metric gives for each of some images, (B,) float64, perhaps not computed yet.

    Args:
        images: (B, C, H, W), and the truths if it needs those.

    Raises:
        Exception: as `Scorer`.
    """
    count = len(images[0])
    try:
        if not isinstance(measure, Batched):
            alone = ([x[i : i + 1] for x in images] for i in range(count))
            return torch.stack([number(measure(*one), images[0].device) for one in alone])
        found = measure(*images)
        if not isinstance(found, Tensor) or found.shape != (count,):
            raise ValueError(f"it gives {said(found)}, and not a number for each of {count} images")
        return found.double()
    except Exception as error:
        error.add_note(f"in the metric {name}")
        raise


def number(found: object, device: torch.device) -> Tensor:
    """One number, whatever it is, as float64 on a device; raises ValueError if it is none."""
    if isinstance(found, Tensor) and found.numel() == 1:
        return found.reshape(()).to(device, torch.float64)
    if isinstance(found, Real):
        return torch.tensor(float(found), dtype=torch.float64, device=device)
    raise ValueError(f"it gives {said(found)}, and not one number")


def said(found: object) -> str:
    """The shape of a tensor, the type of anything else."""
    return str(tuple(found.shape)) if isinstance(found, Tensor) else type(found).__name__


def read(found: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The values of metrics as numbers, read at once; raises ValueError if one is too large."""
    if not found:
        return {}
    numbers = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
    for name, of in numbers.items():
        for one in of:
            if LARGEST < abs(one) < math.inf:
                error = ValueError(f"it gives {one:g}, which is beyond ±{LARGEST:g}")
                error.add_note(f"in the metric {name}")
                raise error
    return numbers


def residual(forward_of_restored: Tensor, y: Tensor) -> list[float]:
    """Root mean square of H x̂ − y per image, on the [-1, 1] scale."""
    found: list[float] = mean_of_each((forward_of_restored - y).double().square_()).sqrt().tolist()
    return found
