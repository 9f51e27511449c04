"""Faults at random points: after the same command the result is complete, once, and the same bytes.

In process, on Ray, by a sample that ends its process, and on disks that are full, read-only or gone;
benchmarks/faults.py does the same on clusters of several nodes, and for as long as one likes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faults
import numpy as np
import pyarrow.parquet as pq
import pytest
from faults import MOUNTED, NAMESPACE, Outcome, descendants, why_no_mounts, write_job, write_shards

from jobs import cli
from pipeline import executors
from pipeline.inquiry import DEATHS, Inquiry
from pipeline.plan import Unit
from pipeline.worker import Task

RUNS, DISKS = 50, 2


# ---- in process


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """Of `RUNS` runs through random faults, then `DISKS` for each fault of a disk, where one is mounted."""
    folder = tmp_path_factory.mktemp("faults")
    mounting = why_no_mounts() is None
    subprocess.run(
        [
            *(NAMESPACE if mounting else ()),
            *(sys.executable, faults.__file__, folder, "--runs", str(RUNS), "--seed", "0"),
            *("--disks", str(DISKS if mounting else 0)),
        ],
        check=True,
        timeout=600,
    )
    return [Outcome(**outcome) for outcome in json.loads((folder / "outcomes.json").read_text())]


def test_runs_through_random_faults_end_as_an_undisturbed_one(outcomes):
    stormy = outcomes[:RUNS]
    assert not [outcome for outcome in stormy if not outcome.clean]
    assert sum(outcome.began is not None for outcome in stormy) > 0.8 * RUNS, "the faults fall into the runs"
    codes = {code for outcome in stormy for code in outcome.codes}
    assert {0, 1, 130, -signal.SIGKILL} <= codes, "and some of them end it"


@pytest.mark.parametrize("fault", MOUNTED)
def test_a_run_outlives_its_disk(outcomes, fault):
    """Full, read-only, unmounted: for a moment or until the command has given up."""
    if (why := why_no_mounts()) is not None:
        pytest.skip(f"nothing can be mounted here: {why}")
    found = [outcome for outcome in outcomes[RUNS:] if outcome.faults == [fault]]
    assert len(found) == DISKS
    assert not [outcome for outcome in found if not outcome.clean]


# ---- samples that end their process


def unit_of(samples: int) -> Unit:
    return Unit("00000-0000000", "shard", 0, 0, 0, samples, 0, 0)


@pytest.mark.parametrize("seed", range(40))
def test_an_inquiry_finds_exactly_the_poison_whatever_else_happens_once(seed):
    """Any set of samples that always kill, and accidents, of which none meets the same sample alone twice."""
    rng = random.Random(seed)
    samples = rng.randint(1, 70)
    poison = set(rng.sample(range(samples), rng.randint(0, min(samples, 6))))
    inquiry = Inquiry(Task(unit_of(samples)))
    accidents, tried, deaths = set(), 0, 0
    while not inquiry.finished:
        first, last = inquiry.suspects[-1]
        accident = rng.random() < 0.2 and (first, last) not in accidents
        if accident:
            accidents.add((first, last))
        tried += 1
        if accident or poison & set(range(first, last)):
            deaths += 1
            inquiry.died()
        else:
            inquiry.survived()
    assert set(inquiry.poison) == poison
    assert len(inquiry.poison) == len(poison)
    assert tried <= 2 * samples + DEATHS * samples
    if not accidents:
        assert deaths <= len(poison) * (samples.bit_length() + DEATHS)


# ---- on Ray


@dataclass
class Station:
    """Runs on the session's cluster, and an undisturbed one to compare them with."""

    base: Path
    shards: str
    calm: Path
    address: str

    def job(self, name: str, **compute: int) -> Path:
        compute = {"batch_size": 1, "unit_size": 3, "actors": 2} | compute
        return write_job(self.base / f"{name}.yaml", self.shards, self.base / name, 8, **compute)

    def run(self, name: str, **compute: int) -> int:
        """`kintsugi run` in this process; its exit code."""
        return command(self.job(name, **compute), self.address)

    def actor(self, name: str, commits: int, rng: np.random.Generator) -> int:
        """The process of some actor at a random moment, after so many units."""
        while not (found := actors()) or len(list(self.base.glob(f"{name}/commits/*.json"))) < commits:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        return int(rng.choice(actors() or found))

    def check(self, name: str) -> None:
        """The run is as the undisturbed one."""
        outcome = Outcome("Ray", [name], codes=[0])
        outcome.compare(self.base / name, self.calm)
        assert outcome.clean, outcome


