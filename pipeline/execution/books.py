"""The ledgers of several runs that share their workers."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kintsugi.pipeline.data.units import read_members
from kintsugi.pipeline.execution.directory import PLAN
from kintsugi.pipeline.execution.ledger import Ledger, Streak, Task, Work
from kintsugi.pipeline.execution.run import Part, Run


@dataclass(frozen=True, eq=False)
class Book:
    """A run and its ledger."""

    run: Run
    ledger: Ledger


class Books:
    """Says what is to be done next of several runs, each of which has a ledger of its own.

    A run is begun when less is left of those before than there are workers, so that none is idle between two
    runs; what others are doing already is begun again only when nothing else is left.

    Args:
        parts: in the order in which they are begun. notes: what the user should know is added.

    Attributes:
        open: the runs that have been begun and are not finished. streak: of deaths, in all of them.
    """

    def __init__(self, parts: Iterable[Part], notes: list[str]):
        self.parts, self.notes = iter(parts), notes
        self.open: list[Book] = []
        self.streak = Streak()

    def left(self, enough: int = 1) -> int:
        """How many units are not committed, of as many runs as have enough of them, or of all."""
        self.open = [book for book in self.open if book.ledger.left()]
        left = sum(book.ledger.left() for book in self.open)
        while left < enough and (book := self.begin()) is not None:
            left += book.ledger.left()
        return left

    def begin(self) -> Book | None:
        """Begin the next run, if there is one."""
        if (part := next(self.parts, None)) is None:
            return None
        tasks = sorted(tasks_of(part), key=lambda task: -task.unit.samples)  # no long unit is begun last
        self.open.append(Book(part.run, ledger_of(part.run, tasks, self.notes, self.streak)))
        return self.open[-1]

    def next(self, now: float) -> tuple[Book, Work] | None:
        """What a free worker should begin now, if there is anything, and of which run."""
        for book in itertools.chain(self.open, iter(self.begin, None)):
            if (work := book.ledger.begin(now)) is not None:
                return book, work
        for book in self.open:
            if (work := book.ledger.again(now)) is not None:
                return book, work
        return None


def tasks_of(part: Part) -> Iterator[Task]:
    """What is to be done of a run, in order."""
    return (Task(unit, failed_only=part.failed_only) for unit in part.units)


def ledger_of(run: Run, tasks: Iterable[Task], notes: list[str], streak: Streak | None = None) -> Ledger:
    """The ledger of a run."""
    attempts, plan = run.job.compute.attempts, run.folder / PLAN
    return Ledger(tasks, attempts, lambda unit: read_members(plan, unit).keys, notes, streak)
