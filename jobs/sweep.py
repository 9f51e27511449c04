"""`kintsugi sweep`: which settings of a job are best, on images that the job is not evaluated on."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from kintsugi.errors import JobError
from kintsugi.jobs.files import absolute_files, assign, check, located, read_values, ready_jobs
from kintsugi.jobs.values import kinds_at, parse_setting, split

if TYPE_CHECKING:
    from kintsugi.pipeline.analysis.sweep import Choices, Measured, Outcome, Result, Settings, Trial
    from kintsugi.pipeline.execution.run import Run
    from kintsugi.pipeline.storage import Location

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COMPARED = ("data", "degradation", "seed", "metrics", "images", "reference", "published", "output")
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")


def sweep(
    job: Annotated[
        str,
        typer.Argument(
            help="A job file, or the name of a ready job (`kintsugi list jobs`).",
            autocompletion=lambda incomplete: [name for name in ready_jobs() if name.startswith(incomplete)],
        ),
    ],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="FIELD=VALUES",
            help="A field and its values: 5,10,15 or, with --random, a range -0.2..0.2 or 1..30:log; "
            "repeatable.",
        ),
    ],
    by: Annotated[str, typer.Option(help="The metric of single images that decides.")] = "psnr",
    within: Annotated[
        float, typer.Option(min=0, help="Trials whose mean is this near to the best one's are alike.")
    ] = 0.0,
    then: Annotated[
        str | None,
        typer.Option(metavar="METRIC", help="Decides among trials that are alike. [default: that of --by]"),
    ] = None,
    tune: Annotated[int, typer.Option(min=2, help="Images for tuning, at most.")] = 64,
    halve: Annotated[
        int,
        typer.Option(
            min=1, help="From rung to rung 1/N of the trials go on with N times the images; 1: all."
        ),
    ] = 2,
    random: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="N combinations at random, by the job's seed, not the whole grid."
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="The folder of the sweep, a path or URL. [default: the job's output-sweep]"),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job; repeatable."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="auto, ray://HOST:10001, local or none: as of `kintsugi run`."),
    ] = None,
) -> None:
    """Find the best settings of a job on images for tuning; the same command again does what is left.

    The images for tuning are a tenth of all (data.subset.fraction), chosen by a hash of their keys;
    best.yaml, the job with the best settings, evaluates only the others. Trials are runs in OUT/trials.

    Examples:

        kintsugi sweep quickstart --vary sampler.w=5,10,15,20 --set data.subset.fraction=0.5

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --vary sampler.lam=-0.2,0,0.2 --by lpips

        kintsugi sweep imagenet-sr4 --vary sampler.w=2,5,10,15,20 --within 0.3 --then spectrum_ratio --halve 1

        kintsugi sweep job.yaml --vary sampler.w=1..30:log --vary sampler.start=0.2..0.6 --random 20
    """
    from kintsugi.jobs.cli import EXIT_SOME_FAILED, console
    from kintsugi.pipeline.analysis.sweep import Measured, draw, name_of, write_csv
    from kintsugi.pipeline.job import Subset

    measured, second = Measured(by), Measured(then or by)
    values, source = read_values(job, sets or [])
    base = check(copy.deepcopy(values), source)
    if base.from_measurements:
        raise JobError("data.kind: a sweep compares with the truth, which measurements do not have")
    folder = located("--out", out or f"{base.output}-sweep")
    subset = base.data.subset or Subset()
    fields = {"part": "tune", "fraction": subset.fraction}
    batch = base.compute.batch_size
    for_tuning: Settings = {
        "data.subset": fields,
        "data.limit": tune,
        "metrics": image_metrics(base.metrics, by, second.name),
        "images": "none",
        # Small units, so that several actors have something to do and a rung is not much too large.
        "compute.unit_size": min(base.compute.unit_size, 8 if batch == "auto" else batch),
    }
    trials = []
    for settings in combinations(vary, random, base.seed):
        for field in settings:
            if field.split(".")[0] in COMPARED or overlap(field, "compute.unit_size"):
                raise JobError(
                    f"--vary {field}: trials are compared on the same images, measurements and noise, and "
                    "the sweep itself sets what is kept of them; change it for all trials by --set"
                )
        output = {"output": str(folder / "trials" / name_of(settings))}
        trials.append(make_trial(values, source, settings, for_tuning | output))
    outcome = climb(trials, measured, second, within, tune, halve, address, folder)
    show(outcome)
    write_csv(outcome, folder / "sweep.csv")
    draw(outcome, folder / "sweep.svg")
    evaluated = {"data.subset": {**fields, "part": "evaluate"}, "output": str(folder / "best")}
    write_best(outcome, values, source, evaluated, folder)
    console.print(f"kintsugi run {folder / 'best.yaml'}")
    if any(result.failed for result in outcome.results):
        raise typer.Exit(EXIT_SOME_FAILED)


def combinations(vary: list[str], random: int | None, seed: int) -> list[Settings]:
    """The settings that --vary and --random ask for.

    Raises:
        JobError: something that is no list or range, or a range without --random.
    """
    from kintsugi.pipeline.analysis.sweep import Range, grid, name_of, random_settings

    def distinct(found: list[Settings]) -> list[Settings]:
        return list({name_of(settings): settings for settings in found}.values())

    choices: dict[str, Choices] = {}
    for text in vary:
        field, found = parse_vary(text)
        if field in choices:
            raise JobError(f"--vary: {field} is there twice")
        choices[field] = found
    if random is not None:
        return distinct(random_settings(choices, random, seed))
    lists = {field: found for field, found in choices.items() if not isinstance(found, Range)}
    if missing := choices.keys() - lists.keys():
        raise JobError(
            f"--vary {', '.join(sorted(missing))}: a range has no grid; add --random N, or list its values"
        )
    return distinct(grid(lists))


def parse_vary(text: str) -> tuple[str, Choices]:
    """ "sampler.w=5,10" → ("sampler.w", [5, 10]); the values are as after --set, between commas."""
    from kintsugi.pipeline.analysis.sweep import Range
    from kintsugi.pipeline.job import Job

    field, _, written = text.partition("=")
    if not field or not written.strip():
        raise JobError(f"--vary {text!r}: expected key.path=value,value for instance sampler.w=5,10,15")
    if ends := RANGE.fullmatch(written.strip()):
        low, high, log = float(ends[1]), float(ends[2]), ends[3] is not None
        if low >= high or (log and low <= 0):
            raise JobError(f"--vary {text!r}: a range goes up" + (", from above 0 with :log" if log else ""))
        return field, Range(low, high, log)
    kinds = kinds_at(field.split("."), [Job])
    if re.search(r"\d\.\.[-.\d]", written) and str not in kinds:
        raise JobError(f"--vary {text!r}: a range stands alone, two numbers as in 1..30 or 1..30:log")
    return field, [parse_setting(part, f"--vary {text!r}", kinds) for part in split(written)]


def overlap(one: str, other: str) -> bool:
    """Whether a field is the other one or holds it: compute, compute.unit_size."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def image_metrics(metrics: list[str], *needed: str) -> list[str]:
    """Those of single images: a set of a few images is too small for the others."""
    from kintsugi.pipeline.metrics import IMAGE

    return list(dict.fromkeys([*(name for name in metrics if name in IMAGE), *needed]))


