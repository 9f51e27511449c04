"""The runs of a suite: planning them, tuning, doing what is left of all in one session, and the page."""

import glob
from collections.abc import Container, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby

import torch
from rich.table import Table

from kintsugi.device import default_device
from kintsugi.errors import JobError
from kintsugi.jobs.display import duration, progress_bar
from kintsugi.jobs.execution import execute, show_shard_warnings, write_restored
from kintsugi.jobs.files import located
from kintsugi.jobs.suite_file import ACTOR, Cell, Suite, Tuning, groups
from kintsugi.jobs.terminal import console, errors
from kintsugi.jobs.trials import Base, make_trials
from kintsugi.pipeline.analysis.query import kept_rows
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.analysis.suite import Entry, choose_measures, summarize
from kintsugi.pipeline.analysis.suite_page import write_suite
from kintsugi.pipeline.analysis.sweep import Measured, Outcome, Trial, result_of
from kintsugi.pipeline.analysis.sweep_settings import Settings, grid, name_of
from kintsugi.pipeline.analysis.sweep_tables import trials_csv
from kintsugi.pipeline.execution import estimate
from kintsugi.pipeline.execution.directory import JOB
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Progress, Run, together
from kintsugi.pipeline.execution.stage import Loaded, prior_of
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.files import matches
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import clear_temporaries, publish_bytes

Names = tuple[str, str]
"""Of a task and a method, as folders."""
LONGEST_NAME = 255  # bytes of a folder's name on common file systems


@dataclass(frozen=True)
class Session:
    """How the runs of a suite are done.

    Attributes:
        address: as of `execute`. retry_failed: of runs that are there, only samples that failed.
        ray: holds the connection, once there is anything to be done.
    """

    address: str | None
    retry_failed: bool
    ray: ExitStack

    def execute(self, parts: Sequence[Part], before: Progress) -> None:
        """Do parts of runs, if there are any; raises as `execute`."""
        if not parts:
            return
        if self.address != "none":
            from kintsugi.pipeline.execution.cluster import connected

            self.ray.enter_context(connected(self.address))  # which leaves one that is there as it is
        execute(parts, self.address, before)


def folder_of(suite: Suite) -> Location:
    """Where a suite is."""
    return located("output", suite.file.output)


def check_all(suite: Suite) -> list[Job]:
    """Every job as it would be evaluated, with the first of the settings to choose from.

    Raises:
        JobError: one cannot be, or a trial of its tuning, by its points; its folder's name is too long; two
            are the same; their actors are not alike; or the file asks for a measure or method that there is
            not.
    """
    refuse_long_names(suite)
    trials_of(suite)
    checked = [
        one
        for names, cells in groups(suite)
        for one in evaluated(suite, names, cells, grid(cells[0].grid)[0])
    ]
    jobs = [job for _, job in checked]
    same: dict[str, Cell] = {}
    for cell, job in checked:
        for field in ACTOR:
            if getattr(job.compute, field) != getattr(jobs[0].compute, field):
                raise JobError(f"compute.{field}: the jobs of a suite share their actors; set it in base")
        first = same.setdefault(f"{job.model_dump_json(exclude={'output'})} {cell.grid}", cell)
        if first is not cell:
            raise JobError(
                f"{suite.where(first)} and {' '.join(cell.points.values())} are the same job: where two axes "
                "set the same field, such as sampler and sampler.steps, the later one counts"
            )
    check_measures(suite, jobs[0].metrics)
    return jobs


def refuse_long_names(suite: Suite) -> None:
    """Raise a JobError for points whose names, joined, are too long for a folder."""
    for names, cells in groups(suite):
        for cell in cells:
            task, method = names
            places = [task, *(place_of(suite, cell, method, chosen) for chosen in grid(cell.grid))]
            longest = max(places, key=lambda place: len(place.encode()))
            if (length := len(longest.encode())) > LONGEST_NAME:
                axes = suite.task if longest == task else (*suite.method, *suite.seed)
                axis = max(axes, key=lambda axis: len(cell.points[axis].encode()))
                raise JobError(
                    f"{suite.source}: axes.{axis}.{cell.points[axis]}: the folder {longest} would have a "
                    f"name of {length} bytes, and {LONGEST_NAME} are the most; shorten its points' names"
                )


def check_measures(suite: Suite, metrics: Sequence[str]) -> None:
    """Raise a JobError for what the file compares by and no job has, before hours go by."""
    methods = dict.fromkeys(suite.name(cell, suite.method) for cell in suite.cells)
    against = suite.file.page.against
    if against is not None and against not in methods:
        raise JobError(
            f"{suite.source}: page.against: no method {against!r}; choose from {', '.join(methods)}"
        )
    try:
        choose_measures([metrics], suite.wanted)
    except JobError as error:
        raise JobError(f"{suite.source}: page.{error}") from error
    for field, name in deciding(suite.file.tune).items() if suite.file.tune else ():
        try:
            Measured(name)
        except JobError as error:
            raise JobError(f"{suite.source}: tune.{field}: {str(error).removeprefix('--by: ')}") from error


