"""`kintsugi report`: the report of a run again."""

from __future__ import annotations

from kintsugi.jobs.execution import finish, open_run
from kintsugi.jobs.options import RunArgument, TrackOption


def report(run: RunArgument, track: TrackOption = None) -> None:
    """Write the report of a run again, complete or not.

    Examples:

        kintsugi report runs/quickstart

        kintsugi report runs/quickstart --track mlflow
    """
    from kintsugi.jobs.tracking import tracked
    from kintsugi.pipeline.analysis.report import write_report

    with tracked(track) as tracking:
        this = open_run(run)
        tracking.begin(this, 0)
        finish(page := write_report(this))
        tracking.finish(page)