def make_trial(values: dict[str, Any], source: str, settings: Settings, rest: Settings) -> Trial:
    """The job of a trial, checked before anything runs."""
    from kintsugi.pipeline.analysis.sweep import Trial

    mine = copy.deepcopy(values)
    for field, value in {**rest, **settings}.items():
        assign(mine, field, copy.deepcopy(value), f"--vary {field}")
    listed = ", ".join(f"{field}={value}" for field, value in settings.items())
    return Trial(settings, check(mine, f"{source} with {listed}"))


def climb(
    trials: list[Trial],
    by: Measured,
    then: Measured,
    within: float,
    tune: int,
    halve: int,
    address: str | None,
    folder: Location,
) -> Outcome:
    """Take the trials from rung to rung.

    Raises:
        typer.Exit: interrupted.
    """
    from kintsugi.jobs.cli import console, errors, show_shard_warnings
    from kintsugi.pipeline.analysis.sweep import Outcome, result_of, rungs
    from kintsugi.pipeline.execution.executors import connected
    from kintsugi.pipeline.execution.run import open_or_plan

    @cache
    def run(number: int) -> Run:
        with console.status(f"reading the prior and the shards for {trials[number].name}"):
            return open_or_plan(trials[number].job)

    summary = run(0).summary
    show_shard_warnings(summary)
    if summary.samples < tune:
        errors.print(
            f"{summary.samples} images for tuning, not {tune}: raise data.subset.fraction", style="yellow"
        )
    ladder = rungs(len(trials), summary.samples, halve, trials[0].job.compute.unit_size)
    steps = ", then ".join(f"{rung.trials} on {rung.images} images" for rung in ladder)
    console.print(f"{folder}: {len(trials)} trials, {steps}")
    results: dict[int, Result] = {}
    alive = list(range(len(trials)))
    with nullcontext() if address == "none" else connected(address):  # one Ray for all trials
        for rung in ladder:
            alive = alive[: rung.trials]
            for number in alive:
                do_first(run(number), rung.images, address)
                results[number] = result_of(run(number), trials[number], by, then, rung.images)
            alive.sort(key=lambda number: (results[number].rank, number))
    return Outcome(by, [results[number] for number in range(len(trials))], alive, then, within)


