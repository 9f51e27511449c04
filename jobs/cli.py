"""The command line: `kintsugi --help`."""

from __future__ import annotations

import io
import logging
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from kintsugi.errors import JobError, redacted
from kintsugi.jobs.compare import compare
from kintsugi.jobs.files import closest, describe, load_job, located, ready_jobs
from kintsugi.jobs.query import query
from kintsugi.jobs.score import score
from kintsugi.jobs.stats import stats
from kintsugi.jobs.sweep import sweep

if TYPE_CHECKING:  # imported where they are used, so that --help is quick
    from kintsugi.pipeline.data.units import PlanSummary, Unit
    from kintsugi.pipeline.execution.executors import Live
    from kintsugi.pipeline.execution.run import Progress, Run
    from kintsugi.pipeline.execution.verify import Finding
    from kintsugi.pipeline.job import Job
    from kintsugi.pipeline.storage import Location
    from kintsugi.priors import Examined

REASONS = 10  # of failures at most that are shown
EXIT_CANNOT_RUN, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 2, 130
NAMED = 10  # files that are left out


class Terminal(Console):
    """Prints names and errors, also from files of others: no markup, no secrets, nothing that steers it."""

    def __init__(self, *, stderr: bool = False):
        super().__init__(stderr=stderr, markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        if all(isinstance(it, str) for it in objects):  # lines, whose paths can be copied whole
            objects, options = tuple(map(redacted, objects)), {"soft_wrap": True} | options
        super().print(*objects, **options)


console, errors = Terminal(), Terminal(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

TOPICS = ("fields", "jobs", "operators", "samplers", "priors", "metrics")  # of `kintsugi list`


def beginning(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For the completion of a shell: those of the known names that begin so."""
    return lambda incomplete: [name for name in known() if name.startswith(incomplete)]


JobArgument = Annotated[
    str,
    typer.Argument(
        help="A job file, or the name of a ready job (`kintsugi list jobs`).",
        autocompletion=beginning(ready_jobs),
    ),
]
RunArgument = Annotated[str, typer.Argument(help="A run directory, a path or a URL.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field of the job, such as sampler.w=8 or sampler='{name: ddnm, steps: 5}'; text is "
        "taken as it is; repeatable.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="auto or ray://HOST:10001: an existing Ray cluster. local: a Ray of its own (the default). "
        "none: no Ray, in this process.",
    ),
]


def show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"kintsugi {version('kintsugi')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and end.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Restore image datasets with diffusion and flow priors, and measure how well it was done."""


@app.command()
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
    from kintsugi.pipeline.execution.run import Progress, open_or_plan
    from kintsugi.pipeline.storage import at, clear_temporaries

    loaded = load_job(job, sets or [], limit)
    if retry_failed and not (at(loaded.output) / "job.yaml").exists():
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


def write_restored(this: Run, shards: set[str] | None = None) -> None:
    """Have in restored/ what is done, of some shards or all."""
    from kintsugi.pipeline.execution import restored as export

    if this.job.from_measurements:
        with console.status("writing the restored shards"):
            for target in export.write_restored(this, shards):
                console.print(f"restored: {target}")


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


def finish(report: Location) -> dict[str, Any]:
    """Say what came out."""
    import json

    metrics: dict[str, Any] = json.loads((report.parent / "metrics.json").read_text())
    show_results(metrics)
    samples = metrics["samples"]
    show_reasons(metrics["failures"]["reasons"], samples["done"])
    console.print(f"{samples['ok']} restored, {samples['failed']} failed · {report}")
    return metrics


def show_results(metrics: Mapping[str, Any]) -> None:
    """The measures in metrics.json, of a run or of scored images, and what is doubtful about them."""
    from kintsugi.jobs.compare import shown
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
        console.print(shown(beside))
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


@app.command()
def plan(
    job: JobArgument,
    sets: SetOption = None,
    limit: LimitOption = None,
    timing: Annotated[bool, typer.Option(help="Time one batch here for the estimate.")] = True,
) -> None:
    """Say what a job would do, and how long it would take, without doing it.

    Example:

        kintsugi plan imagenet-sr4 --set data.shards='data/*.tar'
    """
    from kintsugi.device import default_device
    from kintsugi.jobs.estimate import seconds_per_image
    from kintsugi.pipeline.execution import run as runs

    loaded = load_job(job, sets or [], limit)
    with console.status("reading the prior"):
        prior = runs.examine_prior(loaded)
    with console.status("reading shards") as status, tempfile.TemporaryDirectory() as folder:
        summary = runs.plan(
            loaded,
            Path(folder),
            lambda unit: status.update(f"reading shards: {unit.first + unit.samples} samples"),
        )
    show_shard_warnings(summary)
    there, another = what_is_there(loaded, prior)
    compute = loaded.compute
    table = Table(show_header=False)
    table.add_row("shards", str(len(summary.shards)))
    table.add_row("samples", str(summary.samples))
    table.add_row("units", f"{summary.units} of at most {compute.unit_size} samples")
    table.add_row("prior", f"{prior.title}\nSHA-256 {prior.sha256}")
    table.add_row("batch", f"{compute.batch_size} images, {compute.precision}")
    table.add_row("output", f"{loaded.output}\n{there}")
    if timing:
        device = default_device()
        with console.status("timing one batch"):
            seconds = seconds_per_image(loaded, device)
        where = "one GPU" if device == "cuda" else f"{compute.cpus_per_actor} cores"
        hours = summary.samples * seconds / 3600
        if loaded.from_measurements:
            side = loaded.data.size
            table.add_row("time", f"{seconds:.3f} s per tile of {side}x{side} on {where}")
        else:
            row = f"{seconds:.3f} s per image on {where}, {hours:.2f} hours for all on one actor"
            table.add_row("time", row)
    console.print(table)
    if another is not None:
        raise another


def what_is_there(job: Job, prior: Examined) -> tuple[str, JobError | None]:
    """What is in a job's output, in words, and the error with which `run` would refuse it, if it would."""
    from kintsugi.pipeline.execution.run import Run, refuse_another, with_absolute_shards
    from kintsugi.pipeline.storage import at

    folder = at(job.output)
    if not (folder / "job.yaml").exists():
        return "to be made", None
    try:
        this = Run.open(folder)
        refuse_another(this, with_absolute_shards(job), prior)
    except JobError as error:
        return "taken: see below", error
    done = this.progress()
    return f"holds this run: {done.rows} of {this.summary.samples} samples are done", None


@app.command()
def status(run: RunArgument) -> None:
    """Say how far a run is, from its directory alone.

    Example:

        kintsugi status runs/quickstart
    """
    from dataclasses import asdict

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


@app.command()
def report(run: RunArgument) -> None:
    """Write the report of a run again, complete or not.

    Example:

        kintsugi report runs/quickstart
    """
    from kintsugi.pipeline.analysis.report import write_report

    finish(write_report(open_run(run)))


@app.command()
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


def open_run(run: str) -> Run:
    from kintsugi.pipeline.execution.run import Run

    return Run.open(located("RUN", run))


@app.command("list")
def list_(
    topic: Annotated[
        str, typer.Argument(help=f"{', '.join(TOPICS)}.", autocompletion=beginning(lambda: TOPICS))
    ],
) -> None:
    """List what a job file can name, with parameters and defaults.

    Example:

        kintsugi list operators
    """
    import inspect

    from kintsugi import operators, priors, samplers
    from kintsugi.jobs.fields import fields
    from kintsugi.pipeline.metrics import IMAGE, SETS
    from kintsugi.registry import parameters

    registries = {
        "operators": operators.REGISTRY,
        "samplers": samplers.REGISTRY,
        "priors": priors.REGISTRY,
    }
    table = Table(show_lines=True)
    if topic == "fields":
        for column in ("field", "type", "default", "what it is"):
            table.add_column(column, no_wrap=column in ("field", "name"))  # to be copied whole
        for field in fields():
            table.add_row(field.name, field.type, field.default, field.about)
    elif topic == "jobs":
        table.add_column("job", no_wrap=True)
        table.add_column("what it does")
        for name, path in ready_jobs().items():
            table.add_row(name, describe(path))
    elif topic == "metrics":
        for column in ("name", "of", "better", "what it is"):
            table.add_column(column, no_wrap=column in ("field", "name"))  # to be copied whole
        for of, metrics in (("image", IMAGE), ("set", SETS)):
            for name, metric in metrics.items():
                what = "\n\n".join(metric.about.split("\n", 1))
                table.add_row(name, of, {"one": "near 1", None: ""}.get(metric.better, metric.better), what)
    elif topic in registries:
        for column in ("name", "parameters", "what it is"):
            table.add_column(column, no_wrap=column in ("field", "name"))  # to be copied whole
        for name, factory in registries[topic].items():
            settings = [p.name if p.required else f"{p.name}={p.default}" for p in parameters(factory)]
            what, _, _ = (inspect.getdoc(factory) or "").partition("\n\nRaises:")
            table.add_row(name, "\n".join(settings), reflow(what))
    else:
        meant = closest(topic, TOPICS)
        raise JobError(f"list: no {topic!r}; {f'{meant} ' if meant else ''}choose from {', '.join(TOPICS)}")
    console.print(table)
    if topic == "samplers":
        *_, shared = (samplers.__doc__ or "").split("\n\n")
        console.print(reflow(shared))


def reflow(text: str) -> str:
    """Paragraphs without the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@app.command()
def shard(
    source: Annotated[
        Path, typer.Argument(help="Images: a folder with its subfolders, a zip, or an LMDB such as LSUN's.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder for the shards of this source.")],
    size: Annotated[
        int | None, typer.Option(min=8, help="Resize to this side and store as PNG; else as it is.")
    ] = None,
    filter: Annotated[
        Literal["bicubic", "box", "lanczos"], typer.Option(help="PIL's, antialiased.")
    ] = "bicubic",
    crop: Annotated[
        Literal["center", "adm", "none"],
        typer.Option(
            help="center: shorter side to the size, then the central square. adm: halved repeatedly before, "
            "as guided-diffusion does. none: shorter side to the size, the whole picture."
        ),
    ] = "center",
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="folders|FILE",
            help="Class labels: the first folders, in sorted order; or lines NAME LABEL.",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option("--list", metavar="FILE", help="Only these, in this order: lines NAME or NAME LABEL."),
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1000,
) -> None:
    """Make WebDataset shards of images, with a manifest and checksums; keys are the images' paths.

    The same command again continues after an interruption. In a file, NAME is a path in SOURCE, or the end of
    one if only one image has it, such as the file name; with or without suffix.

    Examples:

        kintsugi shard photos/ shards/ --size 256

        kintsugi shard photos.zip shards/ --labels folders

        kintsugi shard church_outdoor_val_lmdb/ shards/ --size 256 --filter box

        kintsugi shard ILSVRC2012/val/ shards/ --size 256 --crop adm --list sr3_top1k.txt
    """
    from contextlib import ExitStack

    from kintsugi.jobs.display import progress_bar
    from kintsugi.pipeline.data.make import MANIFEST, make_shards
    from kintsugi.pipeline.data.make.choosing import Options

    advance = None
    with ExitStack() as stack:

        def on_image(done: int, total: int) -> None:
            nonlocal advance
            if advance is not None:
                advance()
                return
            if done:
                console.print(f"{done} of {total} images were done before")
            advance = stack.enter_context(progress_bar(console, total - done, "images"))

        try:
            options = Options(size, filter, crop, per_shard, labels, names)
            result = make_shards(source, out, options, on_image)
        except KeyboardInterrupt:
            errors.print("interrupted: shards that are finished are kept; the same command continues")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except OSError as error:
            raise JobError(f"{error}; the same command continues when this is mended") from error
    for name, reason in result.left_out[:20]:
        errors.print(f"left out {name}: {reason}", style="yellow")
    if len(result.left_out) > 20:
        errors.print(f"and {len(result.left_out) - 20} more: see {out / MANIFEST}", style="yellow")
    show_left_out(len(result.others), result.others, f"no images by their names, listed in {out / MANIFEST}")
    console.print(f"{result.images} images in {len(result.shards)} shards in {out}")
    if result.left_out:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def submit(
    job: Annotated[
        str | None, typer.Argument(help="A job file, or the name of a ready job (`kintsugi list jobs`).")
    ] = None,
    sets: SetOption = None,
    cluster: Annotated[
        Path | None, typer.Option(help="The cluster.yaml that `ray up` started; its head is asked.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The head's job server, for instance http://127.0.0.1:8265.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends, and fetch its report.")] = True,
    fetch: Annotated[
        Path | None, typer.Option(help="The folder for the report. [default: reports/ID]")
    ] = None,
    follow: Annotated[
        str | None, typer.Option(metavar="ID", help="Instead: follow a job that was sent before.")
    ] = None,
    stop: Annotated[
        str | None, typer.Option(metavar="ID", help="Instead: stop a job; it finishes the units in hand.")
    ] = None,
    pack: Annotated[
        str | None,
        typer.Option(metavar="ZIP", help="Instead: write what would be sent, for a RayJob on Kubernetes."),
    ] = None,
) -> None:
    """Send a job, with the code that is here, to a running cluster through Ray Jobs.

    The output must be storage that all nodes share. Ctrl-C leaves the job running.

    Examples:

        kintsugi submit imagenet-sr4 --cluster cluster.yaml --set output=/shared/runs/sr4

        kintsugi submit job.yaml --address http://127.0.0.1:8265 --no-wait

        kintsugi submit --follow raysubmit_AbCdEf --cluster cluster.yaml
    """
    from kintsugi.jobs import submit as cluster_jobs

    if [job, follow, stop].count(None) != 2:
        raise JobError("submit: name a job, or one that was sent before by --follow ID or --stop ID")
    loaded = cluster_jobs.load_for_cluster(job, sets or []) if job is not None else None
    if loaded is not None and pack is not None:
        cluster_jobs.pack(loaded, pack)
        return
    with cluster_jobs.connected(cluster, address) as client:
        if stop is not None:
            cluster_jobs.stop(client, stop)
            return
        if loaded is not None:
            follow = cluster_jobs.submit_job(client, loaded)
            console.print(f"submitted {follow}")
        assert follow is not None
        if not wait:
            return
        place = f"--address {address}" if cluster is None else f"--cluster {cluster}"
        code = cluster_jobs.follow(client, follow, place, console)
        if code in (0, EXIT_SOME_FAILED):
            try:
                cluster_jobs.fetch(client, follow, fetch or Path("reports", follow), console)
            except JobError as error:
                errors.print(str(error), style="yellow")
    raise typer.Exit(code)


app.command()(score)
app.command()(stats)
app.command()(sweep)
app.command()(compare)
app.command()(query)


def main() -> None:
    """The `kintsugi` command: clear errors instead of tracebacks for what a user can mend."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than are written here
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, also while nothing is in hand
    try:
        # Not standalone: typer would exit with 2 for a wrong option, which here means failed samples.
        sys.exit(app(standalone_mode=False))
    except JobError as error:
        fail(str(error))
    except TyperException as error:
        fail(error.format_message())
    except OSError as error:
        fail(f"storage: {error}")
    except (KeyboardInterrupt, typer.Abort):
        errors.print("interrupted; the same command continues")
        sys.exit(EXIT_INTERRUPTED)


def fail(message: str) -> NoReturn:
    errors.print(f"error: {message}", style="red")
    sys.exit(EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
