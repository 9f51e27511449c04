"""The stage: degrade a batch of images, restore it, score it. Knows nothing of shards and rows."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import operators
import priors
import samplers
from operators import SpecError
from pipeline import score
from pipeline.job import Degradation, Job, JobError
from priors.base import Autocast
from samplers import KeyedNoise

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Restored:
    """One restored sample.

    Pictures are (H, W, 3) uint8; `measurement` has the measurement's size and channels, or is its
    pseudo-inverse where it is no image. `seconds` is the sampler's
    time for the batch divided by its size.
    """

    metrics: dict[str, float]
    residual: float
    seconds: float
    forwards: int
    vjps: int
    batch_size: int
    restored: np.ndarray
    measurement: np.ndarray
    error: str | None


class Stage:
    """Everything a worker keeps between batches.

    Attributes:
        seconds: time spent by part (degrade, sample, score) since the start.

    Raises:
        JobError: the prior cannot be loaded, or the sampler does not fit it.
    """

    def __init__(self, job: Job, device: str | torch.device):
        self.job, self.device = job, torch.device(device)
        self.operator = operators.build(job.degradation.operator, job.image_shape, device=device)
        self.sampler = samplers.build(job.sampler)
        try:
            self.prior = priors.load(job.prior, device=device)
        except (SpecError, OSError) as error:
            raise JobError(f"prior: {error}") from error
        self.prior_sha256: str | None = getattr(self.prior, "sha256", None)
        precision = PRECISIONS[job.compute.precision]
        if precision is not None:
            self.prior = Autocast(self.prior, precision)
        try:
            like = torch.empty(0, device=self.device)
            self.sampler.prepare(self.prior, self.operator, job.degradation.sigma_y, like)
        except ValueError as error:
            raise JobError(f"sampler.{error}") from error
        self.largest_batch = job.compute.batch_size
        self.seconds = dict.fromkeys(("degrade", "sample", "score"), 0.0)

    def run(self, keys: Sequence[str], images: np.ndarray) -> list[Restored]:
        """Restore images (B, H, W, 3) uint8. Too little device memory halves the batch, and stays so.

        Raises:
            Exception: what the operator, prior or sampler raised.
        """
        results: list[Restored] = []
        while len(results) < len(keys):
            part = slice(len(results), len(results) + self.largest_batch)
            try:
                results += self.run_batch(keys[part], images[part])
                continue
            except torch.OutOfMemoryError:
                if self.largest_batch == 1:
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            self.largest_batch = (self.largest_batch + 1) // 2
            torch.cuda.empty_cache()
            logger.warning("out of device memory: batch size is now %d", self.largest_batch)
        return results

    def run_batch(self, keys: Sequence[str], images: np.ndarray) -> list[Restored]:
        sigma_y = self.job.degradation.sigma_y
        noise = KeyedNoise(self.job.seed, keys)
        with self.timed("degrade"), torch.no_grad():
            truth = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            y = measure(self.operator.forward(truth), self.job.degradation, noise)
        before = self.seconds["sample"]
        with self.timed("sample"):
            outcome = self.sampler(self.prior, self.operator, y, noise, sigma_y=sigma_y)
        seconds = (self.seconds["sample"] - before) / len(keys)
        with self.timed("score"), torch.no_grad():
            image = outcome.image
            finite = image.isfinite().flatten(1).all(1).tolist()
            metrics = score.score(self.job.metrics, image, truth)
            residuals = score.residual(self.operator.forward(image), y)
            seen = y if self.operator.pixels else self.operator.pinv(y)
            pictures = zip(to_uint8(image), to_uint8(seen), strict=True)
        return [
            Restored(
                metrics={name: values[i] for name, values in metrics.items()},
                residual=residuals[i],
                seconds=seconds,
                forwards=outcome.forwards,
                vjps=outcome.vjps,
                batch_size=len(keys),
                restored=restored,
                measurement=measurement,
                error=None if finite[i] else "NotFinite: the sampler's result contains NaN or infinity",
            )
            for i, (restored, measurement) in enumerate(pictures)
        ]

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # once per part of a batch, not per step
        self.seconds[part] += time.perf_counter() - started


def measure(y: Tensor, degradation: Degradation, noise: KeyedNoise) -> Tensor:
    """The measurement (B, …): y on the [-1, 1] scale with the job's noise, keyed by sample."""
    if (photons := degradation.poisson) is not None:
        rates = photons * ((y + 1) / 2).clamp_min(0)
        y = noise.poisson("photons", rates) / photons * 2 - 1
    if degradation.gaussian > 0:
        y = y + degradation.gaussian * noise.normal("measurement", tuple(y.shape[1:])).to(y)
    return y


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] → (B, H, W, C) uint8, clipped and rounded."""
    levels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    array: np.ndarray = levels.permute(0, 2, 3, 1).cpu().numpy()
    return array
