"""The tables of a suite, for readers, papers and programs."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from kintsugi.pipeline.analysis.compare_page import paired_table
from kintsugi.pipeline.analysis.compare_runs import RunNumbers
from kintsugi.pipeline.analysis.measures import bare, number, title, with_interval
from kintsugi.pipeline.analysis.suite import Listed, Suite
from kintsugi.pipeline.analysis.suite_task import Standing, Task
from kintsugi.pipeline.analysis.tables import Table, csv_text, markdown_text
from kintsugi.pipeline.metrics import CLIPS, SETS


def axes(suite: Suite) -> list[str]:
    """The measures of the ranks."""
    return [name for name in (suite.distortion, suite.perception) if name is not None]


def yes(value: bool | None) -> str:
    """A word for what may not be known."""
    return "–" if value is None else "yes" if value else "no"


def of_tasks(suite: Suite) -> str:
    """The heading of what is over all tasks."""
    return f"tasks, of {len(suite.tasks)}"


def overall_table(suite: Suite) -> Table:
    """A method in each row: its mean ranks over the tasks, and on how many fronts it is."""
    ranks = [f"mean rank, {bare(name)}" for name in axes(suite)]
    return Table(
        ["method", of_tasks(suite), *ranks, "fronts, evaluations", "fronts, seconds"],
        [
            [
                one.method,
                str(one.tasks),
                *(number(rank, 2) for rank in (one.distortion, one.perception)[: len(ranks)]),
                str(one.by_evaluations),
                str(one.by_seconds),
            ]
            for one in suite.overall
        ],
    )


def leaderboard(suite: Suite, task: Task) -> Table:
    """A method in each row, and what the measurements give without a network."""
    names = axes(suite)

    def first(run: RunNumbers) -> list[str]:
        return [run.label, *(with_interval(*run.estimate(name)) for name in names)]

    def ranked(one: Standing) -> list[str]:
        cost = one.numbers.cost
        return [
            *first(one.numbers),
            *(number(rank, 0 if rank == round(rank or 0) else 1) for rank in places(one)[: len(names)]),
            yes(one.by_evaluations),
            yes(one.by_seconds),
            "–" if cost.evaluations is None else str(cost.evaluations),
            number(cost.seconds),
            str(one.runs),
        ]

    ranks = [f"rank, {bare(name)}" for name in names]
    cost = ["front, evaluations", "front, seconds", "evaluations", "s per image", "runs"]
    blank = ["–"] * (len(ranks) + len(cost))
    return Table(
        ["method", *map(title, names), *ranks, *cost],
        [*map(ranked, task.standings), *([*first(run), *blank] for run in task.baselines)],
    )


def places(one: Standing) -> tuple[float | None, float | None]:
    """The ranks of a method."""
    return one.distortion, one.perception


def measures_table(task: Task) -> Table:
    """A method in each row, every measure in a column."""
    runs = [*(one.numbers for one in task.standings), *task.baselines]
    return Table(
        ["method", *map(title, task.measures)],
        [[run.label, *(with_interval(*run.estimate(name)) for name in task.measures)] for run in runs],
    )


def runs_table(runs: Iterable[Listed]) -> Table:
    """A run in each row: how far it is, and what it was made with."""
    return Table(
        ["run", "task", "method", "done", "failed", "configuration", "prior, SHA-256", "left out"],
        [
            [
                one.folder or "–",
                one.task,
                one.method,
                f"{one.done} of {one.samples}",
                str(one.failed),
                one.config_hash or "–",
                one.prior_sha256 or "–",
                one.left_out,
            ]
            for one in runs
        ],
    )


def left_out_runs(suite: Suite) -> list[str]:
    """In words, the runs that take no part, and why."""
    return [f"{one.task}, {one.method}: {one.left_out}" for one in suite.runs if one.left_out]


def about_ranks(suite: Suite) -> str:
    """In words, what ranks and fronts are."""
    both = " and ".join(map(bare, axes(suite)))
    found = (
        f"Ranks are by the mean of {both} over the images that all methods of a task restored; 1 is the "
        "best, and equal methods share the mean of their places."
    )
    if suite.perception is None:
        return f"{found} Not all runs have a measure of perception, so that there is no front."
    return (
        f"{found} A method is on the front if none that costs at most as much is at least as good in {both} "
        "and better in one; cost is network evaluations (forwards + VJPs), or the sampler’s seconds."
    )


def about_tests(suite: Suite) -> str:
    """In words, what is tested."""
    found = (
        "Differences are of the same images, with 95 % intervals; p from a sign-flip test, corrected by "
        f"Holm’s method for all {suite.tests} tests of this page: each task’s other methods in "
        f"{' and '.join(map(bare, suite.family)) or 'no measure'}. Wins are the share of images in which the "
        "method is better, ties counted half."
    )
    if suite.against is None:
        found += (
            f" Others are compared with the best in {bare(suite.distortion)} of each task, which the same "
            "images chose: differences from it look a little larger than they are."
        )
    if suite.perception is not None and (suite.perception in SETS or suite.perception in CLIPS):
        found += f" {bare(suite.perception)} is of the whole set: nothing is paired, and there is no test."
    return found


def suite_csv(suite: Suite) -> str:
    """A method of a task in each row, for programs: names for titles, all digits, hashes of its runs."""
    measures = dict.fromkeys(name for task in suite.tasks for name in task.measures)
    rows = [csv_row(suite, task, one, measures) for task in suite.tasks for one in task.standings]
    for task in suite.tasks:
        for run in task.baselines:
            rows.append(
                {"task": task.name, "method": run.label, "images": task.images, **values(run, measures)}
            )
    head = list(rows[0]) if rows else ["task", "method"]
    return csv_text([head, *([row.get(name) for name in head] for row in rows)])


def values(run: RunNumbers, measures: Iterable[str]) -> dict[str, float | None]:
    """Means and both ends of their intervals, by column."""
    ends = ("", "_low", "_high")
    return {f"{name}{end}": of for name in measures for end, of in zip(ends, run.estimate(name), strict=True)}


def csv_row(suite: Suite, task: Task, one: Standing, measures: Iterable[str]) -> dict[str, Any]:
    """A method of a task."""
    run = one.numbers
    paired = {pair.measure: pair for pair in task.paired if pair.other == run.label}
    made = [of for of in suite.runs if (of.task, of.method, of.left_out) == (task.name, run.label, "")]
    found: dict[str, Any] = {
        "task": task.name,
        "method": run.label,
        "images": task.images,
        "failed": run.failed,
        "runs": one.runs,
        **values(run, measures),
        "rank_distortion": one.distortion,
        "rank_perception": one.perception,
        "front_evaluations": one.by_evaluations,
        "front_seconds": one.by_seconds,
        **asdict(run.cost),
        "against": task.against,
    }
    for name in suite.family:
        pair = paired.get(name)
        of = (pair.difference, pair.low, pair.high, pair.p, pair.corrected) if pair else (None,) * 5
        columns = (
            f"{name}_{what}" for what in ("difference", "difference_low", "difference_high", "p", "p_holm")
        )
        found |= dict(zip(columns, of, strict=True))
    return found | {
        "config_hash": " ".join(of.config_hash for of in made),
        "prior_sha256": " ".join(dict.fromkeys(of.prior_sha256 for of in made)),
    }


def headed(suite: Suite) -> Iterator[tuple[str, list[str], Table]]:
    """All tables in order: heading, notes, table."""
    yield "All tasks", [about_ranks(suite), *left_out_runs(suite)], overall_table(suite)
    for task in suite.tasks:
        yield f"{task.name}: {task.images} images", task.notes, leaderboard(suite, task)
        if task.paired:
            yield f"{task.name}: paired differences", [], paired_table(task.paired)
        yield f"{task.name}: all measures", [], measures_table(task)


def markdown(suite: Suite) -> str:
    """All of it."""
    parts = [f"# {markdown_text(suite.title)}\n"]
    for heading, notes, table in headed(suite):
        parts.append(f"## {markdown_text(heading)}\n")
        parts += ["".join(f"- {markdown_text(note)}\n" for note in notes)] if notes else []
        parts += [table.markdown()] if table.rows else []
    tested = [markdown_text(about_tests(suite)) + "\n"] if suite.tests else []
    return "\n".join([*parts, *tested, "## Runs\n", runs_table(suite.runs).markdown()])


def latex(suite: Suite) -> str:
    """All tables, each behind its heading as a comment; and the hashes of the runs, as comments too."""
    found = []
    for heading, notes, table in headed(suite):
        found += [f"% {' '.join(line.split())}" for line in (heading, *notes)]
        found.append(table.latex())
    for run in suite.runs:
        words = f"{run.task}, {run.method}: configuration {run.config_hash}, prior {run.prior_sha256}"
        found.append(f"% {' '.join(words.split())}")
    return "\n".join([*found, ""])
