"""The pictures of a suite: the same images by all methods of a task, read a run at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.report.gallery import (
    FORMS,
    KINDS,
    Card,
    refuse_no_pictures,
    webp,
    with_pseudo_inverses,
)
from kintsugi.pipeline.analysis.rows import committed
from kintsugi.pipeline.analysis.suite import Entry, Suite
from kintsugi.pipeline.execution.directory import data_file
from kintsugi.pipeline.execution.run import Run

BUDGET = 3 << 20  # bytes of all pictures; a third more as text in the file
PICTURES = 600  # at most, but for two images of each task
TRIED = 40  # pictures, from whose size that of all is expected


@dataclass(frozen=True)
class Picture:
    """An image of a task: what a method made of it, or under a name of its own what it began with."""

    task: str
    key: str
    label: str
    content: bytes


def encoded(suite: Suite, entries: Sequence[Entry]) -> tuple[list[Picture], str]:
    """The pictures of all tasks as WebP, in the best form that keeps within the budget, and that in words.

    Pictures are read anew for each form that is tried, so that those of one run alone are in memory.

    Args:
        entries: those that were summarised.
    """
    images = max(2, PICTURES // max(1, shown_with_each(suite)))
    for side, quality in FORMS:
        found: list[Picture] = []
        length = 0
        for one in kept(suite, entries, images):
            found.append(replace(one, content=webp(one.content, side, quality)))
            length += len(found[-1].content)
            expected = length / len(found) * images * shown_with_each(suite) if len(found) > TRIED else length
            if expected > BUDGET and (side, quality) != FORMS[-1]:
                break
        else:
            break
    how = "lossless" if quality is None else f"WebP of quality {quality}"
    return found, f"{how} and at most {side} pixels a side"


def shown_with_each(suite: Suite) -> int:
    """Pictures that there are if each task shows one image, at most."""
    return sum(len(task.standings) + len(KINDS) for task in suite.tasks)


def kept(suite: Suite, entries: Sequence[Entry], images: int) -> Iterator[Picture]:
    """The pictures that runs keep of so many images of each task, of those that are shown."""
    for task in suite.tasks:
        keys = list(task.shown)[:images]
        runs: dict[str, Run] = {}
        for listed, entry in zip(suite.runs, entries, strict=True):
            if listed.task == task.name and not listed.left_out and entry.run is not None:
                runs.setdefault(listed.method, entry.run)
        for card in given(list(runs.values()), keys):
            for kind, content in card.pictures.items():
                yield Picture(task.name, card.key, kind, content)
        for standing in task.standings:
            label = standing.numbers.label
            for row in rows_with(runs[label], keys, ["restored"]):
                if row["restored"] is not None:
                    yield Picture(task.name, row["key"], label, row["restored"])


def given(runs: Sequence[Run], keys: Sequence[str]) -> list[Card]:
    """What the methods began with, and the truth, by the first run that keeps any of it."""
    for run in runs:
        cards = []
        for row in rows_with(run, keys, ["truth", "measurement"]):
            known = {KINDS[name]: row[name] for name in ("truth", "measurement") if row[name] is not None}
            if known:
                cards.append(Card(row["key"], 0, {}, [], known))
        if cards:
            return with_pseudo_inverses(run.job, cards)
    return []


def rows_with(run: Run, keys: Sequence[str], columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of these keys; raises a JobError if what they keep as pictures cannot be shown."""
    missing = len(keys)
    for table, commit in committed(run, ["key", *columns]):
        rows = table.filter(pc.is_in(table["key"], value_set=pa.array(keys, pa.string()))).to_pylist()
        for row in rows:
            refuse_no_pictures(row, data_file(run.folder, commit.unit))
            yield row
        missing -= len(rows)
        if not missing:
            return
