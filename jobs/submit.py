"""Send a job to a running Ray cluster through Ray Jobs."""

import tempfile
from pathlib import Path

import yaml
from rich.console import Console

from pipeline.job import Job, JobError

JOB_SERVER_PORT = 8265


def submit_job(job: Job, cluster: Path | None, address: str | None, wait: bool, console: Console) -> int:
    """Submit, and follow the output if asked; returns the exit code of the job (0 if not waited for).

    Raises:
        JobError: neither cluster nor address given, or no job server there.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    if (cluster is None) == (address is None):
        raise JobError("submit: give either --cluster cluster.yaml or --address http://HOST:8265")
    address = address or head_address(cluster)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise JobError(f"submit: no Ray job server at {address}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        submission = client.submit_job(
            entrypoint="kintsugi run job.yaml --address auto", runtime_env={"working_dir": folder}
        )
    console.print(f"submitted {submission} to {address}", highlight=False)
    if not wait:
        return 0
    import asyncio

    async def follow() -> None:
        async for text in client.tail_job_logs(submission):
            console.print(text, end="", markup=False, highlight=False)

    asyncio.run(follow())
    info = client.get_job_info(submission)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    console.print(f"{submission}: {info.status}: {info.message}", markup=False, highlight=False)
    return info.driver_exit_code or 1


def head_address(cluster: Path | None) -> str:
    """The job server of the cluster that a launcher file describes."""
    from ray.autoscaler.sdk import get_head_node_ip

    try:
        return f"http://{get_head_node_ip(str(cluster))}:{JOB_SERVER_PORT}"
    except Exception as error:  # the launcher raises whatever its cloud's library raises
        raise JobError(f"submit: no head node for {cluster}: {error}; is it up (`ray up`)?") from error
