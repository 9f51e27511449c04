"""The stage: degrade a batch of images, restore it, score it. Knows nothing of shards and rows."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
from priors import speed
from priors.base import ClassConditional
from samplers import KeyedNoise

BATCH_ON_CPU = 16  # `auto` where memory does not tell: larger batches are no faster there
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
        batch_size: samples restored at once; halved when device memory runs out.
        notes: what the user should know.

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
            raise JobError(str(error)) from error
        precision = PRECISIONS[job.compute.precision]
        if precision is not None:
            speed.half_precision(self.prior, precision)
            if self.device.type == "cuda":
                speed.channels_last(self.prior)
        try:
            like = torch.empty(0, device=self.device)
            self.sampler.prepare(self.prior, self.operator, job.degradation.sigma_y, like)
        except ValueError as error:
            raise JobError(f"sampler.{error}") from error
        self.batch_size = BATCH_ON_CPU if job.compute.batch_size == "auto" else job.compute.batch_size
        self.notes: list[str] = []
        self.seconds = dict.fromkeys(("degrade", "sample", "score"), 0.0)

    def compile(self) -> None:
        """Compile the network for whole batches, if the job asks for it."""
        mode, batch = self.job.compute.compile, self.batch_size
        if mode is not None and (
            why := speed.compiled(self.prior, mode, batch, lambda: self.rehearse(batch))
        ):
            self.notes.append(why)

    def largest_batch(self, limit: int) -> int:
        """The largest batch up to `limit` that fits into a GPU's memory, to an eighth.

        A tenth of the memory is left, for what a rehearsal does not show.
        """
        share = self.job.compute.gpus_per_actor if 0 < self.job.compute.gpus_per_actor < 1 else 1.0
        fits, fails = 0, limit + 1
        with memory_limited(self.device, 0.9 * share):
            while fails - fits > max(1, fits // 8):
                # Doubling until something fails, then halving the interval.
                count = min(max(1, 2 * fits), limit) if fails > limit else (fits + fails) // 2
                try:
                    self.rehearse(count)
                    fits = count
                except torch.OutOfMemoryError:
                    fails = count
                self.release_memory()
                if fails == 1:
                    return 1  # `run` will recompute activations, or say that nothing fits
        return fits

    def rehearse(self, count: int) -> None:
        """The first step of the sampler on a batch and the evaluation after it, and the batch's scores.

        It needs the memory of a whole run, and little time.
        """
        degradation = self.job.degradation
        truth = torch.zeros(count, *self.job.image_shape, device=self.device)
        noise = KeyedNoise(0, [str(i) for i in range(count)])
        self.label([0] * count)
        y = self.operator.forward(truth)
        with suppress(RehearsedError):
            self.sampler(
                self.prior, self.operator, y, noise, sigma_y=degradation.sigma_y, callback=end_of_rehearsal
            )
        with torch.no_grad():
            score.score(self.job.metrics, truth, truth)

    def release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(
        self, keys: Sequence[str], images: np.ndarray, labels: Sequence[int | None] | None = None
    ) -> list[Restored]:
        """Restore images (B, H, W, 3) uint8.

        Too little device memory halves the batch, and stays so; when a single image does not fit,
        activations are computed twice instead of being kept.

        Raises:
            Exception: what the operator, prior or sampler raised.
        """
        labels = labels or [None] * len(keys)
        results: list[Restored] = []
        while len(results) < len(keys):
            part = slice(len(results), len(results) + self.batch_size)
            try:
                results += self.run_batch(keys[part], images[part], labels[part])
                continue
            except torch.OutOfMemoryError:
                alone = self.batch_size == 1
                if alone and not speed.checkpointed(self.prior):
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            self.release_memory()
            self.batch_size = (self.batch_size + 1) // 2
            change = (
                "activations are computed twice" if alone else f"batches of {self.batch_size}, not compiled"
            )
            self.notes.append(f"out of device memory: {change} from now on")
        return results

    def label(self, labels: Sequence[int | None]) -> None:
        """Tell a class-conditional prior the classes of the next batch.

        Raises:
            ValueError: a sample without a label.
        """
        prior = self.prior
        if not isinstance(prior, ClassConditional) or prior.classes is None or prior.label is not None:
            return
        if None in labels:
            raise ValueError("the prior is class-conditional and the sample has no .cls; set prior.label")
        prior.labels = torch.tensor(labels, device=self.device)

    def run_batch(
        self, keys: Sequence[str], images: np.ndarray, labels: Sequence[int | None]
    ) -> list[Restored]:
        self.label(labels)
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


class RehearsedError(Exception):
    """Ends a sampler's run early."""


def end_of_rehearsal(step: int, x: Tensor, prediction: Tensor) -> None:
    if step == 1:
        raise RehearsedError


@contextmanager
def memory_limited(device: torch.device, share: float) -> Iterator[None]:
    """Let this process use only a share of a GPU's memory."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


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
