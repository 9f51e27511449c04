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
from kintsugi.jobs.execution import execute, show_shard_warnings
from kintsugi.jobs.files import absolute_files, assign, check, located, read_values
from kintsugi.jobs.options import JobArgument
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console, errors, to_rich
from kintsugi.jobs.values import kinds_at, parse_setting, split

if TYPE_CHECKING:
    from kintsugi.pipeline.analysis.sweep import Measured, Outcome, Result, Trial
    from kintsugi.pipeline.analysis.sweep_settings import Choices, Settings
    from kintsugi.pipeline.execution.run import Run
    from kintsugi.pipeline.job import Job
    from kintsugi.pipeline.storage.location import Location

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COMPARED = ("data", "degradation", "seed", "metrics", "images", "reference", "published", "output")
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")


VaryOption = Annotated[
    list[str],
    typer.Option(
        metavar="FIELD=VALUES",
        help="A field and its values: 5,10,15 or, with --random, a range -0.2..0.2 or 1..30:log; repeatable.",
    ),
]
ByOption = Annotated[str, typer.Option(help="The metric of single images that decides.")]
WithinOption = Annotated[
    float, typer.Option(min=0, help="Trials whose mean is this near to the best one's are alike.")
]
ThenOption = Annotated[
    str | None,
    typer.Option(metavar="METRIC", help="Decides among trials that are alike. [default: that of --by]"),
]
TuneOption = Annotated[int, typer.Option(min=2, help="Images for tuning, at most.")]
HalveOption = Annotated[
    int,
    typer.Option(min=1, help="From rung to rung 1/N of the trials go on with N times the images; 1: all."),
]
RandomOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="N combinations at random, by the job's seed, not the whole grid."),
]
OutOption = Annotated[
    str | None, typer.Option(help="The folder of the sweep, a path or URL. [default: the job's output-sweep]")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the job; repeatable."),
]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="auto, ray://HOST:10001, local or none: as of `kintsugi run`."),
]


