"""What is done to a batch beside restoring it: noise, estimates without a network, levels of pictures."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from kintsugi.device import sent
from kintsugi.errors import UnreadableImage
from kintsugi.operators import Operator, Solved
from kintsugi.pipeline.data.depth import rounded
from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import REGISTRY
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.lmmse import linear_mmse, solved_mmse


def baselines(alone: Callable[[int], tuple[Operator, float]], y: Tensor) -> dict[str, Tensor]:
    """What measurements give without a network, (B, C, H, W): H⁺y, and of a matrix H the linear MMSE.

    Each by itself, so that the last digits do not depend on the batch.

    Args:
        alone: the operator of a sample, and the noise in its measurement.
    """
    found: dict[str, list[Tensor]] = {"pinv": [], "lmmse": []}
    for place in range(len(y)):
        (operator, sigma_y), own = alone(place), y[place : place + 1]
        found["pinv"].append(operator.pinv(own))
        if isinstance(operator, Solved):
            found["lmmse"].append(solved_mmse(operator, own, sigma_y))
        elif operator.linear:
            found["lmmse"].append(linear_mmse(operator, operator.to_spectral(found["pinv"][-1]), sigma_y))
    return {name: torch.cat(images) for name, images in found.items() if images}


def add_noise(y: Tensor, photons: float | None, gaussian: float | Tensor, noise: KeyedNoise) -> Tensor:
    """The measurement (B, …): y on the [-1, 1] scale with noise, keyed by sample.

    Args:
        photons: see `Degradation.poisson`. gaussian: a standard deviation, or (B, 1, 1, 1) of them.
    """
    if photons is not None:
        rates = photons * ((y + 1) / 2).clamp_min(0)
        y = noise.poisson("photons", rates) / photons * 2 - 1
    if isinstance(gaussian, Tensor) or gaussian > 0:
        z = sent(noise.normal("measurement", tuple(y.shape[1:])), y.device).to(y)
        y = y + (gaussian.view(-1, *[1] * (y.ndim - 1)) if isinstance(gaussian, Tensor) else gaussian) * z
    return y


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """An image as it was read, uint8 or float32 on [-1, 1], as uint8."""
    return picture if picture.dtype == np.uint8 else rounded(picture)


def levels(x: Tensor, bits: int) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] → (B, H, W, C) uint8 or uint16, clipped and rounded."""
    top = 2**bits - 1
    values = ((x + 1) * (top / 2)).round().clamp(0, top).permute(0, 2, 3, 1)
    array: np.ndarray = values.to(torch.uint8 if bits == 8 else torch.int32).cpu().numpy()
    return array.astype(np.uint16) if bits == 16 else array


def degrade(
    job: Job, problem: Prepared, keys: Sequence[str], samples: Tensor, beside: Sequence[np.ndarray]
) -> tuple[Tensor, Tensor | None]:
    """Measurements y on [-1, 1], and the truth (B, C, H, W) on [-1, 1] where there is one.

    Args:
        samples: images (B, H, W, C), or measurements (B, C, h, w).
        beside: the true images of measurements that have such, (H, W, C) each.

    Raises:
        UnreadableImage: the true images have another size than the restored ones, or one too small.
    """
    if not job.has_truth:
        return samples, None
    true = sent(torch.from_numpy(np.stack(beside)), samples.device) if beside else samples
    truth = true.permute(0, 3, 1, 2)
    truth = truth.float() / 127.5 - 1 if truth.dtype == torch.uint8 else truth
    if job.from_measurements:
        refuse_other_size(job, problem.operator, truth)
        return samples, truth
    y = problem.operator.forward(truth)
    return add_noise(y, job.degradation.poisson, problem.gaussian, KeyedNoise(job.seed, keys)), truth


def refuse_other_size(job: Job, operator: Operator, truth: Tensor) -> None:
    """Raise UnreadableImage unless the truth of measurements can be compared with what is restored."""
    (height, width), (h, w) = truth.shape[2:], operator.image_shape[1:]
    if (height, width) != (h, w):
        raise UnreadableImage(f"its truth has {width}x{height} pixels, the restored image {w}x{h}")
    if min(h, w) < (smallest := max((REGISTRY[name].smallest for name in job.metrics), default=1)):
        raise UnreadableImage(f"a metric needs sides of at least {smallest} pixels")