def deciding(tuning: Tuning) -> dict[str, str]:
    """The metrics that decide among settings, by field."""
    return {"by": tuning.by, "then": tuning.then or tuning.by}


def evaluated(suite: Suite, names: Names, cells: Iterable[Cell], chosen: Settings) -> list[tuple[Cell, Job]]:
    """The jobs of a method in a task, one for each seed, with the settings that were chosen."""
    task, method = names
    found = []
    for cell in cells:
        output = str(folder_of(suite) / "runs" / task / place_of(suite, cell, method, chosen))
        found.append((cell, suite.job(cell, output, part_of(suite, cell, "evaluate") | chosen)[1]))
    return found


def place_of(suite: Suite, cell: Cell, method: str, chosen: Settings) -> str:
    """The folder of a run in that of its task."""
    seed = [cell.points[axis] for axis in suite.seed]
    return ",".join([method, *seed, *([name_of(chosen)] if chosen else [])])


def part_of(suite: Suite, cell: Cell, part: str) -> Settings:
    """The field that sets images for tuning apart, "tune", from the others, "evaluate".

    There is none where other data is for tuning.
    """
    if (tuning := suite.file.tune) is None:
        return {}
    here, there = (suite.fields(cell, fields).get("data") for fields in ({}, tuning.fields))
    if not (isinstance(here, dict) and isinstance(there, dict)):
        return {}  # which is no job, and is said so
    if here.get("shards") != there.get("shards"):
        return {}
    subset = there.get("subset") or {}
    return {"data.subset": subset | {"part": part} if isinstance(subset, dict) else subset}


def run_all(suite: Suite, address: str | None, retry_failed: bool = False) -> list[Entry]:
    """Tune and evaluate, in one session of Ray, if there is work; raises a typer.Exit if interrupted.

    Args:
        retry_failed: only samples that failed, of trials and runs that are there.
    """
    with ExitStack() as ray:
        session = Session(address, retry_failed, ray)
        chosen = tune(suite, session)
        jobs = [
            (cell, job)
            for names, cells in groups(suite)
            for cell, job in evaluated(suite, names, cells, chosen.get(names, {}))
        ]
        runs = do_jobs([job for _, job in jobs], session, "runs")
    if not any(runs):
        raise JobError(f"--retry-failed: there is no run in {folder_of(suite)}; without it they are begun")
    return [
        Entry(suite.name(cell, suite.task), suite.name(cell, suite.method), run)
        for (cell, _), run in zip(jobs, runs, strict=True)
    ]


def do_jobs(jobs: Sequence[Job], session: Session, what: str) -> list[Run | None]:
    """Begin the runs of jobs or continue them, all together; raises as `execute`.

    Where only failed samples are done again, no run is begun: there is None for those that are not there.
    """
    retry, runs = session.retry_failed, list[Run | None]()
    with console.status("") as status:
        for job in jobs:
            status.update(f"reading the prior and the shards: {what} {len(runs) + 1} of {len(jobs)}")
            runs.append(None if retry and not (job.folder / JOB).exists() else open_or_plan(job))
    there = [run for run in runs if run is not None]
    for _, alike in groupby(there, key=lambda run: run.summary):
        show_shard_warnings(next(alike).summary)
    found = [(run, *run.to_do(retry)) for run in there]
    parts = [Part(run, units, failed_only=retry) for run, _, units in found if units]
    before = together([Progress(0, 0, 0), *(progress for _, progress, _ in found)])
    samples = sum(run.summary.samples for run in there)
    done = f", {before.rows} done before" if before.rows else ""
    console.print(f"{len(there)} {what}, {len(parts)} of them to be done: {samples} samples{done}")
    if retry:
        console.print(f"{before.failed} failed samples again")
    session.execute(parts, Progress(0, 0, 0) if retry else before)
    left = sum(run is None or any(True for _ in run.outstanding()) for run in runs) if retry else 0
    if left:
        errors.print(f"{left} {what} are still to be done: the same command without --retry-failed")
    for run in there:  # also of those that were done: the last end may have been before this
        clear_temporaries(run.folder)
        write_restored(run)
    return runs


def trials_of(suite: Suite) -> dict[Names, list[Trial]]:
    """The trials of every method in every task that has settings to choose from.

    Raises:
        JobError: one cannot be; the message names the points, the settings and the field.
    """
    if (tuning := suite.file.tune) is None:
        return {}
    metrics = list(dict.fromkeys(deciding(tuning).values()))
    trials: dict[Names, list[Trial]] = {}
    for names, cells in groups(suite):
        if cells[0].grid:
            task, method = names
            folder = folder_of(suite) / "tuning" / task / method
            images = tuning.fields | part_of(suite, cells[0], "tune")
            values, job = suite.job(cells[0], str(folder), images)
            where = f"{suite.where(cells[0])}, tune.grid"
            base = Base(values, where, job, folder, f"{where}:")
            trials[names] = make_trials(base, grid(cells[0].grid), tuning.images, metrics, images)
    return trials


