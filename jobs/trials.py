"""The trials of a sweep: which jobs they are, running them, and writing what came out."""

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from kintsugi.errors import JobError
from kintsugi.jobs.execution import execute, show_shard_warnings
from kintsugi.jobs.files import absolute_files, assign, check, located, read_values
from kintsugi.jobs.terminal import console, errors, to_rich
from kintsugi.jobs.values import kinds_at, parse_setting, split
from kintsugi.pipeline.analysis.figures import draw_trials
from kintsugi.pipeline.analysis.sweep import Measured, Outcome, Result, Trial, climb, result_of
from kintsugi.pipeline.analysis.sweep_settings import (
    Choices,
    Range,
    Settings,
    grid,
    name_of,
    random_settings,
    rungs,
)
from kintsugi.pipeline.analysis.sweep_tables import trials_csv, trials_table
from kintsugi.pipeline.data.photographs import SCIKIT_IMAGE
from kintsugi.pipeline.data.shards import from_root
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run, together
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import IMAGE
from kintsugi.pipeline.parts import Subset
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import clear_temporaries, publish_bytes

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
COMPARED = ("data", "degradation", "seed", "metrics", "images", "reference", "published", "output")
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(:log)?")


@dataclass(frozen=True)
class Base:
    """The job of which settings are tried."""

    values: dict[str, Any]  # its fields as they are written
    source: str  # where
    job: Job
    folder: Location  # of the sweep
    tried: str = "--vary"  # where the settings are written

    def with_fields(self, fields: Settings, where: str) -> dict[str, Any]:
        """Its fields with others set; `where` these are from is for messages."""
        found = copy.deepcopy(self.values)
        for field, value in fields.items():
            assign(found, field, copy.deepcopy(value), f"{where} {field}")
        return found

    def subset(self, part: str) -> Settings:
        """One of the two parts of its images, "tune" or "evaluate"."""
        return {"part": part, "fraction": (self.job.data.subset or Subset()).fraction}


def read_base(name: str, sets: list[str], out: str | None, kind: str = "sweep") -> Base:
    """The job of whose images some are for tuning, as `files.load_job`; a JobError if it has no truth.

    Args:
        out: the folder; the job's output-KIND if none.
    """
    values, source = read_values(name, sets)
    job = check(copy.deepcopy(values), source)
    if job.is_score:
        raise JobError("data.kind: images are restored for tuning, and these are restored already")
    if not job.has_truth:
        raise JobError("data.kind: tuning compares with the truth, which measurements have by data.truth")
    return Base(values, source, job, located("--out", out or f"{job.output}-{kind}"))


def combinations(vary: list[str], random: int | None, seed: int) -> list[Settings]:
    """The settings that --vary and --random ask for, each once.

    Raises:
        JobError: something that is no list or range, a range without --random, or a field that is the same
            in all trials.
    """
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
        refuse_varied(field, f"--vary {field}")
    return grid(lists) if random is None else random_settings(choices, random, seed)


def refuse_varied(field: str, where: str) -> None:
    """Raise a JobError for a field that is the same in all trials; `where` begins its message."""
    if field.split(".")[0] in COMPARED or overlap(field, "compute.unit_size"):
        raise JobError(
            f"{where}: trials are compared on the same images, measurements and noise, and what is kept of "
            "them is set for all; change it for all trials by --set"
        )


def parse_vary(text: str) -> tuple[str, Choices]:
    """ "sampler.w=5,10" → ("sampler.w", [5, 10]); the values are as after --set, between commas."""
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


def make_trials(
    base: Base, tried: list[Settings], tune: int, metrics: list[str], images: Settings | None = None
) -> list[Trial]:
    """The jobs of the trials on at most `tune` images, each checked before any runs; `metrics` decide.

    Args:
        images: fields that say which images are for tuning, in place of those that set a part aside.
    """
    batch, unit_size = base.job.compute.batch_size, base.job.compute.unit_size
    fixed = {
        **(images or {"data.subset": base.subset("tune")}),
        "data.limit": tune,
        # Of single images: a set of a few images is too small for the others.
        "metrics": list(dict.fromkeys([*(name for name in base.job.metrics if name in IMAGE), *metrics])),
        "images": "restored" if base.job.from_measurements else "none",
        # So that several actors have something to do and a rung is not much too large.
        "compute.unit_size": min(unit_size, 8 if batch == "auto" else batch),
    }
    trials = []
    for settings in tried:
        output = str(base.folder / "trials" / name_of(settings))
        listed = ", ".join(f"{field}={value}" for field, value in settings.items())
        values = base.with_fields({**fixed, "output": output, **settings}, base.tried)
        trials.append(Trial(settings, check(values, f"{base.source} with {listed}")))
    return trials


