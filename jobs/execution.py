"""What commands share: open a run, do units of it with a display of how far it is, say what came out."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from kintsugi.errors import JobError
from kintsugi.jobs.files import located
from kintsugi.jobs.terminal import EXIT_INTERRUPTED, console, errors, to_rich

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from kintsugi.pipeline.data.units import PlanSummary, Unit
    from kintsugi.pipeline.execution.executors import Live
    from kintsugi.pipeline.execution.run import Progress, Run
    from kintsugi.pipeline.storage.location import Location

REASONS = 10  # of failures at most that are shown
NAMED = 10  # files that are left out


def open_run(run: str) -> Run:
    from kintsugi.pipeline.execution.run import Run

    return Run.open(located("RUN", run))


def execute(
    this: Run, units: list[Unit], address: str | None, before: Progress, failed_only: bool = False
) -> None:
    """Do units of a run, with a display of how far it is.

    Raises:
        typer.Exit: interrupted.
        JobError: the storage fails, or workers cannot start.
    """
    from kintsugi.jobs.display import Display
    from kintsugi.pipeline.execution import restored as export
    from kintsugi.pipeline.execution.executors import Live, in_process, on_ray

    live, at_once = Live(), False
    if address == "none":
        commits = in_process(this.job, this.folder, units, live, failed_only)
    else:
        commits = on_ray(this.job, this.folder, units, live, address, failed_only)
    total = before.rows + sum(unit.samples for unit in units)
    display = Display(console, total, before, live)
    try:
        export.drop_restored(this, units)
        with stoppable(live, display.waiting), display.running():
            for commit in commits:
                display.add(commit)
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
            write_restored(this, {unit.shard for unit in units})
        raise typer.Exit(EXIT_INTERRUPTED)


@contextmanager
def stoppable(live: Live, waiting: Callable[[], str]) -> Iterator[None]:
    """Ctrl-C and SIGTERM let the units in hand be finished, once; the second one is a KeyboardInterrupt."""

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
    console.print(f"{samples['ok']} restored, {samples['failed']} failed · {report}")
    return metrics


def show_results(metrics: Mapping[str, Any]) -> None:
    """The measures in metrics.json, of a run or of scored images, and what is doubtful about them."""
    from kintsugi.pipeline.analysis.report import about_baselines, against, count, interval, number, numbers

    table = Table(title=metrics["title"], title_justify="left")
    for column in ("measure", "mean", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name, value in numbers(metrics).items():
        what = f"{name}, of the set" if name in metrics["sets"] else name
        table.add_row(
            what, number(value["value"]), interval(value.get("low"), value.get("high")), count(value)
        )
    console.print(table)
    if (beside := against(metrics)).rows:
        console.print(to_rich(beside))
    for line in about_baselines(metrics):
        errors.print(line, style="yellow")
    for name, value in metrics["sets"].items():
        for warning in value["warnings"]:
            errors.print(f"{name}: {warning}", style="yellow")


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
    for path, what in summary.damaged.items():
        errors.print(f"damaged, doing what is readable: {path}: {what}", style="yellow")
    for path in summary.empty:
        errors.print(f"holds no samples: {path}", style="yellow")
    for note in summary.notes:
        errors.print(note, style="yellow")
    first = [(f"{shard}: {name}", why) for shard, name, why in summary.left_out_first]
    show_left_out(summary.left_out, first, "files in the shards are no samples")


def show_left_out(count: int, first: list[tuple[str, str]], what: str) -> None:
    if count:
        errors.print(f"{what}: {count}", style="yellow")
    for name, why in first[:NAMED]:
        errors.print(f"  {name}: {why}", style="yellow")
    if count > NAMED:
        errors.print("  …", style="yellow")
