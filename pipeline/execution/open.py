"""Opening the run of a job: an existing one is continued, or refused; a new one gets its plan."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import yaml

from kintsugi import priors, samplers
from kintsugi.device import default_device
from kintsugi.errors import JobError
from kintsugi.operators import SpecError
from kintsugi.pipeline.data import photographs as builtin
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.shards import called, expand, from_root
from kintsugi.pipeline.data.units import PlanSummary, Unit, changed_shards
from kintsugi.pipeline.execution.checkpoints import on_this_node
from kintsugi.pipeline.execution.claim import claimed, clear
from kintsugi.pipeline.execution.directory import (
    COMMITS,
    FILES,
    JOB,
    KEPT,
    PLAN,
    PRIOR,
    RESTORED,
    SHARDS,
    refuse_links,
)
from kintsugi.pipeline.execution.identity import keep_to, record, text_of
from kintsugi.pipeline.execution.reference import refuse_missing
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job, as_before, differences
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import file_sizes, lexists, lies_in
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.priors import Examined
from kintsugi.priors.base import Described, autoencoder_of
from kintsugi.samplers.base import check_fit, check_prediction
from kintsugi.samplers.external import External


def open_or_plan(job: Job, on_unit: Callable[[Unit], None] = lambda unit: None) -> Run:
    """The run of this job: an existing one to be continued, or a new one with its plan made.

    Raises:
        JobError: the directory holds a run of another job, or another one is planned in it; files or
            shards have changed; or the plan cannot be made.
    """
    folder = job.folder
    refuse_links(folder)
    refuse_command(job)
    job = with_absolute_shards(job)
    prior = examine_prior(job)
    if (folder / JOB).exists():
        return continued(folder, job, prior)
    job = decided(job)
    with claimed(folder, job, prior.sha256):
        if (folder / JOB).exists():  # since a moment ago
            return continued(folder, job, prior)
        summary = plan(job, folder, on_unit)
        job = job.model_copy(update={"output": str(folder)})
        if file_sizes(folder / COMMITS):  # somebody has removed its job.yaml, and its rows stay
            keep_to(folder, job)
        record(folder, job)
        publish_bytes(folder / PRIOR, text_of(asdict(prior)))
        text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
        sums = {name: records.digest(folder / name) for name in KEPT if name != JOB}
        records.write_sums(folder, {JOB: hashlib.sha256(text.encode()).hexdigest(), **sums})
        publish_bytes(folder / JOB, text.encode())  # which makes it a run
        return Run(folder, job, prior, summary)


def refuse_command(job: Job) -> None:
    """Raise a JobError if the job would run a program, and nobody has said that it may."""
    if not job.is_score and isinstance(sampler := samplers.build(job.sampler), External):
        try:
            sampler.refuse_unasked()
        except ValueError as error:
            raise JobError(f"sampler.{error}") from error


def continued(folder: Location, job: Job, prior: Examined) -> Run:
    """The run in a directory; raises a JobError if it is of another job, files, or shards."""
    run = Run.open(folder)
    job = decided(job, run)
    refuse_another(run, job, prior)
    clear(folder)
    if lexists(folder / FILES):
        keep_to(folder, job)
    else:  # an earlier version has begun it, which did not ask
        record(folder, job)
    now, planned = list(map(str, shard_paths(job, folder))), run.summary.shards
    if now != planned:
        fresh = sorted(set(now) ^ set(planned))
        raise JobError(
            f"{folder} was planned with other shards; choose another output, or restore them:\n  "
            + "\n  ".join(fresh[:10])
        )
    if gone := changed_shards(folder / PLAN):
        raise JobError("shards have changed since the plan was made:\n  " + "\n  ".join(gone))
    if not lexists(folder / records.SUMS):  # of an earlier version, and from now on as others
        records.write_sums(folder, {name: records.digest(folder / name) for name in KEPT})
    # As they were written: commit records name the configuration by them.
    return Run(folder, as_written(run.job, job), prior, run.summary)


def decided(job: Job, run: Run | None = None) -> Job:
    """The job with what `auto` is: in a run that is there what it was when that was begun.

    Else by this machine; where the workers' is another one, the job may say what they can.
    """
    if run is not None:
        return job.model_copy(update={"compute": job.compute.as_in(run.job.compute)})
    gpus = job.compute.gpus_per_actor and not job.is_score
    return job.model_copy(update={"compute": job.compute.on(default_device() if gpus else "cpu")})


def refuse_another(run: Run, job: Job, prior: Examined) -> None:
    """Raise a JobError if a run is not one of this job, `decided` and with absolute shards, and prior."""
    if changed := differences(with_absolute_shards(run.job), job):
        listed = "\n".join(f"  {field}: {before!r} → {now!r}" for field, before, now in changed)
        raise JobError(
            f"{run.folder} holds a run of another job; choose another output, delete it, or undo:\n{listed}"
        )
    if run.prior.sha256 != prior.sha256:
        raise JobError(
            f"{run.folder} was begun with another prior; choose another output, or restore it:\n"
            f"  {run.prior.title}, SHA-256 {run.prior.sha256}\n"
            f"  now {prior.title}, SHA-256 {prior.sha256}"
        )


def with_absolute_shards(job: Job) -> Job:
    """The job with shards that are the same from any folder, so that job.yaml works from there."""
    shards, truth = job.data.shards, job.data.true_images
    with called("data.truth"):
        found = {} if truth is None else {"truth": from_root(truth)}
    shards = shards if shards == builtin.SCIKIT_IMAGE else from_root(shards)
    return with_data(job, shards=shards, **found)


def as_written(before: Job, now: Job) -> Job:
    """A job with what is the same as before in the words it had then."""
    operator = as_before(before.degradation.operator, now.degradation.operator)
    specs = {
        "degradation": now.degradation.model_copy(update={"operator": operator}),
        "prior": as_before(before.prior, now.prior),
        "sampler": as_before(before.sampler, now.sampler),
    }
    return with_data(now, shards=before.data.shards, truth=before.data.truth).model_copy(update=specs)


def with_data(job: Job, **fields: Any) -> Job:
    """The job with other fields of its data."""
    return job.model_copy(update={"data": job.data.model_copy(update=fields)})


def examine_prior(job: Job) -> Examined:
    """What the job's prior is, found before any work starts; that of restored images is none.

    Raises:
        JobError: it cannot be used, at all or by the job's sampler or metrics; the message names the field
            and what is wrong.
    """
    if job.is_score:
        return Examined(sha256="", title="none")
    try:
        here = on_this_node(job.prior)
        described = priors.describe(here)
        found = priors.examine(here, job.image_shape, described)
    except (SpecError, OSError) as error:
        raise JobError(str(error)) from error
    refuse_prediction(job, described)
    return found


def refuse_prediction(job: Job, prior: Described) -> None:
    """Raise a JobError if x̂₀ of the prior is not what the job's sampler or metrics take it for."""
    try:
        if job.measuring:
            check_prediction(prior, "metrics: prior_error")
            if autoencoder_of(prior) is not None:
                raise ValueError("metrics: prior_error is for a prior of pixels, and this one is of latents")
    except ValueError as error:
        raise JobError(str(error)) from error
    try:
        check_fit(samplers.build(job.sampler), prior)
    except ValueError as error:
        raise JobError(f"sampler.{error}") from error


