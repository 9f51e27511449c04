"""Shards, jobs and one Ray cluster for the whole session."""

import logging
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.browser import Browser
from kit.plugins import SITE, install_mine, python_path
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.location import Location, at, filesystem

# A console of rich keeps the width that COLUMNS has when it is made, which is when this is first imported.
os.environ.pop("COLUMNS", None)
import_module("kintsugi.jobs.terminal")

LONGEST = ("test_submit", "test_aggregate", "test_faults", "test_run")
"""Files that begin. The Ray of test_submit starts first: the job agent of a machine's first Ray gets the
port that `kintsugi submit` is told; test_aggregate, which has no Ray, lets it.
"""


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes the cluster or the browser is marked so.

    With `pytest -n 2 --dist loadfile` a file has one process, which makes its fixtures once.
    """
    for item in items:
        for fixture, marker in (("ray_cluster", "ray"), ("browser", "browser")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small kernels gain nothing from a second thread, and wait for it when the machine is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which this machine remembers checkpoints: not the one in the user's home."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KINTSUGI_CACHE", str(folder))
        yield folder


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The package of `kit/plugin`, as it would be installed."""
    yield install_mine(monkeypatch, tmp_path / "site")
    sys.modules.pop("kintsugi_mine", None)


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an empty bucket on an S3 server of the tests' own; the environment leads to it.

    Processes that were started before, such as those of a Ray cluster, do not have that environment.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in variables.items():
            environment.setenv(name, value)
        filesystem.cache_clear()
        boto3.client("s3").create_bucket(Bucket="kintsugi-test")
        yield "s3://kintsugi-test"
        filesystem.cache_clear()
    server.stop()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """Where there is nothing yet."""
    if request.param == "folder":
        return tmp_path / "place"
    return at(request.getfixturevalue("s3")) / uuid.uuid4().hex


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three shards of four images each, with labels."""
    folder = tmp_path_factory.mktemp("shards")
    return [
        write_tar(
            folder / f"set-{s:04d}.tar",
            [
                (f"image_{i:03d}.{suffix}", content)
                for i in range(4 * s, 4 * s + 4)
                for suffix, content in (("png", encode(picture(i))), ("cls", str(i).encode()))
            ],
        )
        for s in range(3)
    ]


def job_on(shards: list[Path], place: Path, **fields: Any) -> Job:
    values: dict[str, Any] = {
        "data": {"shards": [str(s) for s in shards], "size": SIZE},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.02},
        "sampler": {"name": "conjugate", "steps": 1, "w": 15},
        "metrics": ["psnr", "ssim"],
        "compute": {"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1},
        "output": str(place),
    }
    return Job.model_validate(values | fields)


@pytest.fixture
def make_job(shards: list[Path], tmp_path: Path) -> Callable[..., Job]:
    """A job on small shards; keyword arguments replace whole fields."""
    return partial(job_on, shards, tmp_path / "run")


@pytest.fixture
def job_file(make_job: Callable[..., Job], tmp_path: Path) -> Path:
    """The file of that job."""
    from kit.jobs import write_job  # which imports the terminal

    return write_job(tmp_path / "job.yaml", make_job())


@pytest.fixture(scope="session")
def first_run(shards: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What that job makes; not to be changed."""
    from kit.jobs import execute

    return Path(str(execute(job_on(shards, tmp_path_factory.mktemp("first") / "run")).folder))


@pytest.fixture
def finished(first_run: Path, tmp_path: Path) -> Run:
    """That job when it is done, to be changed."""
    return Run.open(Path(shutil.copytree(first_run, tmp_path / "run")))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray with two cores for all tests that need it; its address."""
    import ray

    # Ray switches its tokens on itself, but only where it is not told to after it was imported.
    os.environ.pop("RAY_AUTH_MODE", None)
    # Not in pytest's folder: paths of sockets have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("PYTHONPATH", python_path(SITE))  # of the actors
            context = ray.init(
                "local",
                num_cpus=2,
                include_dashboard=True,
                dashboard_port=0,
                log_to_driver=False,
                _temp_dir=folder,
                _system_config={"worker_niceness": 0},  # else actors starve beside other processes
            )
        # As `ray start` does: else a submitted job takes any Ray of this machine.
        Path(folder, "ray_current_cluster").write_text(context.address_info["gcs_address"])
        yield context.dashboard_url
        ray.shutdown()


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
