"""`kintsugi run`: do a job, or what is left of it."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.execution import execute, finish, show_shard_warnings, write_restored
from kintsugi.jobs.files import load_job
from kintsugi.jobs.options import AddressOption, JobArgument, LimitOption, SetOption
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console, errors


def run(
    job: JobArgument,
    sets: SetOption = None,
    address: AddressOption = None,
    limit: LimitOption = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do the samples that failed again, and only these.")
    ] = False,
) -> None:
    """Run a job, or continue it: the same command again does what is left.

    Ctrl-C or SIGTERM finishes the units in hand and ends; a second one ends at once. Nothing is lost.

    Examples:

        kintsugi run quickstart

        kintsugi run imagenet-sr4 --set data.shards='data/imagenet-{0000..0049}.tar' --set sampler.steps=10

        kintsugi run job.yaml --address auto --limit 100

        kintsugi run job.yaml --retry-failed
    """
    from kintsugi.pipeline.analysis.report import write_report
    from kintsugi.pipeline.execution.directory import JOB
    from kintsugi.pipeline.execution.open import open_or_plan
    from kintsugi.pipeline.execution.run import Progress
    from kintsugi.pipeline.storage.publish import clear_temporaries

    loaded = load_job(job, sets or [], limit)
    if retry_failed and not (loaded.folder / JOB).exists():
        raise JobError(f"--retry-failed: there is no run in {loaded.output}; without it one is begun")
    with console.status("reading the prior and the shards") as status:
        this = open_or_plan(
            loaded, lambda unit: status.update(f"reading shards: {unit.first + unit.samples} samples")
        )
    show_shard_warnings(this.summary)
    before = this.progress()
    console.print(
        f"{this.folder}: {this.summary.samples} samples in {this.summary.units} units"
        + (f", {before.rows} samples done before" if before.rows else ""),
    )
    if retry_failed:
        failed = list(this.with_failures())
        console.print(f"{before.failed} failed samples in {len(failed)} units again")
        if failed:
            execute(this, failed, address, Progress(0, 0, 0), failed_only=True)
    elif before.units < this.summary.units:
        execute(this, list(this.outstanding()), address, before)
    clear_temporaries(this.folder)
    write_restored(this)
    metrics = finish(write_report(this))
    missing = metrics["samples"]["planned"] - metrics["samples"]["done"]
    if missing and retry_failed:
        errors.print(f"{missing} samples are still to be done: the same command without --retry-failed")
    elif missing:
        raise JobError(f"{missing} samples have no valid commit record; run the same command again")
    if metrics["samples"]["failed"]:
        raise typer.Exit(EXIT_SOME_FAILED)
