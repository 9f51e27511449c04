"""Progress of a running job: images, rate, time left, failures, and how busy the devices are."""

import html
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich import progress as bars
from rich.console import Console

from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.run import Progress

PLAIN_SECONDS = 10  # between lines where there is no terminal


class Display:
    """Follows `Live` from a thread; `add` counts what is committed."""

    def __init__(self, console: Console, total: int, before: Progress, live: Live):
        self.console, self.total, self.live = console, total, live
        self.already = self.done = before.rows
        self.failed = before.failed
        self.notes_shown = 0

    def add(self, commit: Commit) -> None:
        """Count a unit that was committed."""
        self.done += commit.rows
        self.failed += commit.failed

    @property
    def finished(self) -> int:
        """Samples that are committed or restored in a unit in hand, those done before among them."""
        return min(self.done + self.live.in_hand, self.total)

    def numbers(self) -> dict[str, float]:
        """Rate and how busy the devices are, once there are workers, and failures."""
        found: dict[str, float] = {"failed": self.failed}
        if self.live.started is not None:
            elapsed = time.perf_counter() - self.live.started
            found["images_per_second"] = (self.finished - self.already) / elapsed
            found["devices_busy"] = min(self.live.busy / (elapsed * max(self.live.workers, 1)), 1.0)
        return found

    def figures(self) -> str:
        """These in words."""
        if self.live.started is None:
            return "starting workers"
        rate, busy = (self.numbers()[name] for name in ("images_per_second", "devices_busy"))
        return f"{rate:.2f} images/s · {self.failed} failed · devices {busy:.0%} busy"

    @property
    def seconds_each(self) -> float | None:
        """Seconds that one worker takes for a sample, None before any is finished."""
        fresh = self.finished - self.already
        if self.live.started is None or fresh <= 0:
            return None
        return (time.perf_counter() - self.live.started) * max(self.live.workers, 1) / fresh

    def time_left(self) -> str:
        """How long the rest takes, shared by all workers, but no less than the longest unit in hand."""
        if (each := self.seconds_each) is None:
            return "–"
        shared = (self.total - self.finished) / max(self.live.workers, 1)
        return duration(each * max(shared, *self.live.left, 0))

    def waiting(self) -> str:
        """What has to be waited for when no unit is begun any more, and how long about."""
        if not (left := self.live.left):
            return "nothing is in hand: ending"
        what = f"finishing the {len(left)} units in hand, of which {sum(left)} samples are left"
        each = self.seconds_each
        return what if each is None else f"{what}, in about {duration(each * max(left))}"

    def show_notes(self) -> None:
        """Print what workers had to say since the last time."""
        for note in self.live.notes[self.notes_shown :]:
            self.console.print(note, style="yellow", markup=False, highlight=False)
        self.notes_shown = len(self.live.notes)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Follow the job while this context is open: a bar, or lines where there is no terminal."""
        stop = threading.Event()
        follow = self.follow_bar if self.console.is_terminal else self.follow_lines
        if self.console.is_jupyter:
            follow = self.follow_notebook
        thread = threading.Thread(target=follow, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.show_notes()

    def follow_bar(self, stop: threading.Event) -> None:
        """A bar of rich's, four times a second."""
        columns = (
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[figures]}"),
            bars.TextColumn("{task.fields[left]} left"),
        )
        with bars.Progress(*columns, console=self.console) as progress:
            task = progress.add_task(
                "", total=self.total, completed=self.already, figures="starting", left="–"
            )
            while True:
                last = stop.wait(0.25)
                self.show_notes()
                figures, left = self.figures(), self.time_left()
                progress.update(task, completed=self.finished, figures=figures, left=left)
                if last:
                    return

    def follow_notebook(self, stop: threading.Event) -> None:
        """A bar of the browser's own: rich's would need widgets, and a notebook that has them installed."""
        from IPython.display import HTML, display

        handle = display(HTML(""), display_id=True)
        while True:
            last = stop.wait(0.5)
            self.show_notes()
            line = f"{self.finished}/{self.total} · {self.figures()} · {self.time_left()} left"
            bar = f'<progress max="{self.total}" value="{self.finished}"></progress>'
            handle.update(HTML(f"{bar} {html.escape(line)}"))
            if last:
                return

    def follow_lines(self, stop: threading.Event) -> None:
        """A line every `PLAIN_SECONDS`."""
        while not stop.wait(PLAIN_SECONDS):
            self.show_notes()
            line = f"{self.finished}/{self.total} · {self.figures()} · {self.time_left()} left"
            self.console.print(line, highlight=False)


def duration(seconds: float) -> str:
    """12 s; 1:02:03 from two minutes on."""
    return f"{seconds:.0f} s" if seconds < 120 else str(timedelta(seconds=round(seconds)))


class Rate(bars.ProgressColumn):
    """How many a second."""

    def render(self, task: bars.Task) -> str:
        """Such as "3.1/s"; nothing before it is known."""
        return "" if task.speed is None else f"{task.speed:.1f}/s"


@contextmanager
def progress_bar(console: Console, total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar with rate and time left on a terminal, nothing elsewhere; call what it gives after each."""
    columns = (
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn(what),
        Rate(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)
