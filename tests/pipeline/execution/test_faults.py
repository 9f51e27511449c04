"""Faults at random points on Ray: after the same command the result is complete, once, the same bytes.

benchmarks/faults.py does the same on clusters of several nodes, and for as long as one likes.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit import faults
from kit.faults import descendants
from kit.jobs import rows
from kit.station import PAUSE, SAMPLES, UNITS, Station

from kintsugi.errors import JobError
from kintsugi.pipeline.execution import cluster, crew, ledger
from kintsugi.pipeline.execution import sieve as terminal
from kintsugi.pipeline.execution.actors import Pool, RayWorker
from kintsugi.pipeline.execution.cluster import reason
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.publish import this_host


@dataclass
class Strikes:
    """What happens to some actor after so many commits, and to another after so many more.

    It happens in the driver, before it looks what the actors have done: however late it comes on a busy
    machine, the run is not over.

    Attributes:
        left: numbers of commits. struck: processes it has happened to.
    """

    station: Station
    name: str
    left: list[int]
    rng: np.random.Generator
    act: Callable[[int], None]

    def __post_init__(self) -> None:
        self.struck: list[int] = []

    def begin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = Pool.ready

        def ready(pool: Pool) -> list[Any]:
            if self.left and self.station.commits(self.name) >= self.left[0] and actors():
                time.sleep(self.rng.uniform(0, 3 * PAUSE))
                victim = int(self.rng.choice(sorted(actors())))
                self.act(victim)
                self.struck.append(victim)
                del self.left[0]
            return original(pool)

        monkeypatch.setattr(Pool, "ready", ready)


def actors() -> list[int]:
    """Process ids of the workers on clusters of this process."""
    return [process for process, name in descendants(os.getpid()) if name.startswith("ray::RayWorker")]


def kill(process: int, number: int = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


@pytest.mark.parametrize("seed", range(2))
def test_killed_actors_leave_no_trace(station, monkeypatch, seed):
    """One actor killed once, or two of which one or two are killed: while they start, work or wait."""
    rng, name, actors = np.random.default_rng(seed), f"killed-{seed}", 1 + seed % 2
    after = sorted(rng.integers(0, UNITS, rng.integers(1, actors + 1)).tolist())
    strikes = Strikes(station, name, after, rng, kill)
    strikes.begin(monkeypatch)
    assert station.run(name, actors=actors) == 0
    assert strikes.struck
    assert not strikes.left
    station.check(name)


def test_a_frozen_actor_is_replaced_and_wakes_up_late(station, monkeypatch, capsys):
    """It wakes up when another does its work."""
    rng, name = np.random.default_rng(4), "frozen"
    monkeypatch.setattr(crew, "FROZEN_SECONDS", 2.0)
    alarms: list[threading.Timer] = []

    def freeze(process: int) -> None:
        kill(process, signal.SIGSTOP)
        alarms.append(threading.Timer(4.0, kill, (process, signal.SIGCONT)))
        alarms[-1].start()

    strikes = Strikes(station, name, [int(rng.integers(0, UNITS))], rng, freeze)
    strikes.begin(monkeypatch)
    assert station.run(name) == 0
    (alarm,) = alarms
    alarm.join()
    station.check(name)
    assert "has not answered" in capsys.readouterr().out


def test_the_same_command_continues_after_its_driver_ended(station):
    """Once by kill -9, then by Ctrl-C twice."""
    rng = np.random.default_rng(9)
    job = station.job("ended")
    ends = [([signal.SIGKILL], -signal.SIGKILL), ([signal.SIGINT, signal.SIGINT], 130)]
    for after, (signals, code) in enumerate(ends):  # so that there are units left to be interrupted
        driver = subprocess.Popen(
            [*faults.PROGRAM, "kintsugi", "run", str(job), "--address", station.address],
            start_new_session=True,
            stdout=subprocess.DEVNULL,
        )
        while driver.poll() is None and (station.commits("ended") < after + 1 or not actors()):
            time.sleep(0.05)
        for number in signals:
            os.killpg(driver.pid, number)
            time.sleep(rng.uniform(0, PAUSE))
        assert driver.wait(60) == code
    assert station.run("ended") == 0
    station.check("ended")


def test_an_actor_at_work_when_the_job_ends_leaves_nothing(station, monkeypatch):
    """A unit is done twice, as the first to do it is slow; the slow one is writing when the other is done."""

    class Scribbler(RayWorker):
        def process(self, run, task):
            begun = Path(run.folder, "begun")
            if task.unit.unit == "00000-0000000" and not begun.exists():
                begun.touch()
                for number in range(100_000):
                    name = f".{this_host()}-{os.getpid()}-{number:016x}.tmp"
                    Path(run.folder, name).touch()
                    time.sleep(0.001)
            return super().process(run, task)

    monkeypatch.setattr(ledger, "SLOW_SECONDS", 0.2)
    station.run_with(Scribbler, "scribbled", actors=2)
    Path(station.base, "scribbled", "begun").unlink()
    station.check("scribbled")


def test_poison_is_found_by_bisection_and_alone_recorded_as_failed(station, monkeypatch):
    """A sample ends or freezes every process that restores it; an accident ends another unit's."""
    poison, unlucky = {"image_0006"}, "image_0010"

    class Poisoned(RayWorker):
        def __init__(self, run, device):
            super().__init__(run, device)
            stage, folder = self.worker(run).stage, Path(run.folder)
            accident, frozen = folder / "accident", folder / "frozen"
            original = stage.in_batches

            def run_or_die(samples, work):
                keys = {sample.key for sample in samples}
                if poison & keys:
                    if not frozen.exists():
                        frozen.touch()
                        os.kill(os.getpid(), signal.SIGSTOP)
                    frozen.unlink()
                    os._exit(1)
                if unlucky in keys and not accident.exists():
                    accident.touch()
                    os._exit(1)
                return original(samples, work)

            stage.in_batches = run_or_die

    monkeypatch.setattr(crew, "FROZEN_SECONDS", 1.0)
    notes = station.run_with(Poisoned, "poison", attempts=1)
    assert "image_0006: its restoration ends the process, recorded as failed" in notes
    listed = rows(Run.open(station.base / "poison"))
    assert len(listed) == SAMPLES
    calm, found = ({row["key"]: row for row in of} for of in (rows(Run.open(station.calm)), listed))
    assert {key for key, row in found.items() if row["status"] == "failed"} == poison
    assert all("WorkerKilled" in found[key]["error"] for key in poison)
    assert {key: row for key, row in found.items() if key not in poison} == {
        key: row for key, row in calm.items() if key not in poison
    }