def do_first(run: Run, images: int, address: str | None) -> None:
    """Do what is left of a trial's first images."""
    from kintsugi.jobs.cli import console, execute
    from kintsugi.pipeline.storage import clear_temporaries

    units = [unit for unit in run.outstanding() if unit.first < images]
    if units:
        console.print(f"{run.folder.name}: {images} images")
        execute(run, units, address, run.progress())
        clear_temporaries(run.folder)


def show(outcome: Outcome) -> None:
    """The table of trials, the best first, and what else there is to say."""
    from rich import box
    from rich.table import Table

    from kintsugi.jobs.cli import console, errors
    from kintsugi.pipeline.analysis.sweep import difference

    by, fields = outcome.by, list(outcome.best.trial.settings)
    short = [field.rpartition(".")[2] for field in fields]
    table = Table(
        title=f"{by.title}, with 95 % intervals; differences are paired",
        caption="★ chosen · ≈ cannot be told from the best"
        + (f", or within {outcome.within:g}" if outcome.within else "")
        + "".join(f" · {label}: no network" for label in outcome.without_network),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    heads = fields if len(set(short)) < len(short) else short
    then = [] if outcome.then == by else [outcome.then.title]
    for head in (*heads, "images", "mean", "from the best", *then, "s/image", ""):
        table.add_column(head, justify="right")

    def rank(place: int) -> tuple[int, float]:
        return outcome.results[place].failed, -by.sign * outcome.differences[place].mean

    def figures(result: Result) -> tuple[str, str]:
        low, high = result.interval
        mean = f"{result.mean:.4g} ({low:.4g}…{high:.4g})"
        if result is outcome.best:
            return mean, "best"
        differs = difference(result, outcome.best)
        return mean, f"{differs.mean:+.2g} ({differs.low:+.2g}…{differs.high:+.2g})"

    for place in sorted(range(len(outcome.results)), key=rank):
        result = outcome.results[place]
        table.add_row(
            *(str(value) for value in result.trial.settings.values()),
            str(len(result.values)) + (f" + {result.failed} failed" if result.failed else ""),
            *figures(result),
            *(f"{result.then:.3g}" for _ in then),
            f"{result.seconds:.2g}",
            "★" if result is outcome.chosen else "≈" if place in outcome.alike else "",
        )
    for label, result in outcome.without_network.items():
        table.add_row(label, *("" for _ in fields[1:]), str(len(result.values)), *figures(result))
    console.print(table)
    for sentence in outcome.edges():
        errors.print(f"at the edge: {sentence}", style="yellow")


def write_best(
    outcome: Outcome, values: dict[str, Any], source: str, rest: Settings, folder: Location
) -> None:
    """The job with the chosen settings, on the images that are not for tuning."""
    from kintsugi.pipeline import storage
    from kintsugi.pipeline.data import photographs as builtin
    from kintsugi.pipeline.data.shards import from_root

    best = copy.deepcopy(values)
    chosen, by = outcome.chosen, outcome.by
    for field, value in {**chosen.trial.settings, **rest}.items():
        assign(best, field, value, "best.yaml")
    if best["data"]["shards"] != builtin.SCIKIT_IMAGE:
        best["data"]["shards"] = from_root(best["data"]["shards"])
    best = absolute_files(best)
    low, high = chosen.interval
    listed = ", ".join(f"{field} = {value}" for field, value in chosen.trial.settings.items())
    beside = outcome.without_network.items()
    others = len(outcome.alike) - 1
    near = f", or are within {outcome.within:g}" if outcome.within else ""
    lines = [
        f"Chosen of {len(outcome.results)} trials of {source}: {listed}.",
        f"{by.title} {chosen.mean:.4g} ({low:.4g} … {high:.4g}, 95 %) on {len(chosen.values)} images for "
        f"tuning, seed {chosen.trial.job.seed}"
        + "".join(f"; {label}, without a network, {it.mean:.4g}" for label, it in beside)
        + ";",
        "those are none of the images that this job evaluates: data.subset.",
        f"Finalists that cannot be told from the best (paired 95 % interval){near}: {others}"
        + (f"; chosen is the cheapest, {chosen.evaluations} evaluations, then the best " if others else ".")
        + (f"{outcome.then.title}." if others else ""),
        *(f"At the edge: {sentence}." for sentence in outcome.edges()),
        f"All trials: {folder / 'sweep.csv'}, by `kintsugi sweep`.",
    ]
    with storage.publish(folder / "best.yaml") as temporary:
        comments = "".join(f"# {' '.join(line.split())}\n" for line in lines)
        temporary.write_text(comments + yaml.safe_dump(best, sort_keys=False, allow_unicode=True))
