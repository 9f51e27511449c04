"""Send a job to a running Ray cluster through Ray Jobs, follow it, and fetch its report.

The code that runs there is the code that runs here: it travels with the job, as Ray's working directory.
The cluster's machines hold the libraries that pyproject.toml names, and no Kintsugi of their own.
"""

import asyncio
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kintsugi.errors import JobError
from kintsugi.jobs import send
from kintsugi.jobs.files import check, files_of, located, read_values
from kintsugi.jobs.terminal import EXIT_INTERRUPTED
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.publish import publish
from kintsugi.samplers.external import consent_given

ENTRYPOINT = "exec python -m kintsugi run job.yaml --address auto"  # no shell between Ray's signals and it
ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "600"}  # a stopped job may finish the units in hand
SIZE_LIMIT = 500 << 20  # bytes of a working directory that Ray keeps for its nodes
START_SECONDS = 60


@contextmanager
def connected(cluster: Path | None, address: str | None) -> Iterator[Any]:
    """A client of the job server of a launcher file or at an address; raises a JobError if there is none."""
    if (cluster is None) == (address is None):
        raise JobError("submit: give either --cluster cluster.yaml or --address http://HOST:8265")
    use_token()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    with job_server(cluster, address) as url:
        try:
            client = JobSubmissionClient(url)
        except AuthenticationError as error:
            raise JobError(f"submit: {url} wants another token: {error}") from error
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise JobError(f"submit: no Ray job server at {url}: {error}") from error
        yield client


def use_token() -> None:
    """Have Ray send its token, which it does in this mode only; must happen before Ray is imported."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would prefer them to what was asked for
        os.environ.pop(name, None)


def load_for_cluster(name: str, overrides: list[str]) -> Job:
    """A job that the cluster can do, too; raises a JobError if it is none, or names a relative path."""
    values, source = read_values(name, overrides)
    files = [(field, spec[parameter]) for field, spec, parameter in files_of(values)]  # as they are written
    job = check(values, source)
    both = (("data.shards", job.data.shards), ("data.truth", job.data.true_images or []))
    shards = [(field, one) for field, of in both for one in ([of] if isinstance(of, str) else of)]
    paths = [("output", job.output), *shards, *files]
    for field, text in paths:
        if not (Path(text).is_absolute() or "://" in text or text.startswith("builtin:")):
            raise JobError(f"{field}: {text!r} must be absolute: the cluster has another working directory")
    return job


def gather(job: Job | None, folder: Path) -> None:
    """Put code, and a job, into a folder that can be the working directory of a cluster.

    The package is copied from where this process has it, a checkout or an installation. Tests, documents,
    benchmarks, runs and .git lie outside of it and stay here.

    Raises:
        JobError: they are more than Ray would take.
    """
    shutil.copytree(
        Path(__file__).parents[1],
        folder / "kintsugi",
        ignore=shutil.ignore_patterns("__pycache__", ".*"),
    )
    if job is not None:
        (folder / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    sizes = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    if sum(sizes.values()) > SIZE_LIMIT:
        largest = max(sizes, key=lambda file: sizes[file]).relative_to(folder)
        raise JobError(
            f"submit: the code is {sum(sizes.values()) >> 20} MiB, and Ray takes {SIZE_LIMIT >> 20}; "
            f"the largest file is {largest}: keep checkpoints elsewhere and name them by prior.path"
        )


def pack(job: Job, target: str) -> None:
    """Write what `submit_job` would send as one zip, for a RayJob; raises a JobError for a bad URL."""
    file = located("--pack", target)
    with tempfile.TemporaryDirectory() as folder:
        gather(job, Path(folder) / "kintsugi")
        archive = shutil.make_archive(str(Path(folder) / "archive"), "zip", folder, "kintsugi")
        with publish(file) as temporary:
            shutil.copyfile(archive, temporary)


def submit_job(client: Any, job: Job) -> str:
    """Send a job; returns its submission id."""
    with tempfile.TemporaryDirectory() as folder:
        gather(job, Path(folder))
        return submit(client, ENTRYPOINT, folder, {"output": job.output})


def submit(client: Any, entrypoint: str, folder: str, metadata: dict[str, str]) -> str:
    """Submit; a cluster that has just started may need a while until its job agent answers."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            submission: str = client.submit_job(
                entrypoint=entrypoint,
                runtime_env={"working_dir": folder, "env_vars": ENVIRONMENT | consent_given()},
                metadata=metadata,
            )
            return submission
        except RuntimeError as error:
            if "try again" not in str(error) or time.monotonic() > deadline:
                raise JobError(f"submit: {error}") from error
            time.sleep(1)


