"""Shards, jobs, a bucket, a browser, and a Ray."""

import logging
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kit.browser import Browser
from kit.plugins import SITE, install_mine, python_path
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.location import Location, at, filesystem

if TYPE_CHECKING:
    from kit.station import Station  # which imports Ray

# A console of rich keeps the width that COLUMNS has when it is made, which is when this is first imported.
os.environ.pop("COLUMNS", None)
import_module("kintsugi.jobs.terminal")

FIRST = (
    "test_submit",
    "test_methods",
    "test_samplers",
    "test_faults",
    "test_actors",
    "test_storm",
    "test_run",
)
"""Files that begin, so that short ones are last. The Ray of test_submit starts before any other: the job
agent of a machine's first Ray gets the port that `kintsugi submit` is told; two files without Ray let it.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    words = "of a test with many cases take N, evenly spread"
    parser.addoption("--few", type=int, metavar="N", help=words)


def spread(items: list[pytest.Item], few: int) -> list[pytest.Item]:
    """Of the cases of each test so many at most."""
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return [item for cases in tests.values() for item in cases[:: -(-len(cases) // few)]]


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes the cluster or the browser is marked so.

    With `pytest -n 3 --dist loadfile` a file has one process, which makes its fixtures once; three share two
    cores, as a file on Ray waits most of the time.
    """
    if few := config.getoption("few"):
        chosen = spread(items, few)
        config.hook.pytest_deselected(items=list(set(items).difference(chosen)))
        items[:] = chosen
    for item in items:
        for fixture, marker in (("ray_cluster", "ray"), ("job_server", "ray"), ("browser", "browser")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    order = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small kernels gain nothing from a second thread, and wait for it when the machine is busy.

    That holds for the commands that tests start, too.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


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


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """A Ray of the file's, with two cores; its address."""
    from kit.station import local_ray

    with local_ray() as context:
        yield context.address_info["gcs_address"]


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, ray_cluster: str) -> Iterator["Station"]:
    from kit.station import Station

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SITE)
        patch.setenv("PYTHONPATH", python_path(SITE))
        yield Station(tmp_path_factory.mktemp("station"), ray_cluster)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