def shard_paths(job: Job, folder: Location) -> list[Location]:
    """The shards of a job; built-in ones are made in the folder if they are not there."""
    if job.data.shards == builtin.SCIKIT_IMAGE:
        return [builtin.scikit_image_shard(folder / SHARDS, job.data.size)]
    return expand(job.data.shards)


def plan(job: Job, folder: Location, on_unit: Callable[[Unit], None]) -> PlanSummary:
    """Make the plan of a job in a folder.

    Raises:
        JobError: as `make_plan` and `refuse_missing`, input and output lie in each other, or restorations
            cannot have the names of their shards.
    """
    refuse_missing(job.metrics, job.reference)
    paths = shard_paths(job, folder)
    output = job.folder
    with called("data.truth"):
        true = [] if job.data.true_images is None else expand(job.data.true_images)
    for path, field in [*((one, "data.shards") for one in paths), *((one, "data.truth") for one in true)]:
        if lies_in(output, path):
            raise JobError(
                f"output: {output} lies in {path}, one of {field}: its pictures would count as samples; "
                "choose another output"
            )
        if job.from_measurements and lies_in(path, output / RESTORED):
            raise JobError(
                f"data.shards: {path} lies where restorations are written; move it, or choose another output"
            )
    if job.from_measurements:
        refuse_shard_names([restored_name(path.name) for path in paths])
    restoration = job.restoration if job.from_measurements else None
    size, wanted = job.compute.unit_size, job.wanted
    return make_plan(job.data, paths, size, folder / PLAN, on_unit, restoration, wanted)


def restored_name(shard: str) -> str:
    """The name of the restorations of a shard: its own, or that of a tar in the place of Parquet."""
    return f"{shard[: -len('.parquet')]}.tar" if shard.lower().endswith(".parquet") else shard


def refuse_shard_names(names: list[str]) -> None:
    """Raise a JobError for shards after which no file or folder of restorations can be named."""
    if nameless := [name for name in names if name in ("", "..")]:
        raise JobError(
            f"data.shards: a folder without a name ({nameless[0] or '/'}), and so would be its restorations; "
            "name the folders in it"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise JobError(
            f"data.shards: two shards are named {twice[0]}, and so would be their restorations; "
            "rename one, or restore them by two jobs"
        )
