"""`kintsugi suite`: a table of jobs as one experiment."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.jobs.options import AddressOption, CommandsOption, RetryOption, SetOption, TrackOption
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console, errors


def suite(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A suite file in YAML; see docs/suite.md.")],
    sets: SetOption = None,
    address: AddressOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many jobs and evaluations it is, and how long.")
    ] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Devices to which --dry-run divides the time.")] = 1,
    retry_failed: RetryOption = False,
    track: TrackOption = None,
    allow_commands: CommandsOption = False,
) -> None:
    """Do all jobs of a table: a base job times axes. The same command does what is left, or was added.

    Settings are tuned first, on images that nothing is evaluated on. Jobs are ordinary runs in OUTPUT/runs;
    workers go from one to the next without loading the prior again. OUTPUT/index.html compares them.

    Examples:

        kintsugi suite comparison.yaml --dry-run --gpus 8

        kintsugi suite comparison.yaml

        kintsugi suite comparison.yaml --set data.limit=4 --set prior.path=edm.pt --address none

        kintsugi suite comparison.yaml --retry-failed

        kintsugi suite comparison.yaml --track mlflow
    """
    from kintsugi.jobs import suite_run
    from kintsugi.jobs.suite_file import read_suite, without_effect
    from kintsugi.jobs.suite_tracking import tell_all
    from kintsugi.pipeline import trackers

    for name in track or ():
        trackers.build(name)  # what is missing is said before hours go by
    this = read_suite(suite, sets or [])
    jobs = suite_run.check_all(this)
    for sentence in without_effect(this.cells):
        errors.print(sentence, style="yellow")
    if dry_run:
        suite_run.show_plan(this, jobs, gpus)
        return
    entries = suite_run.run_all(this, address, retry_failed)
    failed = suite_run.finish(this, entries)
    if track:
        runs = [entry.run for entry in entries if entry.run is not None]
        tell_all(this, suite_run.folder_of(this), runs, track)
    if failed:
        console.print(f"{failed} samples failed: their runs' reports say why")
        raise typer.Exit(EXIT_SOME_FAILED)
