"""Send a job to a running Ray cluster through Ray Jobs."""

import asyncio
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from pipeline.job import Job, JobError

START_SECONDS = 60


def submit_job(job: Job, cluster: Path | None, address: str | None, wait: bool, console: Console) -> int:
    """Submit, and follow the output if asked; returns the exit code of the job (0 if not waited for).

    Raises:
        JobError: neither cluster nor address given, or no job server there.
    """
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if (cluster is None) == (address is None):
        raise JobError("submit: give either --cluster cluster.yaml or --address http://HOST:8265")
    shards = [job.data.shards] if isinstance(job.data.shards, str) else job.data.shards
    for field, path in [("output", job.output), *(("data.shards", shard) for shard in shards)]:
        if not Path(path).is_absolute() and not path.startswith("builtin:"):
            raise JobError(f"{field}: {path!r} must be absolute: the cluster has another working directory")
    with job_server(cluster, address) as url:
        try:
            client = JobSubmissionClient(url)
        except (ConnectionError, RuntimeError, ValueError, AuthenticationError) as error:
            raise JobError(f"submit: no Ray job server at {url}: {error}") from error
        with tempfile.TemporaryDirectory() as folder:
            content = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
            (Path(folder) / "job.yaml").write_text(content)
            submission = patiently_submit(client, folder)
        console.print(f"submitted {submission} to {url}", highlight=False)
        return follow(client, submission, console) if wait else 0


def patiently_submit(client: Any, folder: str) -> str:
    """Submit; a cluster that has just started may need a while until its job agent answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            submission: str = client.submit_job(
                entrypoint="kintsugi run job.yaml --address auto", runtime_env={"working_dir": folder}
            )
            return submission
        except RuntimeError as error:
            if "try again" not in str(error) or time.monotonic() > deadline:
                raise JobError(f"submit: {error}") from error
            time.sleep(1)


def follow(client: Any, submission: str, console: Console) -> int:
    """Print a job's output until it ends; returns its exit code."""

    async def tail() -> None:
        async for text in client.tail_job_logs(submission):
            console.print(text, end="", markup=False, highlight=False)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        console.print(f"{submission} goes on; stop it with `ray job stop {submission}`", highlight=False)
        raise
    info = client.get_job_info(submission)
    if info.status == "SUCCEEDED":
        return 0
    console.print(f"{submission}: {info.status}: {info.message}", markup=False, highlight=False)
    return info.driver_exit_code or 1


@contextmanager
def job_server(cluster: Path | None, address: str | None) -> Iterator[str]:
    """The job server's address; that of a launcher file's cluster is reached through a tunnel.

    The dashboard of such a cluster listens on its own loopback, so `ray dashboard` forwards it.
    """
    if address is not None:
        yield address
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["ray", "dashboard", str(cluster), "--port", str(port)]
    tunnel = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening(port):
            if tunnel.poll() is not None or time.monotonic() > deadline:
                tunnel.kill()
                said = tunnel.stdout.read().strip().splitlines() if tunnel.stdout else []
                raise JobError(
                    f"submit: no way to the head of {cluster} (is it up? `ray up {cluster}`): "
                    + " ".join(said[-3:])
                )
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        tunnel.terminate()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
