"""`kintsugi report`: the report of a run again."""

from __future__ import annotations

from kintsugi.jobs.execution import finish, open_run
from kintsugi.jobs.options import RunArgument


def report(run: RunArgument) -> None:
    """Write the report of a run again, complete or not.

    Example:

        kintsugi report runs/quickstart
    """
    from kintsugi.pipeline.analysis.report import write_report

    finish(write_report(open_run(run)))