def follow(client: Any, submission: str, place: str, console: Console) -> int:
    """Print a job's output until it ends, or until Ctrl-C, which leaves it running; returns its exit code.

    Args:
        place: the option that names the cluster, for the message.

    Raises:
        JobError: no such job, or the connection broke; the job goes on.
    """
    import aiohttp

    async def tail() -> None:
        async for text in client.tail_job_logs(submission):
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    goes_on = (
        f"the job goes on:\n  follow it  kintsugi submit --follow {submission} {place}\n"
        f"  stop it    kintsugi submit --stop {submission} {place}"
    )
    try:
        client.get_job_status(submission)
    except RuntimeError as error:
        raise JobError(f"submit: {error}") from error
    try:
        asyncio.run(tail())
        info = client.get_job_info(submission)
    except KeyboardInterrupt:
        console.print(f"\n{goes_on}", markup=False, highlight=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    except (RuntimeError, OSError, aiohttp.ClientError) as error:
        raise JobError(f"submit: {error}; {goes_on}") from error
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        console.print(f"{submission} was stopped; the same job continues", highlight=False)
        return EXIT_INTERRUPTED
    if info.status != "FAILED":
        raise JobError(f"submit: the connection ended while the job was {info.status}; {goes_on}")
    if info.driver_exit_code is None:  # it did not even start
        console.print(f"{submission}: {info.message}", markup=False, highlight=False)
    return info.driver_exit_code or 1


def stop(client: Any, submission: str) -> None:
    """Have a job finish the units in hand and end; raises a JobError if there is no such job."""
    try:
        client.stop_job(submission)
    except RuntimeError as error:
        raise JobError(f"submit: {error}") from error


def fetch(client: Any, submission: str, target: Path, console: Console) -> None:
    """Copy the report of a job that has ended into a folder.

    A second small job prints its files into its log. This needs nothing but the job server, whatever
    storage the output is on, and never mistakes a folder of this machine for the cluster's.

    Raises:
        JobError: the report did not come through; it stays in the output.
    """
    output = client.get_job_info(submission).metadata["output"]
    with tempfile.TemporaryDirectory() as folder:
        gather(None, Path(folder))
        sending = submit(client, f"python -m kintsugi.jobs.send {shlex.quote(output)}", folder, {})
        while not client.get_job_status(sending).is_terminal():
            time.sleep(0.2)
    log = client.get_job_logs(sending)
    try:
        files = send.receive(log)
    except ValueError as error:
        raise JobError(f"submit: the report stays in {output}/report: {error}") from error
    if client.get_job_status(sending) != "SUCCEEDED" or not files:
        raise JobError(f"submit: the report stays in {output}/report: {log[-2000:]}")
    target.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (target / name).write_bytes(content)
    console.print(f"report: {target / 'report.html'}", highlight=False, soft_wrap=True)


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
    command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", str(cluster), "--port", str(port)]
    tunnel = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listening(port):
            if tunnel.poll() is not None or time.monotonic() > deadline:
                end(tunnel)
                said = tunnel.stdout.read().strip().splitlines() if tunnel.stdout else []
                raise JobError(
                    f"submit: no way to the head of {cluster} (is it up? `ray up {cluster}`): "
                    + " ".join(said[-3:])
                )
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(tunnel)


def end(tunnel: subprocess.Popen[str]) -> None:
    """Ray's command and its ssh, which are a group of their own."""
    with suppress(ProcessLookupError):
        os.killpg(tunnel.pid, signal.SIGTERM)


def listening(port: int) -> bool:
    """Whether something answers at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
