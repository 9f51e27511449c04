"""Shards, jobs and one Ray cluster for the whole session."""

import base64
import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from skimage.transform import resize

from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.location import filesystem

SIZE = 32


LONGEST = ("test_cluster", "test_aggregate", "test_faults", "test_run")
"""Files that begin. The Ray of test_cluster starts first: the job agent of a machine's first Ray gets the
port that `kintsugi submit` is told; test_aggregate, which has no Ray, lets it.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `pytest -n 2 --dist loadfile` a file has one process, which makes its fixtures once."""
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


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """A crop of a photograph, (size, size, 3) uint8, different for each number."""
    photograph = resize(data.astronaut(), (128, 128), anti_aliasing=True)
    rng = np.random.default_rng(number)
    top, left = rng.integers(0, 128 - size + 1, 2)
    return (photograph[top : top + size, left : left + size] * 255).round().astype(np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


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


@pytest.fixture
def make_job(shards: list[Path], tmp_path: Path) -> Callable[..., Job]:
    """A job on small shards; keyword arguments replace whole fields."""

    def make(**fields: Any) -> Job:
        values: dict[str, Any] = {
            "data": {"shards": [str(s) for s in shards], "size": SIZE},
            "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.02},
            "sampler": {"name": "conjugate", "steps": 2, "w": 15},
            "metrics": ["psnr", "ssim"],
            "compute": {"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1},
            "output": str(tmp_path / "run"),
        }
        return Job.model_validate(values | fields)

    return make


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """One local Ray with two cores for all tests that need it; its address."""
    import ray

    # Ray switches its tokens on itself, but only where it is not told to after it was imported.
    os.environ.pop("RAY_AUTH_MODE", None)
    # Not in pytest's folder: paths of sockets have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
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


def assert_self_contained(html: str) -> None:
    """A page names no address and may run one script, its own."""
    assert "http://" not in html
    assert "https://" not in html
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html
    )


class Browser:
    """A headless Chromium in which no name resolves, driven by its DevTools protocol over two pipes."""

    def __init__(self, profile: Path):
        program = shutil.which("chromium") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("no Chromium is installed")
        theirs, self.commands = os.pipe()
        self.answers, ours = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [program, *options, rules, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", *command, "about:blank"],
            pass_fds=(theirs, ours),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        self.number, self.waiting, self.session = 0, b"", {}
        self.console: list[str] = []
        self.loaded = False
        (page,) = (t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command; what happens before it is noted."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.waiting:
            part = os.read(self.answers, 1 << 20)
            assert part, "the browser is gone"
            self.waiting += part
        content, _, self.waiting = self.waiting.partition(b"\0")
        found = json.loads(content)
        if found.get("method") == "Log.entryAdded":
            self.console.append(found["params"]["entry"]["text"])
        if found.get("method") == "Runtime.exceptionThrown":
            self.console.append(found["params"]["exceptionDetails"]["text"])
        self.loaded |= found.get("method") == "Page.loadEventFired"
        return found

    def open(self, file: Path, place: str = "", width: int = 1200) -> None:
        """Load a page; the console is that of this page."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        for url in ("about:blank", file.as_uri() + place):  # another place in the same page loads nothing
            self.console.clear()
            self.loaded = False
            self("Page.navigate", url=url)
            while not self.loaded:
                self.message()

    def evaluate(self, script: str) -> Any:
        found = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def mouse(self, kind: str, x: float, y: float, pressed: bool) -> None:
        button = {"button": "left", "buttons": int(pressed), "clickCount": 1}
        self("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **button)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        os.close(self.commands)
        os.close(self.answers)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("chromium"))
    yield found
    found.close()
