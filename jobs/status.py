"""`kintsugi status`: how far a run is."""

from __future__ import annotations

from dataclasses import asdict

from kintsugi.jobs.execution import open_run, show_reasons
from kintsugi.jobs.options import RunArgument
from kintsugi.jobs.terminal import console


def status(run: RunArgument) -> None:
    """Say how far a run is, from its directory alone.

    Example:

        kintsugi status runs/quickstart
    """
    from kintsugi.pipeline.analysis.failures import failed_of, reasons

    this = open_run(run)
    done = this.progress()
    console.print(
        f"{done.rows} of {this.summary.samples} samples, {done.units} of {this.summary.units} units, "
        f"{done.failed} failed" + (" · complete" if done.units == this.summary.units else ""),
    )
    if done.failed:
        found = reasons(failed_of(this))
        show_reasons(list(map(asdict, found)), done.rows)
        if (counted := sum(reason.count for reason in found)) < done.failed:
            console.print(f"reasons of the first {counted} that failed")
