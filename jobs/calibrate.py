"""`kintsugi calibrate`: how large a prior's errors are, for the sampler `covariance`."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.jobs.options import JobArgument
from kintsugi.jobs.sweep import SetOption
from kintsugi.jobs.terminal import console

LEAST = 8
"""Images: of fewer the variances of the lowest frequencies are chance."""
ImagesOption = Annotated[int, typer.Option(min=LEAST, help="Images for tuning, at most.")]
OutOption = Annotated[
    str | None, typer.Option(help="A folder, a path or URL. [default: the job's output-errors]")
]


def calibrate(
    job: JobArgument, images: ImagesOption = 16, out: OutOption = None, sets: SetOption = None
) -> None:
    """Measure the errors of a job's prior, for the sampler `covariance`, or `latino`, in this process.

    The images are of those for tuning (data.subset), of which the job's evaluation sees none. It takes 12
    evaluations of each, whatever the job's sampler, which may name the table that is to be made. The table,
    OUT/errors.json, is of this prior alone; its precision and size are kept in it.

    Examples:

        kintsugi calibrate imagenet-sr4 --set prior='{name: adm, path: model.pt}' --out runs

        kintsugi run imagenet-sr4 --set sampler='{name: covariance, covariance: runs/errors.json}'
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from pydantic import ValidationError

    from kintsugi.errors import JobError
    from kintsugi.jobs import trials
    from kintsugi.jobs.display import progress_bar
    from kintsugi.jobs.files import located
    from kintsugi.pipeline.execution.lessons import lessons_of
    from kintsugi.pipeline.execution.memory import lacks_memory
    from kintsugi.pipeline.execution.open import open_or_plan
    from kintsugi.pipeline.execution.timing import Metered
    from kintsugi.pipeline.storage.publish import publish_bytes
    from kintsugi.samplers import KeyedNoise
    from kintsugi.samplers.calibrate import LEVELS, Calibration

    base = trials.read_base(job, sets or [], out, "errors")
    # The job's own sampler may ask for the table of another prior, or for one that is not there yet.
    settings = {"sampler": {"name": "covariance"}}
    with TemporaryDirectory() as planned, console.status("reading the prior and the images"):
        elsewhere = replace(base, folder=located("--out", planned))
        (trial,) = trials.make_trials(elsewhere, [settings], images, [])
        lessons = lessons_of(run := open_or_plan(trial.job))
    if (found := sum(len(lesson.truth) for lesson in lessons)) < LEAST:
        raise JobError(f"{found} images for tuning, and {LEAST} are needed: raise data.subset.fraction")
    prior = lessons[0].denoise.prior
    assert isinstance(prior, Metered)
    calibration = Calibration(prior, trial.job.data.size)
    try:
        with progress_bar(console, LEVELS * len(lessons), "batches") as advance:
            for lesson in lessons:
                lesson.begin()
                assert isinstance(lesson.problem.noise, KeyedNoise)
                calibration.add(lesson.truth, lesson.problem.noise, advance)
        table = calibration.table(prior.sha256 or "", run.job.compute.precision)
    except ValidationError as error:
        raise JobError("prior: errors are not finite, or 0; try compute.precision=float32") from error
    except Exception as error:
        if lacks_memory(error):
            raise JobError("compute.batch_size: memory is lacking; lower it") from error
        raise
    path = base.folder / "errors.json"
    publish_bytes(path, (table.model_dump_json() + "\n").encode())
    console.print(f"{path}: of {table.images} images; sampler.covariance={path}")
