"""How long a job would take: one batch of it, timed here."""

import time

import numpy as np
import torch

from kintsugi.errors import JobError
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.job import Job


def seconds_per_image(job: Job, device: str) -> float:
    """Seconds to degrade, restore and score one image, after a warm-up.

    On a CPU a single image is timed, since batches bring little there; on a GPU a whole batch.

    Raises:
        JobError: no image of about `data.size` fits the operator, or as `Stage`.
    """
    torch.set_num_threads(job.compute.cpus_per_actor)
    stage = Stage(job, device)
    if (shapes := stage.problems.typical) is None:
        raise JobError("plan: the operator fits no image of data.size, so there is none to time; --no-timing")
    channels, height, width = shapes.image
    example = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    if job.from_measurements:
        example = np.zeros(shapes.measurement, np.float32)
    count = stage.batch_size if device == "cuda" else 1
    for _ in range(2):
        started = time.perf_counter()
        stage.run([Decoded(str(i), i, example, label=0) for i in range(count)])
    return (time.perf_counter() - started) / count
