"""What `--track` does: tells trackers of a run, in a thread, so that none ends the job or holds it up."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from kintsugi.errors import JobError, error_text, redacted
from kintsugi.jobs.terminal import console

if TYPE_CHECKING:
    from kintsugi.pipeline.execution.commit import Commit
    from kintsugi.pipeline.execution.run import Run
    from kintsugi.pipeline.storage.location import Location
    from kintsugi.pipeline.trackers import Outcome, Tracked, Tracker

PROGRESS_SECONDS = 10.0  # between two reports of progress
LEAVE_SECONDS = 60.0  # for what is still to be told at the end
REPORT = ("report.html", "report.md", "metrics.json")


@contextmanager
def tracked(names: Sequence[str] | None) -> Iterator[Tracking]:
    """Trackers by their names, which are told to the end; raises a JobError as `trackers.build`."""
    this = Tracking(names or ())
    try:
        yield this
    finally:
        this.close()


class Tracking:
    """The trackers of a command, which may be none, and what they are told next.

    One that raises is named once, and told no more. Nothing is read, and no thread started, for none.

    Attributes:
        trackers: by name, those that have not failed. done: samples that are committed.
        sums: of the values that count in the rows of this command's units, and how many, by column.
    """

    def __init__(self, names: Sequence[str]):
        from kintsugi.pipeline import trackers

        self.trackers: dict[str, Tracker] = {name: trackers.build(name) for name in dict.fromkeys(names)}
        self.tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self.thread: Thread | None = None
        self.run: Run | None = None
        self.done, self.told = 0, -math.inf
        self.sums: dict[str, tuple[float, int]] = {}
        self.outcome: Outcome | None = None

    def begin(self, run: Run, done: int) -> None:
        """A run begins, or is continued, with so many samples done."""
        if self.trackers:
            self.run = run
            self.start(about_run(run), done)

    def start(self, about: Tracked, done: int, outcome: Outcome | None = None) -> None:
        """What `about` says begins, or is over already and has this outcome."""
        self.done, self.outcome = done, outcome
        self.thread = Thread(target=self.work, daemon=True)
        self.thread.start()
        self.tasks.put(lambda: self.tell(lambda each: each.begin(about)))

    def add(self, commit: Commit, done: int, live: Mapping[str, float]) -> None:
        """A unit is committed, after which so many samples are done; `live` are numbers of this moment."""
        if self.run is not None:
            self.tasks.put(lambda: self.follow(commit, done, live))

    def finish(self, page: Location) -> None:
        """There is a report, of which this is the page."""
        if self.run is not None:
            self.done, self.outcome = outcome_of(page)

    def close(self) -> None:
        """Have all told, and wait for it, but not for ever."""
        if self.thread is not None:
            outcome = self.outcome
            self.tasks.put(lambda: self.tell(lambda each: each.finish(self.done, outcome)))
            self.tasks.put(None)
            self.thread.join(LEAVE_SECONDS)
            if self.thread.is_alive():
                say(f"{', '.join(self.trackers)}: no answer for {LEAVE_SECONDS:.0f} s, not waited for")

    @property
    def heard(self) -> tuple[str, ...]:
        """Once it is closed, the trackers that were told everything."""
        waiting = self.thread is not None and self.thread.is_alive()
        return () if waiting else tuple(self.trackers)

    def work(self) -> None:
        """The thread: what is to be told, in order."""
        while (task := self.tasks.get()) is not None:
            task()

    def tell(self, what: Callable[[Tracker], str | None]) -> None:
        """Tell all trackers; what one of them answers is for the user."""
        for name, tracker in list(self.trackers.items()):
            try:
                if (answer := what(tracker)) is not None:
                    console.print(f"{name}: {answer}")
            except (Exception, SystemExit) as error:  # the code of others, and their network
                say(f"{name}: {error_text(error)}; the job goes on without it")
                del self.trackers[name]

    def follow(self, commit: Commit, done: int, live: Mapping[str, float]) -> None:
        """Add a unit to the means, and tell from time to time."""
        assert self.run is not None
        self.done = done
        if not self.trackers:
            return
        try:
            add_rows(self.sums, self.run, commit)
        except (JobError, OSError) as error:  # it will be said with the report
            say(f"--track: {error}")
        if time.monotonic() - self.told >= PROGRESS_SECONDS:
            self.told = time.monotonic()
            means = {f"progress/{name}": total / n for name, (total, n) in self.sums.items()}
            values = {f"progress/{name}": value for name, value in live.items()} | means
            self.tell(lambda each: each.progress(done, values))


def say(text: str) -> None:
    """What the user should know."""
    console.print(text, style="yellow")


def about_run(run: Run) -> Tracked:
    """What a tracker is told at the beginning; texts are without what URLs in them may give away."""
    from kintsugi.pipeline.analysis.report.results import title
    from kintsugi.pipeline.job import flatten
    from kintsugi.pipeline.trackers import Tracked

    folder = str(run.folder)
    config = flatten(run.job.model_dump(mode="json")) | {
        "config_hash": run.config_hash,
        "kintsugi": version("kintsugi"),
        "prior_title": run.prior.title,
        "prior_sha256": run.prior.sha256,
    }
    id = identity(run.config_hash, folder)
    return Tracked(id, run.folder.name, title(run.job), folder, public(config))


def identity(*parts: str) -> str:
    """The `Tracked.id` of what has these parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def public(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Fields that are set, as numbers and texts that give no secret of a URL away."""
    return {
        field: value if isinstance(value, (bool, int, float)) else redacted(str(value))
        for field, value in config.items()
        if value is not None
    }


def outcome_of(page: Location) -> tuple[int, Outcome]:
    """How many samples are done by a run's report, of which this is the page, and what came of them."""
    from kintsugi.pipeline.trackers import Outcome

    files = {name: (page.parent / name).read_bytes() for name in REPORT}
    results, sheet = json.loads(files["metrics.json"]), page.parent / "pictures.png"
    pictures = sheet.read_bytes() if sheet.exists() else None
    return results["samples"]["done"], Outcome(final_values(results), pictures, files)


def add_rows(sums: dict[str, tuple[float, int]], run: Run, commit: Commit) -> None:
    """Add the metrics and the residual of a unit's rows to the sums of those that count, and how many."""
    from kintsugi.pipeline.analysis.measures import counted
    from kintsugi.pipeline.execution.commit import read_rows
    from kintsugi.pipeline.metrics.registry import columns

    names = [*columns(run.job.metrics), *([] if run.job.is_score else ["residual"])]
    rows = read_rows(run.folder, commit, names)
    for name in names:
        values = counted(name, rows[name].drop_null().to_numpy())
        total, n = sums.get(name, (0.0, 0))
        if len(values):
            sums[name] = total + float(values.sum()), n + len(values)


def final_values(results: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics.json by name: means with the ends of their intervals, and what it cost."""
    from kintsugi.pipeline.analysis.report.numbers import baselines, numbers
    from kintsugi.pipeline.metrics.registry import baseline_column

    stated = numbers(results) | {baseline_column(name, of): v for name, of, v in baselines(results)}
    ends = {"": "value", "_low": "low", "_high": "high"}
    found = {f"{name}{end}": v.get(part) for name, v in stated.items() for end, part in ends.items()}
    found |= {f"samples_{what}": results["samples"][what] for what in ("ok", "failed")}
    found |= {**results["cost"], "worker_seconds": results["time"]["worker_seconds"]}
    return {name: float(value) for name, value in found.items() if value is not None}
