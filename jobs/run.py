"""`kintsugi run`: do a job, or what is left of it."""

from __future__ import annotations

from kintsugi.jobs.execution import complete
from kintsugi.jobs.files import load_job
from kintsugi.jobs.options import (
    AddressOption,
    CommandsOption,
    JobArgument,
    LimitOption,
    RetryOption,
    SetOption,
    TrackOption,
)


def run(
    job: JobArgument,
    sets: SetOption = None,
    address: AddressOption = None,
    limit: LimitOption = None,
    retry_failed: RetryOption = False,
    track: TrackOption = None,
    allow_commands: CommandsOption = False,
) -> None:
    """Run a job, or continue it: the same command again does what is left.

    Ctrl-C or SIGTERM finishes the units in hand and ends; a second one ends at once. Nothing is lost.

    Examples:

        kintsugi run quickstart

        kintsugi run imagenet-sr4 --set data.shards='data/imagenet-{0000..0049}.tar' --set sampler.steps=10

        kintsugi run job.yaml --address auto --limit 100

        kintsugi run job.yaml --retry-failed

        kintsugi run job.yaml --track wandb
    """
    complete(load_job(job, sets or [], limit), address, retry_failed, track)