def run_trials(
    trials: list[Trial],
    deciding: tuple[Measured, Measured],
    tune: int,
    halve: int,
    address: str | None,
    folder: Location,
) -> tuple[list[Result], list[int]]:
    """Take the trials from rung to rung, as `climb` says; raises a typer.Exit if interrupted."""

    @cache
    def run(number: int) -> Run:
        with console.status(f"reading the prior and the shards for {trials[number].name}"):
            return open_or_plan(trials[number].job)

    def do(numbers: Sequence[int], images: int) -> list[Result]:
        do_first([run(number) for number in numbers], images, address)
        return [result_of(run(number), trials[number], *deciding, images) for number in numbers]

    summary = run(0).summary
    show_shard_warnings(summary)
    if summary.samples < tune:
        errors.print(
            f"{summary.samples} images for tuning, not {tune}: raise data.subset.fraction", style="yellow"
        )
    ladder = rungs(len(trials), summary.samples, halve, trials[0].job.compute.unit_size)
    steps = ", then ".join(f"{rung.trials} on {rung.images} images" for rung in ladder)
    console.print(f"{folder}: {len(trials)} trials, {steps}")
    if address == "none":
        return climb(ladder, do)
    from kintsugi.pipeline.execution.cluster import connected

    with connected(address):  # one Ray for all trials
        return climb(ladder, do)


def do_first(runs: Sequence[Run], images: int, address: str | None) -> None:
    """Do what is left of some trials' first images, all together."""
    found = [(run, *run.to_do()) for run in runs]
    begun = [(run, progress, [u for u in units if u.first < images]) for run, progress, units in found]
    parts = [Part(run, units) for run, _, units in begun if units]
    if parts:
        console.print(f"{len(parts)} trials: {images} images each")
        execute(parts, address, together([progress for _, progress, units in begun if units]))
    for part in parts:
        clear_temporaries(part.run.folder)


def show(outcome: Outcome) -> None:
    """The table of trials and what else there is to say."""
    caption = "★ chosen · ≈ cannot be told from the best"
    caption += f", or within {outcome.within:g}" if outcome.within else ""
    caption += "".join(f" · {label}: no network" for label in outcome.without_network)
    title = f"{outcome.by.title}, with 95 % intervals; differences are paired"
    console.print(to_rich(trials_table(outcome), left=0, title=title, caption=caption))
    for sentence in outcome.edges():
        errors.print(f"at the edge: {sentence}", style="yellow")


def write(outcome: Outcome, folder: Location) -> None:
    """The table and the figure of the trials."""
    publish_bytes(folder / "sweep.csv", trials_csv(outcome).encode())
    publish_bytes(folder / "sweep.svg", draw_trials(outcome))


def write_best(settings: Settings, comments: list[str], base: Base) -> Location:
    """The job with these settings, under sentences of why these; returns its path."""
    head = "".join(f"# {' '.join(line.split())}\n" for line in comments)
    values = best_values(settings, base)
    job = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
    publish_bytes(base.folder / "best.yaml", (head + job).encode())
    return base.folder / "best.yaml"


def best_values(settings: Settings, base: Base) -> dict[str, Any]:
    """The fields of the job with these settings, on the images that are not for tuning."""
    rest = {"data.subset": base.subset("evaluate"), "output": str(base.folder / "best")}
    values = base.with_fields({**settings, **rest}, "best.yaml")
    if values["data"]["shards"] != SCIKIT_IMAGE:
        values["data"]["shards"] = from_root(values["data"]["shards"])
    return absolute_files(values)
