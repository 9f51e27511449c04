"""Which unit is next, who died, and what is to blame: the bookkeeping of both executors.

It knows no workers, no Ray and no clock; times are given to it, in seconds.
"""

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution.bisect import Inquiry
from kintsugi.pipeline.storage.location import pause

SLOW = 1.5  # times the usual duration of a unit, after which a free worker does it too
SLOW_SECONDS = 5.0  # at least
DEATHS_IN_A_ROW = 30  # of workers without any success: more than one bad sample takes to be found


@dataclass(frozen=True)
class Task:
    """What is to be done of a unit.

    Attributes:
        attempt: 1, 2, …
        poison: samples that are known to kill their worker; they become failed rows.
        failed_only: keep the committed rows and do only the failed samples again.
    """

    unit: Unit
    attempt: int = 1
    poison: frozenset[str] = frozenset()
    failed_only: bool = False


@dataclass(frozen=True, eq=False)
class Work:
    """What a worker has in hand: a unit, or under an inquiry the last range of its suspects.

    Attributes:
        since: when it was begun.
    """

    task: Task
    since: float
    inquiry: Inquiry | None = None


@dataclass
class Streak:
    """Deaths of workers since anything succeeded, of all runs that they share."""

    deaths: int = 0


class Ledger:
    """Says what is to be done next, and hears what came of it.

    A unit of which a worker dies is tried again; after `attempts` deaths the samples that kill are searched
    by bisection and recorded as failed, and the rest of the unit is restored. Storage that fails is tried
    again after a pause, then ends the job: it says nothing of the samples. When nothing is left to begin,
    slow units are done a second time; the first commit counts, and the other is the same.

    Args:
        tasks: in the order in which they are begun. attempts: `compute.attempts`.
        keys_of: the keys of a unit's samples. notes: what the user should know is added.

    Attributes:
        outstanding: names of the units that are not committed. in_hand: what workers are doing.
        durations: of the last units, in seconds per sample.
        streak: of deaths, which several ledgers may share.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        attempts: int,
        keys_of: Callable[[Unit], Sequence[str]],
        notes: list[str],
        streak: Streak | None = None,
    ):
        self.attempts, self.keys_of, self.notes = attempts, keys_of, notes
        self.queue = deque(tasks)
        self.inquiries: deque[tuple[Task, Inquiry]] = deque()  # whose next range may begin
        self.outstanding = {task.unit.unit for task in self.queue}
        self.in_hand: set[Work] = set()
        self.deaths: Counter[str] = Counter()
        self.storage_failures: Counter[str] = Counter()
        self.inquired: set[str] = set()
        self.streak = streak or Streak()
        self.durations: deque[float] = deque(maxlen=100)

    def left(self) -> int:
        """How many units are not committed."""
        return len(self.outstanding)

    def next(self, now: float) -> Work | None:
        """What a free worker should begin now, if there is anything; it is in hand from now on."""
        return self.begin(now) or self.again(now)

    def begin(self, now: float) -> Work | None:
        """As `next`, but nothing that another worker is doing."""
        if self.inquiries:
            task, inquiry = self.inquiries.popleft()
            return self.take(Work(task, now, inquiry))
        while self.queue:
            task = self.queue.popleft()
            if task.unit.unit in self.outstanding:
                return self.take(Work(task, now))
        return None

    def take(self, work: Work) -> Work:
        """It is in hand from now on."""
        self.in_hand.add(work)
        return work

    def again(self, now: float) -> Work | None:
        """The oldest of the slow units that only one worker is doing."""
        if not self.durations:
            return None
        usual = statistics.median(self.durations)
        copies = Counter(work.task.unit.unit for work in self.in_hand)
        slow = [
            work
            for work in self.in_hand
            if work.inquiry is None
            and copies[work.task.unit.unit] == 1
            and now - work.since > max(SLOW_SECONDS, SLOW * usual * work.task.unit.samples)
        ]
        return self.take(Work(min(slow, key=lambda work: work.since).task, now)) if slow else None

    def committed(self, work: Work, samples: int, now: float) -> bool:
        """A unit was done, of which so many samples; returns whether this is its first commit."""
        self.in_hand.remove(work)
        if samples > len(work.task.poison):  # else nothing was restored
            self.streak.deaths = 0
        if samples:
            self.durations.append((now - work.since) / samples)
        return self.close(work.task.unit)

    def close(self, unit: Unit) -> bool:
        """Nothing more is to be done of a unit; returns whether there was."""
        there = unit.unit in self.outstanding
        self.outstanding.discard(unit.unit)
        return there

    def survived(self, work: Work) -> None:
        """A worker outlived a range under an inquiry."""
        self.in_hand.remove(work)
        self.streak.deaths = 0
        assert work.inquiry is not None
        work.inquiry.survived()
        self.inquire(work.task, work.inquiry)

    def storage_failed(self, work: Work, error: Exception) -> float:
        """Storage failed, or memory was lacking; returns the seconds after which its worker tries again.

        Raises:
            JobError: again and again.
        """
        self.in_hand.remove(work)
        unit = work.task.unit.unit
        if unit not in self.outstanding:  # another worker was faster
            return pause(1)
        self.storage_failures[unit] += 1
        failures = self.storage_failures[unit]
        if failures >= self.attempts:
            raise passing_failure(error) from error
        self.notes.append(redacted(f"unit {unit}, {what_failed(error)}; trying again"))
        if work.inquiry is not None:
            self.inquiries.append((work.task, work.inquiry))
        else:
            self.queue.appendleft(work.task)
        return pause(failures)

    def died(self, work: Work, why: str, workers: int = 1) -> Task | None:
        """A worker died of what it had in hand.

        Args:
            workers: the most there have been at once, all of which a lost rack takes.

        Returns:
            What is to be given up, as its workers die and no sample of it alone is to blame.

        Raises:
            JobError: workers die one after another, whatever they do.
        """
        self.in_hand.remove(work)
        unit, task = work.task.unit, work.task
        if unit.unit not in self.outstanding:  # another worker was faster
            return None
        self.streak.deaths += 1
        if self.streak.deaths >= DEATHS_IN_A_ROW + workers:
            raise JobError(
                f"{self.streak.deaths} workers died one after another, the last of them so: {why}; "
                "the same command continues when this is mended"
            )
        if work.inquiry is not None:
            work.inquiry.died()
            self.inquire(task, work.inquiry)
            return None
        self.deaths[unit.unit] += 1
        deaths = self.deaths[unit.unit]
        self.notes.append(f"unit {unit.unit}, attempt {deaths}: {why}")
        task = replace(task, attempt=deaths + 1)
        if any(other.task.unit == unit for other in self.in_hand):
            return None
        if deaths >= self.attempts and unit.unit not in self.inquired:
            self.inquired.add(unit.unit)
            self.deaths[unit.unit] = self.attempts
            self.notes.append(f"unit {unit.unit}: searching for the samples that end its worker")
            self.inquire(task, Inquiry(unit.samples))
        elif deaths < 2 * self.attempts:
            self.queue.append(task)
        else:
            return task
        return None

    def inquire(self, task: Task, inquiry: Inquiry) -> None:
        """Go on with an inquiry, or with its unit if it is finished."""
        if not inquiry.finished:
            self.inquiries.append((task, inquiry))
            return
        keys = self.keys_of(task.unit)
        poison = frozenset(keys[place] for place in inquiry.poison)
        self.notes += [
            f"{key}: its restoration ends the process, recorded as failed" for key in sorted(poison)
        ]
        self.queue.append(replace(task, poison=poison))


def what_failed(error: Exception) -> str:
    """Storage or memory, and how."""
    return f"{'storage' if isinstance(error, OSError) else 'out of memory'}: {error}"


def passing_failure(error: Exception) -> JobError:
    """For what says nothing of the samples: storage that fails, or too little memory."""
    return JobError(f"{what_failed(error)}; the same command continues when this is mended")