def tune(suite: Suite, session: Session) -> dict[Names, Settings]:
    """The settings of every method in every task that has any to choose from, on images for tuning.

    Raises:
        JobError: trials are missing, and only failed samples are to be done again; or as `do_jobs`.
    """
    if (tuning := suite.file.tune) is None:
        return {}
    by, then = map(Measured, deciding(tuning).values())
    trials = trials_of(suite)
    jobs = [trial.job for of in trials.values() for trial in of]
    found = do_jobs(jobs, session, "trials") if jobs else []
    done = [run for run in found if run is not None]
    if len(done) < len(found) or (session.retry_failed and any(any(run.outstanding()) for run in done)):
        raise JobError(
            "--retry-failed: trials of the tuning are still to be done; the same command without it"
        )
    for few in sorted({run.summary.samples for run in done} - {tuning.images}):
        errors.print(
            f"{few} images for tuning, not {tuning.images}: raise data.subset.fraction", style="yellow"
        )
    runs = iter(done)
    chosen = {}
    for (task, method), of in trials.items():
        results = [result_of(next(runs), trial, by, then, tuning.images) for trial in of]
        order = sorted(range(len(results)), key=lambda place: (results[place].rank, place))
        outcome = Outcome(by, results, order, then, tuning.within)
        publish_bytes(folder_of(suite) / "tuning" / task / method / "sweep.csv", trials_csv(outcome).encode())
        chosen[task, method] = outcome.chosen.trial.settings
        for sentence in outcome.edges():
            errors.print(f"{task} {method}, at the edge: {sentence}", style="yellow")
    return chosen


def finish(suite: Suite, entries: Sequence[Entry]) -> int:
    """Write what reports are not there yet and the page; returns how many samples failed."""
    runs = [entry.run for entry in entries if entry.run is not None]
    others = others_in(folder_of(suite), {run.folder for run in runs})
    if others:
        errors.print(
            f"{len(others)} runs in its folder are none of the suite's, and take no part: {others[0]} …",
            style="yellow",
        )
    with progress_bar(console, len(runs), "reports") as advance:
        for run in runs:
            if kept_rows(run.folder) is None:
                write_report(run)
            advance()
    with console.status("comparing"):
        page = write_suite(summarize(entries, suite.wanted), entries, folder_of(suite))
    console.print(f"{len(runs)} runs · {page}")
    return sum(run.progress().failed for run in runs)


def others_in(folder: Location, known: Container[Location]) -> list[Location]:
    """Runs in a suite's folder that are not among those that are known."""
    jobs = matches(f"{glob.escape(str(folder))}/runs/*/*/{JOB}")
    return [job.parent for job in jobs if job.parent not in known]


def counted(job: Job) -> bool:
    """Whether a dry run counts the evaluations of a job: it runs no programs, and restored images are."""
    return not job.is_score and job.sampler["name"] != "external"


def show_plan(suite: Suite, jobs: Sequence[Job], gpus: int) -> None:
    """How many jobs, evaluations and hours a suite is, as far as none is done."""
    device, tuning = default_device(), suite.file.tune
    samples: dict[str, int] = {}
    each: dict[str, int] = {}
    loaded: dict[str, Loaded] = {}
    seconds: dict[str, float] = {}
    evaluations = total = 0.0
    images = 0
    with console.status("counting evaluations, and timing a batch"):
        for job in jobs:
            data = job.data.model_dump_json()
            if data not in samples:
                samples[data] = estimate.samples_of(job)
            images += samples[data]
            if not counted(job):
                continue
            network = str((job.prior, job.image_shape, job.compute.model_dump()))
            if network not in loaded:
                loaded[network] = prior_of(job, torch.device("cpu"))
            # Seeds and data of one size share them.
            restoring = str((network, job.degradation, job.sampler, job.restoration))
            if restoring not in each:
                each[restoring] = sum(estimate.evaluations(job, loaded[network]))
            if network not in seconds:
                seconds[network] = estimate.seconds_per_image(job, device) / max(each[restoring], 1)
            evaluations += samples[data] * each[restoring]
            total += samples[data] * each[restoring] * seconds[network]
    trials = sum(len(grid(cells[0].grid)) for _, cells in groups(suite) if cells[0].grid)
    table = Table(show_header=False)
    table.add_row(
        "tasks × methods",
        f"{len({n[0] for n, _ in groups(suite)})} × {len({n[1] for n, _ in groups(suite)})}",
    )
    table.add_row("runs", f"{len(jobs)}, {images} images")
    if tuning is not None:
        table.add_row("trials before", f"{trials}, of at most {tuning.images} images each")
    left_out = "; without restored images and programs" if not all(map(counted, jobs)) else ""
    table.add_row("network evaluations", f"{evaluations:,.0f}, forwards and VJPs, of the runs{left_out}")
    where = "one GPU" if device == "cuda" else f"{jobs[0].compute.cpus_per_actor} cores"
    table.add_row(
        "time",
        f"{duration(total)} on {where}" + (f", {duration(total / gpus)} on {gpus}" if gpus > 1 else ""),
    )
    table.add_row("output", str(folder_of(suite)))
    console.print(table)
