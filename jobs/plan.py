"""`kintsugi plan`: what a job would do."""

from __future__ import annotations

import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from kintsugi.errors import JobError, redacted
from kintsugi.jobs.execution import show_shard_warnings
from kintsugi.jobs.files import load_job
from kintsugi.jobs.options import JobArgument, LimitOption, SetOption
from kintsugi.jobs.terminal import console

if TYPE_CHECKING:
    from kintsugi.pipeline.job import Job
    from kintsugi.priors import Examined


def plan(
    job: JobArgument,
    sets: SetOption = None,
    limit: LimitOption = None,
    timing: Annotated[bool, typer.Option(help="Time one batch here for the estimate.")] = True,
) -> None:
    """Say what a job would do, and how long it would take, without doing it.

    Example:

        kintsugi plan imagenet-sr4 --set data.shards='data/*.tar'
    """
    from kintsugi.device import default_device
    from kintsugi.pipeline.execution import open as opening
    from kintsugi.pipeline.execution.estimate import seconds_per_image

    loaded = load_job(job, sets or [], limit)
    with console.status("reading the prior"):
        prior = opening.examine_prior(loaded)
    with console.status("reading shards") as status, tempfile.TemporaryDirectory() as folder:
        summary = opening.plan(
            loaded,
            Path(folder),
            lambda unit: status.update(f"reading shards: {unit.first + unit.samples} samples"),
        )
    show_shard_warnings(summary)
    there, another, decided = what_is_there(loaded, prior)
    compute = decided.compute
    table = Table(show_header=False)
    table.add_row("shards", str(len(summary.shards)))
    table.add_row("samples", str(summary.samples))
    table.add_row("units", f"{summary.units} of at most {compute.unit_size} samples")
    if not loaded.is_score:
        table.add_row("prior", f"{prior.title}\nSHA-256 {prior.sha256}")
        why = " by what computes here" if compute.precision != loaded.compute.precision else ""
        table.add_row("batch", f"{compute.batch_size} images, {compute.precision}" + why)
    table.add_row("output", f"{loaded.output}\n{there}")
    if loaded.sampler.get("name") == "external":
        command = loaded.sampler["command"]
        words = command if isinstance(command, str) else shlex.join(command)
        table.add_row(
            "command", f"{redacted(words)}\nrun for every batch, with --allow-commands; not timed here"
        )
    elif timing and not loaded.is_score:
        device = default_device()
        with console.status("timing one batch"):
            seconds = seconds_per_image(decided, device)
        where = "one GPU" if device == "cuda" else f"{compute.cpus_per_actor} cores"
        hours = summary.samples * seconds / 3600
        if loaded.from_measurements:
            side = loaded.data.size
            table.add_row("time", f"{seconds:.3f} s per tile of {side}x{side} on {where}")
        else:
            row = f"{seconds:.3f} s per image on {where}, {hours:.2f} hours for all on one actor"
            table.add_row("time", row)
    console.print(table)
    if another is not None:
        raise another


def what_is_there(job: Job, prior: Examined) -> tuple[str, JobError | None, Job]:
    """What is in a job's output in words, why `run` would refuse it, if so, and the job as it would be."""
    from kintsugi.pipeline.execution.directory import JOB
    from kintsugi.pipeline.execution.open import decided, refuse_another, with_absolute_shards
    from kintsugi.pipeline.execution.run import Run

    folder = job.folder
    if not (folder / JOB).exists():
        return "to be made", None, decided(job)
    try:
        this = Run.open(folder)
        job = decided(with_absolute_shards(job), this)
        refuse_another(this, job, prior)
    except JobError as error:
        return "taken: see below", error, decided(job)
    done = this.progress()
    return f"holds this run: {done.rows} of {this.summary.samples} samples are done", None, job
