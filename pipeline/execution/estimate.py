"""How much work a job would be: its samples, the evaluations of one, and a batch, timed here."""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from kintsugi.errors import JobError
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.open import plan
from kintsugi.pipeline.execution.stage import Loaded, Restored, Stage
from kintsugi.pipeline.job import Job
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.base import NetworkPrior


class Costless(StandardNormal):
    """Takes the place of a prior where only its evaluations count."""

    def __init__(self, prior: NetworkPrior):
        super().__init__(prior.path, prior.parametrization)
        self.network, self.sha256 = prior.network, prior.sha256
        self.prior = prior  # what x̂₀ is remains that of the real one


def samples_of(job: Job) -> int:
    """How many samples a job has; raises a JobError if it cannot be planned."""
    with tempfile.TemporaryDirectory() as folder:
        return plan(job, Path(folder), lambda unit: None).samples


def evaluations(job: Job, loaded: Loaded) -> tuple[int, int]:
    """Forwards and VJPs of an image, counted on one without the network of its prior, which is `loaded`.

    Raises:
        JobError: as `Stage`, or the sampler cannot restore such an image.
    """
    counted = Loaded(Costless(loaded.prior), loaded.described)
    stage = Stage(job.model_copy(update={"metrics": []}), "cpu", loaded=counted)
    (restored,) = in_stage(stage, 1)
    return restored.forwards, restored.vjps


def seconds_per_image(job: Job, device: str) -> float:
    """Seconds to degrade, restore and score one image, after a warm-up.

    On a CPU a single image is timed, since batches bring little there; on a GPU a whole batch.

    Raises:
        JobError: no image of about `data.size` fits the operator, or as `Stage`.
    """
    torch.set_num_threads(job.compute.cpus_per_actor)
    stage = Stage(job, device)
    count = stage.batch_size if device == "cuda" else 1
    for _ in range(2):
        started = time.perf_counter()
        in_stage(stage, count)
    return (time.perf_counter() - started) / count


def in_stage(stage: Stage, count: int) -> list[Restored]:
    """So many images of noise, restored; raises a JobError if no image of about `data.size` fits."""
    if (shapes := stage.problems.typical) is None:
        raise JobError("plan: the operator fits no image of data.size, so there is none to time; --no-timing")
    channels, height, width = shapes.image
    example = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    if stage.job.from_measurements:
        example = np.zeros(shapes.measurement, np.float32)
    beside = {} if stage.job.prompts is None else {stage.job.prompts: b""}
    return stage.run([Decoded(str(i), i, example, label=0, beside=beside) for i in range(count)])
