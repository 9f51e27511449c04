"""A suite: runs by task and method, their ranks in distortion and perception, and the tests of all tasks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import pyarrow as pa

from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.compare_rows import load
from kintsugi.pipeline.analysis.intervals import DRAWS, holm
from kintsugi.pipeline.analysis.measures import title
from kintsugi.pipeline.analysis.query import rows_of_run
from kintsugi.pipeline.analysis.suite_task import Axes, Task, summarize_task
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics import CLIPS, SETS

PERCEPTION = ("lpips", "spectrum_ratio", "swd")  # in the order of preference
DRAWS_OF_EACH = 100  # for each test: the least p is then 0.01 once it is corrected for all


@dataclass(frozen=True)
class Entry:
    """A run of a suite.

    Attributes:
        task: what was restored, such as "sr4 noisy"; entries of one task restored the same measurements.
        method: such as "ddnm 5". Several runs of a method in a task are seeds: the values of an image are
            averaged over them.
        run: None where there is none, and `why`.
    """

    task: str
    method: str
    run: Run | None
    why: str = "not begun"


@dataclass(frozen=True)
class Wanted:
    """What a suite's file asks of its page.

    Attributes:
        distortion: a metric of single images. perception: a metric of single images, or of the set; None: the
            first of LPIPS, spectrum_ratio and SWD that all runs have.
        family: the measures whose paired differences are tested; none: of these two those of single images.
        against: the method that others are compared with; None: the best in distortion of each task.
    """

    title: str
    distortion: str = "psnr"
    perception: str | None = None
    family: tuple[str, ...] = ()
    against: str | None = None


@dataclass(frozen=True)
class Listed:
    """A run of a suite, how far it is, and what it was made with.

    Attributes:
        samples, done, failed: images it has by its plan, with a row, and without a restoration.
        left_out: why it takes no part in ranks; nothing if it does.
    """

    task: str
    method: str
    folder: str
    samples: int
    done: int
    failed: int
    left_out: str
    config_hash: str
    prior: str
    prior_sha256: str
    job: dict[str, Any]


@dataclass(frozen=True)
class Overall:
    """A method over the tasks in which it has a rank in distortion: how many, its mean ranks, its fronts."""

    method: str
    tasks: int
    distortion: float
    perception: float | None
    by_evaluations: int
    by_seconds: int


@dataclass(frozen=True)
class Suite:
    """What `summarize` finds.

    Attributes:
        distortion, perception: the measures of the ranks. family: those that are tested.
        against: the method that others are compared with, where it was named.
        overall: methods in all tasks first, by mean rank in distortion.
    """

    title: str
    distortion: str
    perception: str | None
    family: tuple[str, ...]
    against: str | None
    tasks: list[Task]
    overall: list[Overall]
    runs: list[Listed]

    @property
    def tests(self) -> int:
        """How many p-values are corrected together."""
        return sum(len(task.paired) for task in self.tasks)


def summarize(entries: Sequence[Entry], wanted: Wanted) -> Suite:
    """All numbers of a suite; rows are read a task at a time.

    Raises:
        JobError: no run has a measure that is asked for; no entry is of the method `against`.
    """
    entries = [replace(one, task=redacted(one.task), method=redacted(one.method)) for one in entries]
    methods = list(dict.fromkeys(one.method for one in entries))
    against = None if wanted.against is None else redacted(wanted.against)
    if against is not None and against not in methods:
        raise JobError(f"against: no method {against!r}; choose from {', '.join(methods)}")
    runs = [listed(one) for one in entries]
    finished = [one.run for one, of in zip(entries, runs, strict=True) if one.run and not of.left_out]
    distortion, perception, family = choose_measures([run.job.metrics for run in finished], wanted)
    draws = max(DRAWS, DRAWS_OF_EACH * len(finished) * len(family))
    by = Axes(distortion, perception, family, against, draws)
    tasks: list[Task] = []
    for name in dict.fromkeys(one.task for one in entries):
        inputs, tables = [], []
        for i, one in enumerate(entries):
            if one.task != name or one.run is None or runs[i].left_out:
                continue
            try:
                taking_part, table = read(one.method, one.run)
            except JobError as error:
                runs[i] = replace(runs[i], left_out=redacted(str(error)))
            else:
                inputs.append(taking_part)
                tables.append(table)
        tasks.append(summarize_task(name, inputs, tables, by))
    tasks = correct(tasks)
    overall = summarize_methods(methods, tasks)
    return Suite(wanted.title, by.distortion, by.perception, by.family, by.against, tasks, overall, runs)


def listed(entry: Entry) -> Listed:
    """A run as it is listed: what is not finished is left out."""
    if entry.run is None:
        return Listed(entry.task, entry.method, "", 0, 0, 0, redacted(entry.why), "", "", "", {})
    run, progress, why = entry.run, None, ""
    try:
        progress = run.progress()
        if progress.units < run.summary.units:
            why = f"unfinished: {progress.rows} of {run.summary.samples} images are done"
        elif progress.failed == progress.rows:
            why = f"none of its {progress.rows} images is restored"
    except JobError as error:
        why = redacted(str(error))
    return Listed(
        entry.task,
        entry.method,
        redacted(str(run.folder)),
        run.summary.samples,
        0 if progress is None else progress.rows,
        0 if progress is None else progress.failed,
        why,
        run.config_hash,
        "" if run.job.is_score else run.prior.title,
        "" if run.job.is_score else run.prior.sha256,
        run.job.model_dump(mode="json"),
    )


def read(label: str, run: Run) -> tuple[Input, pa.Table]:
    """A run with keys, status, cost, measures and those of the baselines of its rows; raises as `load`."""
    with rows_of_run(run) as rows:
        found = Input(label, rows, run, {})
        return found, load(found)


def choose_measures(
    metrics: Sequence[Sequence[str]], wanted: Wanted
) -> tuple[str, str | None, tuple[str, ...]]:
    """Distortion, perception and family; perception None where nobody asked for one and not all have one.

    Args:
        metrics: of each run.

    Raises:
        JobError: one that is asked for is in no run, or is none of single images where only that will do.
    """
    of_runs = [[*names, "residual"] for names in metrics]
    any_run = list(dict.fromkeys(name for names in of_runs for name in names))
    asked = {"distortion": wanted.distortion, "perception": wanted.perception}
    asked |= {f"family.{i}": name for i, name in enumerate(wanted.family)}
    for field, name in asked.items():
        if name is None or not of_runs:
            continue
        if name not in any_run:
            raise JobError(f"{field}: no run has {name}; choose from {', '.join(any_run)}")
        if field != "perception" and (name in SETS or name in CLIPS):
            raise JobError(
                f"{field}: {title(name)} is of the set, and no test is paired; name it as perception"
            )
    known = (name for name in PERCEPTION if of_runs and all(name in names for names in of_runs))
    perception = wanted.perception or next(known, None)
    both = [
        name for name in (wanted.distortion, perception) if name and name not in SETS and name not in CLIPS
    ]
    return wanted.distortion, perception, tuple(dict.fromkeys(wanted.family or both))


def correct(tasks: Sequence[Task]) -> list[Task]:
    """With p-values corrected for the tests of all tasks."""
    p_values = iter(holm([one.p for task in tasks for one in task.paired]))
    return [
        replace(task, paired=[replace(one, corrected=next(p_values)) for one in task.paired])
        for task in tasks
    ]


def summarize_methods(methods: Sequence[str], tasks: Sequence[Task]) -> list[Overall]:
    """The methods that have a rank in any task, those of all tasks first, by mean rank in distortion."""
    found = []
    for method in methods:
        of = [one for task in tasks for one in task.standings if one.numbers.label == method]
        first = [one.distortion for one in of if one.distortion is not None]
        second = [one.perception for one in of if one.perception is not None]
        if first:
            on = (sum(one.by_evaluations or False for one in of), sum(one.by_seconds or False for one in of))
            found.append(Overall(method, len(first), mean(first), mean(second) if second else None, *on))
    return sorted(found, key=lambda one: (-one.tasks, one.distortion))
