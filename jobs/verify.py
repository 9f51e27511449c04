"""`kintsugi verify`: are the files of a run what was committed?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kintsugi.jobs.execution import open_run
from kintsugi.jobs.files import located
from kintsugi.jobs.options import RunArgument
from kintsugi.jobs.terminal import EXIT_CANNOT_RUN, console, errors

if TYPE_CHECKING:
    from kintsugi.pipeline.execution.run import Run
    from kintsugi.pipeline.execution.verify import Finding


def verify(
    run: RunArgument,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Drop damaged units, so that a rerun does them again; write damaged restorations again, and "
            "make a damaged plan again from the shards.",
        ),
    ] = False,
) -> None:
    """Check every commit of a run against its files and the plan, and say what a rerun would do.

    Reads all rows: counts, checksums, every key once; and what is in restored/. Exit code 1 if something is
    wrong.

    Examples:

        kintsugi verify runs/quickstart

        kintsugi verify runs/quickstart --repair
    """
    from kintsugi.jobs.display import progress_bar
    from kintsugi.pipeline.execution.verify import Finding, mend, verify

    if repair:
        for name in mend(located("RUN", run)):
            console.print(f"made again: {name}")
    this = open_run(run)
    findings: list[Finding] = []
    good = samples = 0
    with progress_bar(console, this.summary.units, "units") as advance:
        for found in verify(this):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                good, samples = good + 1, samples + found.samples
            advance()
    for finding in findings:
        where = "" if finding.unit is None else f"unit {finding.unit.unit}: "
        errors.print(f"{where}{finding.what}", style="yellow")
    damaged = [finding for finding in findings if finding.unit is not None]
    again = {finding.shard for finding in findings if finding.shard is not None}
    if repair:
        repaired(this, damaged, again)
    left = this.summary.units - good
    console.print(
        f"{good} of {this.summary.units} units are as committed, {samples} samples. "
        + (
            f"A rerun does {left} units, {this.summary.samples - samples} samples"
            + (f", once --repair has dropped the {len(damaged)} damaged" if damaged and not repair else "")
            + "."
            if left
            else f"A rerun writes {len(again)} restored shards again."
            if again and not repair
            else "A rerun does nothing."
        ),
    )
    if len(findings) > (len(damaged) + len(again) if repair else 0):
        raise typer.Exit(EXIT_CANNOT_RUN)


def repaired(this: Run, damaged: list[Finding], again: set[str]) -> None:
    """Drop damaged units, and write the restorations of shards again."""
    from kintsugi.pipeline.execution.restored import drop_restored, write_restored
    from kintsugi.pipeline.execution.verify import repair

    drop_restored(this, [finding.unit for finding in damaged if finding.unit is not None])
    for finding in damaged:
        repair(this, finding)
    if damaged or not again:
        console.print(f"dropped {len(damaged)} damaged units")
    if again:
        for target in write_restored(this, again):
            console.print(f"written again: {target}")
