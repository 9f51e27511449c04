"""Samples: one or several restorations of each measurement of a batch, and what is kept of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kintsugi.pipeline.data.names import frame_of
from kintsugi.pipeline.data.pictures import BITS
from kintsugi.pipeline.execution.degrade import levels
from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.calibration import calibration
from kintsugi.pipeline.metrics.registry import samples_column
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.base import OF_AUTOENCODER, of_each

SHOWN = 3  # samples of an image, of which pictures are kept: memory does not grow with their number


@dataclass(frozen=True)
class Several:
    """Of several samples for one measurement.

    Attributes:
        samples: each, as `Restored.restored`; of an image the first three. deviation: the standard
            deviation of all, (3, H, W) float16 on [-1, 1]. spread: the RMS of that.
    """

    samples: list[np.ndarray]
    deviation: np.ndarray
    spread: float


class Samples:
    """The samples of a batch, drawn one after another: of images only sums and the first pictures are kept.

    Attributes:
        forwards, vjps: of the network, for each measurement, all samples together.
        of_autoencoder: decodes, encodes and products with Jacobians likewise, where the prior is of latents.
        running: their mean and deviation, (B, 3, H, W) on [-1, 1].
    """

    def __init__(self, job: Job, keys: Sequence[str], y: Tensor):
        self.job, self.keys, self.y = job, keys, y
        self.count = job.restoration.samples_per_image
        self.running = RunningDeviation()
        self.forwards, self.vjps = ([0] * len(keys) for _ in range(2))
        self.of_autoencoder: dict[str, int] = {}
        self.pictures: list[np.ndarray] = []
        self.scores: dict[str, list[float]] = {}

    @property
    def wanted(self) -> int:
        """How many more samples of each measurement there are to be."""
        return self.count - self.running.count

    def draw(self, problem: Prepared) -> Tensor:
        """One more sample of each measurement, (B, 3, H, W); the first is that of a job with one sample."""
        number, job = self.running.count, self.job
        outcome = problem.restore(self.y, noise_of(job, self.keys, number))
        self.running.add(outcome.image)
        self.forwards = added(self.forwards, outcome.forwards)
        self.vjps = added(self.vjps, outcome.vjps)
        if outcome.decodes:
            before = self.of_autoencoder
            self.of_autoencoder = {
                name: before.get(name, 0) + getattr(outcome, name) for name in OF_AUTOENCODER
            }
        if self.count > 1 and (job.from_measurements or number < SHOWN):
            self.pictures.append(levels(outcome.image, BITS[job.restoration.format]))
        return outcome.image

    def score(self, metrics: Mapping[str, Sequence[float]]) -> None:
        """Count the metrics of a sample: `calibration` has their mean over all samples, and no best one."""
        for name, values in metrics.items():
            before = self.scores.get(name, [0.0] * len(values))
            self.scores[name] = [a + b for a, b in zip(before, values, strict=True)]

    @property
    def mean(self) -> Tensor:
        """The mean of the samples, (B, 3, H, W) on [-1, 1]."""
        return self.running.mean

    def several(self) -> Sequence[Several | None]:
        """What is kept of the samples of each measurement; None of a single one."""
        if self.count == 1:
            return [None] * len(self.keys)
        spreads = self.running.deviation.square().mean((1, 2, 3)).sqrt().tolist()
        deviation = self.running.deviation.half().cpu().numpy()
        return [
            Several([x[i] for x in self.pictures], deviation[i], spreads[i]) for i in range(len(self.keys))
        ]

    def calibration(self, truth: Tensor) -> dict[str, list[float]]:
        """By column, how the samples of each image lie about its truth (B, 3, H, W) on [-1, 1]."""
        found = calibration(truth, self.running.mean, self.running.deviation, self.count)
        scores = {
            samples_column(name): [value / self.count for value in of] for name, of in self.scores.items()
        }
        return scores | found


def noise_of(job: Job, keys: Sequence[str], number: int = 0) -> KeyedNoise:
    """The sampler's noise for these samples: each one's own, or its clip's.

    Args:
        number: which of several restorations of each it is for.
    """
    named = [frame_of(key)[0] for key in keys] if job.restoration.noise == "per_clip" else keys
    return KeyedNoise(job.seed, named if number == 0 else [f"{name}\0{number}" for name in named])


def added(so_far: Sequence[int], count: int | Tensor) -> list[int]:
    """The counts of each measurement, with those of one more sample."""
    return [one + other for one, other in zip(so_far, of_each(count, len(so_far)), strict=True)]


class RunningDeviation:
    """Mean and standard deviation of samples, one batch after another (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Count one more sample of everything."""
        self.count += 1
        difference = x - self.mean
        self.mean = self.mean + difference / self.count
        self.squares = self.squares + difference * (x - self.mean)

    @property
    def deviation(self) -> Tensor:
        """Of two or more, unbiased."""
        return (self.squares / (self.count - 1)).sqrt()
