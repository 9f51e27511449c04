"""A Ray, and runs on it whose prior needs no network."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from kit.faults import Outcome, write_job, write_shards
from kit.plugins import SITE, python_path, write_mine

from kintsugi.jobs import cli
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.execution.actors import RayWorker, on_ray
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.storage.publish import clear_temporaries

UNITS, SAMPLES = 4, 12
PAUSE = 0.1  # seconds for each sample


@contextmanager
def local_ray(dashboard: bool = False) -> Iterator[Any]:
    """A Ray with two cores, whose actors have the plug-ins of tests; what ray.init returns."""
    # Ray switches its tokens on itself, but only where it is not told to after it was imported.
    os.environ.pop("RAY_AUTH_MODE", None)
    # Not in pytest's folder: paths of sockets have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", python_path(SITE, write_mine(Path(folder, "site"))))
            context = ray.init(
                "local",
                num_cpus=2,
                include_dashboard=dashboard,
                dashboard_port=0,
                log_to_driver=False,
                _temp_dir=folder,
                _system_config={"worker_niceness": 0},  # else actors starve beside other processes
            )
        # As `ray start` does: else a submitted job takes any Ray of this machine.
        Path(folder, "ray_current_cluster").write_text(context.address_info["gcs_address"])
        yield context
        ray.shutdown()


def command(job: Path, address: str) -> int:
    """The exit code of `kintsugi run`, in this process."""
    return cli.app(["run", str(job), "--address", address], standalone_mode=False) or 0


@dataclass
class Station:
    """Runs on a Ray, and an undisturbed one to compare them with."""

    base: Path
    address: str

    def __post_init__(self) -> None:
        self.shards = write_shards(self.base / "shards", shards=2, images=SAMPLES // 2)
        self.calm = self.base / "calm"
        assert command(self.job("calm"), "none") == 0

    def job(self, name: str, **compute: int) -> Path:
        compute = {"batch_size": 1, "unit_size": SAMPLES // UNITS, "actors": 1} | compute
        prior = {"name": "gaussian", "pause": PAUSE}
        return write_job(self.base / f"{name}.yaml", self.shards, self.base / name, prior, **compute)

    def run(self, name: str, **compute: int) -> int:
        """`kintsugi run` in this process; its exit code."""
        return command(self.job(name, **compute), self.address)

    def run_with(self, worker: type[RayWorker], *names: str, **compute: int) -> list[str]:
        """Runs by actors of another class, which they share; returns what was noted."""
        runs = [open_or_plan(load_job(str(self.job(name, **compute)), [])) for name in names]
        live = Live()
        for _ in on_ray([Part(run, list(run.outstanding())) for run in runs], live, self.address, worker):
            pass
        for run in runs:
            clear_temporaries(run.folder)
        return live.notes

    def commits(self, name: str) -> int:
        return len(list(self.base.glob(f"{name}/commits/*.json")))

    def check(self, name: str) -> None:
        """The run is as the undisturbed one."""
        outcome = Outcome("Ray", [name], codes=[0])
        outcome.compare(self.base / name, self.calm)
        assert outcome.clean, outcome
