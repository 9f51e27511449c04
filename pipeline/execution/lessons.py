"""What a run's images teach: the same images, measurements and noise as it restores, with their truth."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from kintsugi.device import default_device
from kintsugi.errors import JobError
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.degrade import degrade
from kintsugi.pipeline.execution.own import prompts_of
from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.samples import noise_of
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.samplers.descent import Denoiser
from kintsugi.samplers.learning import Lesson
from kintsugi.samplers.problem import Problem


def lessons_of(run: Run) -> list[Lesson]:
    """A lesson for each batch of a run with a truth, on this process's device; all in memory.

    Images that cannot be read are left out.

    Raises:
        JobError: none can be read, or as `Worker`.
        Exception: what the operator raised.
    """
    worker, lessons = Worker(run.job, run.folder, default_device()), list[Lesson]()
    stage = worker.stage
    assert isinstance(stage, Stage)

    def add(problem: Prepared, samples: Sequence[Decoded], arrays: np.ndarray) -> list[None]:
        lessons.append(lesson_of(stage, problem, samples, arrays))
        return [None] * len(samples)

    for unit in run.units():
        for batch in worker.batches(unit, skip=()):
            stage.in_batches([sample for sample in batch if sample.image is not None], add)
    if not lessons:
        raise JobError(f"{run.folder}: none of its images can be read")
    return lessons


@torch.no_grad()
def lesson_of(stage: Stage, problem: Prepared, samples: Sequence[Decoded], arrays: np.ndarray) -> Lesson:
    """As `Stage.sampled` begins: the measurements of a batch, and what the sampler is told of them."""
    keys, job = [sample.key for sample in samples], stage.job
    beside = [sample.truth for sample in samples if sample.truth is not None]
    y, truth = degrade(job, problem, keys, torch.from_numpy(arrays).to(stage.device), beside)
    assert truth is not None
    told = stage.problems.as_told(problem, y)
    return Lesson(
        Problem(told.operator, y, noise_of(job, keys), told.sigma_y),
        truth,
        Denoiser(told.metered, None),
        partial(
            begin,
            told,
            [sample.label for sample in samples],
            prompts_of(job, samples),
            stage.batch_size,
        ),
    )


def begin(problem: Prepared, labels: Sequence[int | None], prompts: Sequence[str], tiles: int) -> None:
    """Tell the prior of a batch before each step, as others have had it in between."""
    problem.begin(labels, prompts, tiles)
    problem.metered.begin()