def command(job: Path, address: str) -> int:
    return cli.app(["run", str(job), "--address", address], standalone_mode=False) or 0


def actors() -> list[int]:
    """Process ids of the workers on clusters of this process."""
    return [process for process, name in descendants(os.getpid()) if name.startswith("ray::RayWorker")]


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Station:
    import ray

    base = tmp_path_factory.mktemp("station")
    address = ray.get_runtime_context().gcs_address
    found = Station(base, write_shards(base / "shards", shards=3, images=6), base / "calm", address)
    assert command(found.job("calm"), "none") == 0
    return found


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Another thread does something; what it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act)
        yield
        acting.result()


@pytest.mark.parametrize("seed", range(5))
def test_killed_actors_leave_no_trace(station, seed):
    rng, name = np.random.default_rng(seed), f"killed-{seed}"

    def kill() -> None:
        for commits in sorted(rng.integers(0, 5, rng.integers(1, 3)).tolist()):
            os.kill(station.actor(name, commits, rng), signal.SIGKILL)

    with meanwhile(kill):
        assert station.run(name) == 0
    station.check(name)


@pytest.mark.parametrize("seed", range(2))
def test_a_frozen_actor_is_replaced_and_may_wake_up_late(station, monkeypatch, seed):
    rng, name = np.random.default_rng(seed), f"frozen-{seed}"
    monkeypatch.setattr(executors, "FROZEN_SECONDS", 3.0)

    def freeze() -> None:
        frozen = station.actor(name, int(rng.integers(0, 3)), rng)
        os.kill(frozen, signal.SIGSTOP)
        time.sleep(rng.uniform(2, 6))
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGCONT)

    with meanwhile(freeze):
        assert station.run(name) == 0
    station.check(name)


@pytest.mark.parametrize(
    ("name", "signals", "code"),
    [
        ("kill-9", [signal.SIGKILL], -signal.SIGKILL),
        ("sigterm", [signal.SIGTERM], 130),
        ("ctrl-c-twice", [signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_the_same_command_continues_after_its_driver_ended(station, name, signals, code):
    rng = np.random.default_rng(signals[0])
    arguments = ["run", str(station.job(name)), "--address", station.address]
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", *arguments], start_new_session=True, stdout=subprocess.DEVNULL
    )
    station.actor(name, int(rng.integers(0, 3)), rng)
    for number in signals:
        os.killpg(driver.pid, number)
        time.sleep(rng.uniform(0, 0.3))
    assert driver.wait(60) == code
    assert station.run(name) == 0
    station.check(name)


def test_poison_is_found_by_bisection_and_alone_recorded_as_failed(station, monkeypatch):
    """Two samples of one unit end every process that restores them; an accident ends another unit's."""
    poison, unlucky = {"image_0006", "image_0008"}, "image_0013"

    class Poisoned(executors.RayWorker):
        def __init__(self, job, run, device):
            super().__init__(job, run, device)
            stage, accident = self.worker.stage, Path(run, "accident")
            original = stage.run

            def run_or_die(keys, *samples):
                if poison & set(keys):
                    os._exit(1)
                if unlucky in keys and not accident.exists():
                    accident.touch()
                    os._exit(1)
                return original(keys, *samples)

            stage.run = run_or_die

    monkeypatch.setattr(executors, "RayWorker", Poisoned)
    assert station.run("poison", attempts=1) == cli.EXIT_SOME_FAILED
    calm, found = (rows(station.base / name) for name in ("calm", "poison"))
    assert {key for key, row in found.items() if row["status"] == "failed"} == poison
    assert all("WorkerKilled" in found[key]["error"] for key in poison)
    assert {key: row for key, row in found.items() if key not in poison} == {
        key: row for key, row in calm.items() if key not in poison
    }


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    found = [row for file in folder.glob("data/*.parquet") for row in pq.read_table(file).to_pylist()]
    assert len(found) == 18
    return {row["key"]: row for row in found}
