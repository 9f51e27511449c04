"""What is said of a running job: how long it still takes, and what Ctrl-C waits for."""

import os
import signal
import time

from rich.console import Console

from kintsugi.jobs.display import Display, duration
from kintsugi.jobs.execution import stoppable
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Progress


def display(seconds: float, total: int, done: int, in_hand: int, left: tuple[int, ...]) -> Display:
    """Of a job that two workers have been doing for so long."""
    live = Live(in_hand=in_hand, left=left, workers=2, started=time.perf_counter() - seconds)
    shown = Display(Console(), total, Progress(0, 0, 0), live)
    shown.done = done
    return shown


def test_the_time_left_counts_the_units_in_hand():
    assert display(20, 100, 6, 4, (3, 3)).time_left() == "0:03:00", "4 s each, shared by two"
    assert display(20, 12, 6, 4, (2, 0)).time_left() == "8 s", "the last unit has one worker, 4 s each"
    assert display(20, 10, 6, 4, ()).time_left() == "0 s"
    assert display(20, 100, 0, 0, (8, 8)).time_left() == "–"


def test_what_ctrl_c_waits_for():
    said = display(20, 100, 6, 4, (3, 5)).waiting()
    assert said == "finishing the 2 units in hand, of which 8 samples are left, in about 20 s"
    assert display(20, 100, 0, 0, (8,)).waiting().endswith("8 samples are left")
    assert display(20, 100, 0, 0, ()).waiting() == "nothing is in hand: ending"
    live = Live()
    with stoppable(live, lambda: "finishing 2"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
    assert live.stopping
    assert live.notes == ["finishing 2; once more to end at once, which loses only these"]


def test_a_worker_says_what_is_left_of_its_unit(make_job, monkeypatch):
    run, live, seen = open_or_plan(make_job()), Live(), []
    from kintsugi.pipeline.execution.stage import Stage

    original = Stage.in_batches

    def run_stage(self, samples, work):
        seen.append(live.left)
        return original(self, samples, work)

    monkeypatch.setattr(Stage, "in_batches", run_stage)
    list(in_process([Part(run, list(run.units())[:1])], live))
    assert seen == [(3,), (3,)], "three samples, in batches of two: the first is scored meanwhile"
    assert live.left == ()


def test_durations():
    assert [duration(s) for s in (0.4, 119, 3723)] == ["0 s", "119 s", "1:02:03"]
