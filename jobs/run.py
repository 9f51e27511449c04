"""`kintsugi run`: do a job, or what is left of it."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.execution import do_job, finish
from kintsugi.jobs.files import load_job
from kintsugi.jobs.options import AddressOption, JobArgument, LimitOption, SetOption
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, errors


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

    metrics = finish(write_report(do_job(load_job(job, sets or [], limit), address, retry_failed)))
    missing = metrics["samples"]["planned"] - metrics["samples"]["done"]
    if missing and retry_failed:
        errors.print(f"{missing} samples are still to be done: the same command without --retry-failed")
    elif missing:
        raise JobError(f"{missing} samples have no valid commit record; run the same command again")
    if metrics["samples"]["failed"]:
        raise typer.Exit(EXIT_SOME_FAILED)
