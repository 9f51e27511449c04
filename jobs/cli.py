"""The command line: `kintsugi --help`."""

import logging
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from pipeline.job import JobError

EXIT_CANNOT_RUN, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 2, 130

console = Console()
errors = Console(stderr=True)
app = typer.Typer(
    help="Restore image datasets with diffusion and flow priors, and measure how well it was done.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

JobArgument = Annotated[
    str, typer.Argument(help="A job file, or the name of a ready job (`kintsugi list jobs`).")
]
RunArgument = Annotated[Path, typer.Argument(help="A run directory.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a field of the job; repeatable."),
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


@app.command()
def run(
    job: JobArgument,
    sets: SetOption = None,
    address: AddressOption = None,
    limit: LimitOption = None,
) -> None:
    """Run a job, or continue it: the same command again does what is left.

    Examples:

        kintsugi run quickstart

        kintsugi run imagenet-sr4 --set data.shards='data/imagenet-{0000..0049}.tar' --set sampler.steps=10

        kintsugi run job.yaml --address auto --limit 100
    """
    from jobs.display import Display
    from jobs.files import load_job
    from pipeline.executors import Live, in_process, on_ray
    from pipeline.report import write_report
    from pipeline.run import open_or_plan

    loaded = load_job(job, sets or [], limit)
    with console.status("reading the prior and the shards") as status:
        this = open_or_plan(
            loaded, lambda unit: status.update(f"reading shards: {unit.first + unit.samples} samples")
        )
    show_shard_warnings(this.summary.damaged, this.summary.empty)
    before = this.progress()
    console.print(
        f"{this.folder}: {this.summary.samples} samples in {this.summary.units} units"
        + (f", {before.rows} samples done before" if before.rows else ""),
        highlight=False,
    )
    if before.units < this.summary.units:
        live = Live()
        units = this.outstanding()
        if address == "none":
            commits = in_process(loaded, this.folder, units, live)
        else:
            commits = on_ray(loaded, this.folder, units, live, address)
        display = Display(console, this.summary.samples, before, live)
        try:
            with display.running():
                for commit in commits:
                    display.add(commit)
        except KeyboardInterrupt:
            errors.print(
                f"interrupted: {display.done} of {this.summary.samples} samples are committed; "
                "the same command continues"
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except OSError as error:
            raise JobError(f"output: {error}; the same command continues when this is mended") from error
        finally:
            commits.close()
        this.clear_temporaries()
    metrics = finish(write_report(this))
    missing = metrics["samples"]["planned"] - metrics["samples"]["done"]
    if missing:
        raise JobError(f"{missing} samples have no valid commit record; run the same command again")
    if metrics["samples"]["failed"]:
        raise typer.Exit(EXIT_SOME_FAILED)


def finish(report: Path) -> dict[str, Any]:
    """Say what came out."""
    import json

    from pipeline.report import number

    metrics: dict[str, Any] = json.loads((report.parent / "metrics.json").read_text())
    samples = metrics["samples"]
    table = Table(title=metrics["title"], title_justify="left")
    for column in ("measure", "mean", "95 % interval", "n"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for name, value in metrics["metrics"].items():
        mean, low, high = (number(value[part]) for part in ("mean", "low", "high"))
        table.add_row(name, mean, f"{low} … {high}", str(value["n"]))
    console.print(table)
    console.print(f"{samples['ok']} restored, {samples['failed']} failed · {report}", highlight=False)
    return metrics


def show_shard_warnings(damaged: dict[str, str], empty: list[str]) -> None:
    for path, what in damaged.items():
        errors.print(f"damaged, doing what is readable: {path}: {what}", style="yellow", markup=False)
    for path in empty:
        errors.print(f"holds no samples: {path}", style="yellow", markup=False)


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
    from jobs.estimate import seconds_per_image
    from jobs.files import load_job
    from pipeline import run as runs
    from pipeline.executors import default_device

    loaded = load_job(job, sets or [], limit)
    with console.status("reading the prior"):
        prior = runs.examine_prior(loaded)
    with console.status("reading shards"), tempfile.TemporaryDirectory() as folder:
        summary = runs.plan(loaded, Path(folder), lambda unit: None)
    show_shard_warnings(summary.damaged, summary.empty)
    compute = loaded.compute
    table = Table(show_header=False)
    table.add_row("shards", str(len(summary.shards)))
    table.add_row("samples", str(summary.samples))
    table.add_row("units", f"{summary.units} of at most {compute.unit_size} samples")
    table.add_row("prior", f"{prior.title}\nSHA-256 {prior.sha256}")
    table.add_row("batch", f"{compute.batch_size} images, {compute.precision}")
    table.add_row("output", loaded.output)
    if timing:
        device = default_device()
        with console.status("timing one batch"):
            seconds = seconds_per_image(loaded, device)
        where = "one GPU" if device == "cuda" else f"{compute.cpus_per_actor} cores"
        hours = summary.samples * seconds / 3600
        table.add_row("time", f"{seconds:.3f} s per image on {where}, {hours:.2f} hours for all on one actor")
    console.print(table)


@app.command()
def status(run: RunArgument) -> None:
    """Say how far a run is, from its directory alone.

    Example:

        kintsugi status runs/quickstart
    """
    from pipeline.run import Run

    this = Run.open(run)
    done = this.progress()
    console.print(
        f"{done.rows} of {this.summary.samples} samples, {done.units} of {this.summary.units} units, "
        f"{done.failed} failed" + (" · complete" if done.units == this.summary.units else ""),
        highlight=False,
    )


@app.command()
def report(run: RunArgument) -> None:
    """Write the report of a run again, complete or not.

    Example:

        kintsugi report runs/quickstart
    """
    from pipeline.report import write_report
    from pipeline.run import Run

    finish(write_report(Run.open(run)))


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="samplers, operators, priors, metrics or jobs.")],
) -> None:
    """List what a job file can name, with parameters and defaults.

    Example:

        kintsugi list operators
    """
    import inspect

    import operators
    import priors
    import samplers
    from jobs.files import describe, ready_jobs
    from operators.registry import parameters
    from pipeline import score

    registries = {
        "operators": operators.REGISTRY,
        "samplers": samplers.REGISTRY,
        "priors": priors.REGISTRY,
        "metrics": score.REGISTRY,
    }
    table = Table(show_lines=True)
    if kind == "jobs":
        table.add_column("job")
        table.add_column("what it does")
        for name, path in ready_jobs().items():
            table.add_row(name, describe(path))
    elif kind in registries:
        for column in ("name", "parameters", "what it is"):
            table.add_column(column)
        for name, factory in registries[kind].items():
            settings = [p.name if p.required else f"{p.name}={p.default}" for p in parameters(factory)]
            what, _, _ = (inspect.getdoc(factory) or "").partition("\n\nRaises:")
            table.add_row(name, "\n".join(settings), reflow(what))
    else:
        raise JobError(f"list: no {kind!r}; choose from {', '.join(registries)}, jobs")
    console.print(table, markup=False)
    if kind == "samplers":
        *_, shared = (samplers.__doc__ or "").split("\n\n")
        console.print(reflow(shared), markup=False, highlight=False)


def reflow(text: str) -> str:
    """Paragraphs without the line breaks of the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


@app.command()
def shard(
    source: Annotated[
        Path, typer.Argument(help="A folder of images (searched recursively), or a zip of them.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder for the shards.")],
    size: Annotated[
        int | None, typer.Option(min=8, help="Resize and crop to this side; else as it is.")
    ] = None,
    per_shard: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1000,
) -> None:
    """Make WebDataset shards from a folder or a zip of images; keys are their paths.

    Example:

        kintsugi shard photos/ shards/ --size 256
    """
    from pipeline.sharding import make_shards

    with console.status("sharding") as state:
        result = make_shards(
            source, out, size, per_shard, lambda done, total: state.update(f"{done} of {total} images")
        )
    for name, error in result.failed:
        errors.print(f"left out {name}: {error}", style="yellow", markup=False)
    console.print(f"{result.written} images in {len(result.shards)} shards in {out}", highlight=False)
    if result.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def submit(
    job: JobArgument,
    sets: SetOption = None,
    cluster: Annotated[
        Path | None, typer.Option(help="The cluster.yaml that `ray up` started; its head is asked.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="The head's job server, for instance http://127.0.0.1:8265.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Follow the job's output until it ends.")] = True,
) -> None:
    """Send a job to a running cluster through Ray Jobs. The output must be storage all nodes share.

    Examples:

        kintsugi submit imagenet-sr4 --cluster cluster.yaml --set output=/shared/runs/sr4

        kintsugi submit job.yaml --address http://127.0.0.1:8265 --no-wait
    """
    from jobs.files import load_job
    from jobs.submit import submit_job

    raise typer.Exit(submit_job(load_job(job, sets or []), cluster, address, wait, console))


def main() -> None:
    """The `kintsugi` command: clear errors instead of tracebacks for what a user can mend."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        # Not standalone: typer would exit with 2 for a wrong option, which here means failed samples.
        sys.exit(app(standalone_mode=False))
    except JobError as error:
        fail(str(error))
    except TyperException as error:
        fail(error.format_message())
    except (KeyboardInterrupt, typer.Abort):
        errors.print("interrupted; the same command continues")
        sys.exit(EXIT_INTERRUPTED)


def fail(message: str) -> NoReturn:
    errors.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    sys.exit(EXIT_CANNOT_RUN)


if __name__ == "__main__":
    main()