def sweep(
    job: JobArgument,
    vary: VaryOption,
    by: ByOption = "psnr",
    within: WithinOption = 0.0,
    then: ThenOption = None,
    tune: TuneOption = 64,
    halve: HalveOption = 2,
    random: RandomOption = None,
    out: OutOption = None,
    sets: SetOption = None,
    address: AddressOption = None,
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
    from kintsugi.pipeline.analysis.sweep import Measured, Outcome

    deciding = Measured(by), Measured(then or by)
    values, source = read_values(job, sets or [])
    base = check(copy.deepcopy(values), source)
    if base.from_measurements:
        raise JobError("data.kind: a sweep compares with the truth, which measurements do not have")
    folder = located("--out", out or f"{base.output}-sweep")
    fixed = for_tuning(base, tune, [measure.name for measure in deciding])
    tried = combinations(vary, random, base.seed)
    trials = [make_trial(values, source, settings, fixed, folder) for settings in tried]
    results, last = run_trials(trials, deciding, tune, halve, address, folder)
    outcome = Outcome(deciding[0], results, last, deciding[1], within)
    show(outcome)
    write(outcome, best_values(outcome, values, base, folder), source, folder)
    console.print(f"kintsugi run {folder / 'best.yaml'}")
    if any(result.failed for result in outcome.results):
        raise typer.Exit(EXIT_SOME_FAILED)


def for_tuning(base: Job, tune: int, metrics: list[str]) -> Settings:
    """What all trials have: the images for tuning, few metrics and small units."""
    from kintsugi.pipeline.metrics import IMAGE

    batch = base.compute.batch_size
    return {
        "data.subset": subset_of(base, "tune"),
        "data.limit": tune,
        # Of single images: a set of a few images is too small for the others.
        "metrics": list(dict.fromkeys([*(name for name in base.metrics if name in IMAGE), *metrics])),
        "images": "none",
        # So that several actors have something to do and a rung is not much too large.
        "compute.unit_size": min(base.compute.unit_size, 8 if batch == "auto" else batch),
    }


def subset_of(base: Job, part: str) -> Settings:
    """Of the two parts of the job's images one."""
    from kintsugi.pipeline.job import Subset

    return {"part": part, "fraction": (base.data.subset or Subset()).fraction}


def combinations(vary: list[str], random: int | None, seed: int) -> list[Settings]:
    """The settings that --vary and --random ask for, each once.

    Raises:
        JobError: something that is no list or range, a range without --random, or a field that is the same
            in all trials.
    """
    from kintsugi.pipeline.analysis.sweep_settings import Range, grid, name_of, random_settings

    choices: dict[str, Choices] = {}
    for text in vary:
        field, found = parse_vary(text)
        if field in choices:
            raise JobError(f"--vary: {field} is there twice")
        choices[field] = found
    lists = {field: found for field, found in choices.items() if not isinstance(found, Range)}
    ranges = choices.keys() - lists.keys()
    if ranges and random is None:
        raise JobError(
            f"--vary {', '.join(sorted(ranges))}: a range has no grid; add --random N, or list its values"
        )
    for field in choices:
        if field.split(".")[0] in COMPARED or overlap(field, "compute.unit_size"):
            raise JobError(
                f"--vary {field}: trials are compared on the same images, measurements and noise, and "
                "the sweep itself sets what is kept of them; change it for all trials by --set"
            )
    found = grid(lists) if random is None else random_settings(choices, random, seed)
    return list({name_of(settings): settings for settings in found}.values())


def parse_vary(text: str) -> tuple[str, Choices]:
    """ "sampler.w=5,10" → ("sampler.w", [5, 10]); the values are as after --set, between commas."""
    from kintsugi.pipeline.analysis.sweep_settings import Range
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


def make_trial(
    values: dict[str, Any], source: str, settings: Settings, fixed: Settings, folder: Location
) -> Trial:
    """The job of a trial, checked before anything runs."""
    from kintsugi.pipeline.analysis.sweep import Trial
    from kintsugi.pipeline.analysis.sweep_settings import name_of

    output = str(folder / "trials" / name_of(settings))
    listed = ", ".join(f"{field}={value}" for field, value in settings.items())
    mine = with_fields(values, {**fixed, "output": output, **settings}, "--vary")
    return Trial(settings, check(mine, f"{source} with {listed}"))


def with_fields(values: dict[str, Any], fields: Settings, where: str) -> dict[str, Any]:
    """The fields of a job with others set; `where` they are from is for messages."""
    found = copy.deepcopy(values)
    for field, value in fields.items():
        assign(found, field, copy.deepcopy(value), f"{where} {field}")
    return found


def run_trials(
    trials: list[Trial],
    deciding: tuple[Measured, Measured],
    tune: int,
    halve: int,
    address: str | None,
    folder: Location,
) -> tuple[list[Result], list[int]]:
    """Take the trials from rung to rung, as `climb` says.

    Raises:
        typer.Exit: interrupted.
    """
    from kintsugi.pipeline.analysis.sweep import climb, result_of
    from kintsugi.pipeline.analysis.sweep_settings import rungs
    from kintsugi.pipeline.execution.executors import connected
    from kintsugi.pipeline.execution.open import open_or_plan

    @cache
    def run(number: int) -> Run:
        with console.status(f"reading the prior and the shards for {trials[number].name}"):
            return open_or_plan(trials[number].job)

    def do(number: int, images: int) -> Result:
        do_first(run(number), images, address)
        return result_of(run(number), trials[number], *deciding, images)

    summary = run(0).summary
    show_shard_warnings(summary)
    if summary.samples < tune:
        errors.print(
            f"{summary.samples} images for tuning, not {tune}: raise data.subset.fraction", style="yellow"
        )
    ladder = rungs(len(trials), summary.samples, halve, trials[0].job.compute.unit_size)
    steps = ", then ".join(f"{rung.trials} on {rung.images} images" for rung in ladder)
    console.print(f"{folder}: {len(trials)} trials, {steps}")
    with nullcontext() if address == "none" else connected(address):  # one Ray for all trials
        return climb(ladder, do)


def do_first(run: Run, images: int, address: str | None) -> None:
    """Do what is left of a trial's first images."""
    from kintsugi.pipeline.storage.publish import clear_temporaries

    units = [unit for unit in run.outstanding() if unit.first < images]
    if units:
        console.print(f"{run.folder.name}: {images} images")
        execute(run, units, address, run.progress())
        clear_temporaries(run.folder)


def show(outcome: Outcome) -> None:
    """The table of trials and what else there is to say."""
    from kintsugi.pipeline.analysis.sweep_tables import trials_table

    caption = "★ chosen · ≈ cannot be told from the best"
    caption += f", or within {outcome.within:g}" if outcome.within else ""
    caption += "".join(f" · {label}: no network" for label in outcome.without_network)
    title = f"{outcome.by.title}, with 95 % intervals; differences are paired"
    console.print(to_rich(trials_table(outcome), left=0, title=title, caption=caption))
    for sentence in outcome.edges():
        errors.print(f"at the edge: {sentence}", style="yellow")


def best_values(outcome: Outcome, values: dict[str, Any], base: Job, folder: Location) -> dict[str, Any]:
    """The job with the chosen settings, on the images that are not for tuning."""
    from kintsugi.pipeline.data.photographs import SCIKIT_IMAGE
    from kintsugi.pipeline.data.shards import from_root

    rest = {"data.subset": subset_of(base, "evaluate"), "output": str(folder / "best")}
    best = with_fields(values, {**outcome.chosen.trial.settings, **rest}, "best.yaml")
    if best["data"]["shards"] != SCIKIT_IMAGE:
        best["data"]["shards"] = from_root(best["data"]["shards"])
    return absolute_files(best)


def write(outcome: Outcome, best: dict[str, Any], source: str, folder: Location) -> None:
    """The table and the figure of the trials, and the best job, in the folder of the sweep."""
    from kintsugi.pipeline.analysis.figures import draw_trials
    from kintsugi.pipeline.analysis.sweep_tables import trials_csv, why_chosen
    from kintsugi.pipeline.storage.publish import publish

    comments = "".join(f"# {' '.join(line.split())}\n" for line in why_chosen(outcome, source, folder))
    job = comments + yaml.safe_dump(best, sort_keys=False, allow_unicode=True)
    contents = {
        "sweep.csv": trials_csv(outcome).encode(),
        "sweep.svg": draw_trials(outcome),
        "best.yaml": job.encode(),
    }
    for name, content in contents.items():
        with publish(folder / name) as temporary:
            temporary.write_bytes(content)