@pytest.mark.parametrize(
    ("text", "short"),
    [
        (
            "The actor died unexpectedly before finishing this task.\n\tpid: 20192\n\tip: 192.0.2.2\n"
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker "
            "exit detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common "
            "causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) …",
            "the worker's process died",
        ),
        (
            "The actor 7dbb6157f28f5a1e3d0e is unavailable: The actor is temporarily unavailable: RpcError: "
            "RPC error: failed to connect to all addresses; last error: UNKNOWN: ipv4:192.0.2.2:41: failed "
            "to connect rpc_code: 14. The task may or may not have been executed on the actor.",
            "the worker cannot be reached",
        ),
        (
            "The actor 7dbb6157f28f5a1e3d0e is unavailable: The actor is temporarily unavailable: RpcError: "
            "RPC error: Socket closed rpc_code: 14. The task may or may not have been executed on the actor.",
            "the worker cannot be reached",
        ),
        (
            "The actor died unexpectedly before finishing this task.\n\n\tactor_id: 4f3e51c71ede",
            "the worker's process died",
        ),
        (
            "Traceback …\nJobError: no weights at v1. 5; see there",
            "RuntimeError: JobError: no weights at v1. 5; see there",
        ),
        ("", "RuntimeError: the worker died"),
        (
            "Task was killed due to the node running low on memory.\nMemory on the node (IP: 192.0.2.2, …",
            "Ray ended the worker, as its node ran out of memory",
        ),
        (
            "The actor is dead because its node has died. Node Id: 4b68477ec13978d1a686df9081bf990f",
            "the worker's node is lost",
        ),
    ],
)
def test_a_reason_is_one_sentence_and_the_same_every_time(text, short):
    assert reason(RuntimeError(text)) == short


# ---- a Ray of its own


def test_a_ray_that_dies_ends_the_command_which_then_continues(station, tmp_path):
    """benchmarks/faults.py chaos does this at random, and to the GCS, of which Ray takes a minute to tell."""
    strike = faults.Strike(signal.SIGKILL, "raylet", 1, 0.1, 0)
    chaos = faults.Chaos(tmp_path)  # beside `station`, where the prior of the tests is known here
    outcome = chaos.run("kill-raylet", [strike], address="none")
    assert outcome.clean, f"{outcome}\n{outcome.log}"
    assert outcome.faults == [strike.name]
    assert outcome.codes == [1, 0]


def test_what_ray_raises_while_it_starts_is_one_sentence(monkeypatch):
    import ray

    def init(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because …\n\n…")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(JobError) as found, cluster.connected(None):
        pass
    assert str(found.value) == (
        "the local Ray cannot start: The current node timed out during startup; the same command continues"
    )


@pytest.mark.parametrize("ends", [True, False])
def test_the_log_of_ray_is_not_on_the_terminal(ends):
    """Whether Ray's C++ ends the process or not, at once."""
    script = (
        "import os, sys\nfrom kintsugi.pipeline.execution.sieve import without_texts_of_ray\n"
        "with without_texts_of_ray():\n"
        "    print('a warning', file=sys.stderr, flush=True)\n"
        "    os.write(2, b'[2026-11-28 18:59:27,936 E 32333 32365] rpc_client.h:204: Failed to connect\\n')\n"
        f"    {'os._exit(1)' if ends else 'pass'}\nprint('the end', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == "a warning\n" + (terminal.LOST if ends else "the end\n")


def test_a_line_that_nobody_ends_does_not_keep_the_command_from_ending():
    """A progress bar's, while a process that outlives the command holds the other end of the pipe."""
    script = (
        "import os, subprocess, sys\nfrom kintsugi.pipeline.execution.sieve import without_texts_of_ray\n"
        "with without_texts_of_ray():\n"
        "    other = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "    os.write(2, b' 99 %')\nother.communicate(b'.')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stderr == " 99 %"
