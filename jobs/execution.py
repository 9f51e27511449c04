"""What commands share: open a run, do units of it with a display of how far it is, say what came out."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich import table as rich_table

from kintsugi.errors import JobError
from kintsugi.jobs.files import located
from kintsugi.jobs.terminal import EXIT_INTERRUPTED, EXIT_SOME_FAILED, console, errors, to_rich

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from kintsugi.jobs.tracking import Tracking
    from kintsugi.pipeline.analysis.tables import Table
    from kintsugi.pipeline.data.units import PlanSummary
    from kintsugi.pipeline.execution.live import Live
    from kintsugi.pipeline.execution.run import Part, Progress, Run
    from kintsugi.pipeline.job import Job
    from kintsugi.pipeline.storage.location import Location

REASONS = 10  # of failures at most that are shown
NAMED = 10  # files that are left out
UNPAIRED = 20  # images without a partner


def open_run(run: str) -> Run:
    """The run in a directory, which an argument RUN names; raises a JobError if it is none."""
    from kintsugi.pipeline.execution.run import Run

    return Run.open(located("RUN", run))


def do_job(
    job: Job, address: str | None, retry_failed: bool = False, tracking: Tracking | None = None
) -> Run:
    """Begin the run of a job or continue it, and say what is done of it before; its report is another step.

    Args:
        address: none: in this process; else of Ray. retry_failed: only samples that failed, of a run that is
            there. tracking: is told of the run and of what is done of it.

    Raises:
        typer.Exit: interrupted.
        JobError: it cannot be done.
    """
    from kintsugi.pipeline.execution.directory import JOB
    from kintsugi.pipeline.execution.open import open_or_plan
    from kintsugi.pipeline.execution.run import Part, Progress
    from kintsugi.pipeline.storage.publish import clear_temporaries

    if retry_failed and not (job.folder / JOB).exists():
        raise JobError(f"--retry-failed: there is no run in {job.output}; without it one is begun")
    with console.status("reading the prior and the shards") as status:
        this = open_or_plan(
            job, lambda unit: status.update(f"reading shards: {unit.first + unit.samples} samples")
        )
    show_shard_warnings(this.summary)
    before, units = this.to_do(retry_failed)
    if tracking is not None:
        tracking.begin(this, before.rows)
    console.print(
        f"{this.folder}: {this.summary.samples} samples in {this.summary.units} units"
        + (f", {before.rows} samples done before" if before.rows else ""),
    )
    if retry_failed:
        console.print(f"{before.failed} failed samples in {len(units)} units again")
    if units:
        counted = Progress(0, 0, 0) if retry_failed else before
        execute([Part(this, units, failed_only=retry_failed)], address, counted, tracking)
    clear_temporaries(this.folder)
    write_restored(this)
    return this


def complete(
    job: Job, address: str | None, retry_failed: bool = False, trackers: Sequence[str] | None = None
) -> None:
    """Do a job to its end, and write and say its report; arguments as of `do_job`.

    Args:
        trackers: names of those that are told.

    Raises:
        typer.Exit: some samples failed, or restored and true images have no partner; or interrupted.
        JobError: it cannot be done.
    """
    from kintsugi.jobs.tracking import tracked
    from kintsugi.pipeline.analysis.report import write_report

    with tracked(trackers) as tracking:
        this = do_job(job, address, retry_failed, tracking)
        samples = finish(page := write_report(this))["samples"]
        tracking.finish(page)
    missing = samples["planned"] - samples["done"]
    if missing and retry_failed:
        errors.print(f"{missing} samples are still to be done: the same command without --retry-failed")
    elif missing:
        raise this.incomplete(missing)
    if samples["failed"] or this.summary.without_truth or this.summary.without_restored:
        raise typer.Exit(EXIT_SOME_FAILED)


def execute(
    parts: Sequence[Part], address: str | None, before: Progress, tracking: Tracking | None = None
) -> None:
    """Do units of runs, with a display of how far they are.

    Raises:
        typer.Exit: interrupted.
        JobError: the storage fails, or workers cannot start.
    """
    from kintsugi.jobs.display import Display
    from kintsugi.pipeline.execution import restored as export
    from kintsugi.pipeline.execution.live import Live
    from kintsugi.pipeline.execution.local import in_process

    live, at_once = Live(), False
    if any(part.run.job.compute.compile for part in parts):
        live.notes.append("workers compile the network first: minutes, later from the cache of their machine")
    if address == "none":
        commits = in_process(parts, live)
    else:
        from kintsugi.pipeline.execution.actors import on_ray

        commits = on_ray(parts, live, address)
    total = before.rows + sum(unit.samples for part in parts for unit in part.units)
    display = Display(console, total, before, live)
    try:
        for part in parts:
            export.drop_restored(part.run, part.units)
        with stoppable(live, display.waiting), display.running():
            for commit in commits:
                display.add(commit)
                if tracking is not None:
                    tracking.add(commit, display.done, display.numbers())
    except KeyboardInterrupt:
        live.stopping = at_once = True
    except OSError as error:
        raise JobError(f"storage: {error}; the same command continues when this is mended") from error
    finally:
        commits.close()
    if live.stopping:
        errors.print(
            f"interrupted: {display.done} of {total} samples are committed; the same command continues",
        )
        if not at_once:
            for part in parts:
                write_restored(part.run, {unit.shard for unit in part.units})
        raise typer.Exit(EXIT_INTERRUPTED)


@contextmanager
def stoppable(live: Live, waiting: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the units in hand be finished, once; the second one is a KeyboardInterrupt.

    Only the main thread hears signals; in another one they go on meaning what they did.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        if live.stopping:
            raise KeyboardInterrupt
        live.stopping = True
        live.notes.append(f"{waiting()}; once more to end at once, which loses only these")

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def write_restored(this: Run, shards: set[str] | None = None) -> None:
    """Have in restored/ what is done, of some shards or all."""
    from kintsugi.pipeline.execution import restored as export

    if this.job.from_measurements:
        with console.status("writing the restored shards"):
            for target in export.write_restored(this, shards):
                console.print(f"restored: {target}")


def finish(report: Location) -> dict[str, Any]:
    """Say what came out."""
    from kintsugi.pipeline.execution.directory import METRICS

    metrics: dict[str, Any] = json.loads((report.parent / METRICS).read_text())
    show_results(metrics)
    samples = metrics["samples"]
    show_reasons(metrics["failures"]["reasons"], samples["done"])
    done = "compared" if metrics["job"]["data"]["kind"] == "restored" else "restored"
    console.print(f"{samples['ok']} {done}, {samples['failed']} failed · {report}")
    return metrics


def show_results(metrics: Mapping[str, Any]) -> None:
    """The measures in metrics.json, and what is doubtful about them."""
    from kintsugi.pipeline.analysis.report.numbers import about_baselines, against

    found = results_table(metrics)
    table = rich_table.Table(title=metrics["title"], title_justify="left")
    for i, column in enumerate(found.columns):
        table.add_column(column, justify="right" if i else "left")
    for row in found.rows:
        table.add_row(*row)
    console.print(table)
    if (beside := against(metrics)).rows:
        console.print(to_rich(beside))
    for line in about_baselines(metrics):
        errors.print(line, style="yellow")
    for name, value in metrics["sets"].items():
        for warning in value["warnings"]:
            errors.print(f"{name}: {warning}", style="yellow")


def results_table(metrics: Mapping[str, Any]) -> Table:
    """The measures in metrics.json with their intervals, for reading."""
    from kintsugi.pipeline.analysis.measures import count, interval, number
    from kintsugi.pipeline.analysis.report.numbers import numbers
    from kintsugi.pipeline.analysis.tables import Table

    rows = [
        [
            f"{name}, of the set" if name in metrics["sets"] else name,
            number(value["value"]),
            interval(value.get("low"), value.get("high")),
            count(value),
        ]
        for name, value in numbers(metrics).items()
    ]
    return Table(["measure", "mean", "95 % interval", "n"], rows)


def show_reasons(reasons: list[dict[str, Any]], samples: int) -> None:
    """Why samples failed; if all of them for one reason, that is the error."""
    for reason in reasons[:REASONS]:
        what = f"{reason['error']} ({reason['key']})"
        if reason["count"] == samples:
            errors.print(f"error: every sample failed: {what}", style="red")
        else:
            errors.print(f"{reason['count']} failed: {what}", style="yellow")
    if len(reasons) > REASONS:
        errors.print(f"and {len(reasons) - REASONS} other reasons, see the rows", style="yellow")


def show_shard_warnings(summary: PlanSummary) -> None:
    """What planning found that the user should know."""
    for path, what in summary.damaged.items():
        errors.print(f"damaged, doing what is readable: {path}: {what}", style="yellow")
    for path in summary.empty:
        errors.print(f"holds no samples: {path}", style="yellow")
    for note in summary.notes:
        errors.print(note, style="yellow")
    both = ((summary.without_truth, "no truth for"), (summary.without_restored, "not restored"))
    for keys, what in both:
        for key in keys[:UNPAIRED]:
            errors.print(f"{what}: {key}", style="yellow")
        if len(keys) > UNPAIRED:
            errors.print(f"{what}: and {len(keys) - UNPAIRED} more", style="yellow")
    first = [(f"{shard}: {name}", why) for shard, name, why in summary.left_out_first]
    show_left_out(summary.left_out, first, "files in the shards are no samples")


def show_left_out(count: int, first: list[tuple[str, str]], what: str) -> None:
    """How many files were left out, and the first of them with why."""
    if count:
        errors.print(f"{what}: {count}", style="yellow")
    for name, why in first[:NAMED]:
        errors.print(f"  {name}: {why}", style="yellow")
    if count > NAMED:
        errors.print("  …", style="yellow")
