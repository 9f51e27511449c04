"""`kintsugi submit`: a job on a running cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kintsugi.errors import JobError
from kintsugi.jobs.options import CommandsOption, SetOption
from kintsugi.jobs.terminal import EXIT_SOME_FAILED, console, errors

ClusterOption = Annotated[
    Path | None, typer.Option(help="The cluster.yaml that `ray up` started; its head is asked.")
]
ServerOption = Annotated[
    str | None, typer.Option(help="The head's job server, for instance http://127.0.0.1:8265.")
]
FetchOption = Annotated[Path | None, typer.Option(help="The folder for the report. [default: reports/ID]")]
FollowOption = Annotated[
    str | None, typer.Option(metavar="ID", help="Instead: follow a job that was sent before.")
]
StopOption = Annotated[
    str | None, typer.Option(metavar="ID", help="Instead: stop a job; it finishes the units in hand.")
]
PackOption = Annotated[
    str | None,
    typer.Option(metavar="ZIP", help="Instead: write what would be sent, for a RayJob on Kubernetes."),
]


def submit(
    job: Annotated[
        str | None, typer.Argument(help="A job file, or the name of a ready job (`kintsugi list jobs`).")
    ] = None,
    sets: SetOption = None,
    cluster: ClusterOption = None,
    address: ServerOption = None,
    wait: Annotated[bool, typer.Option(help="Follow the job until it ends, and fetch its report.")] = True,
    fetch: FetchOption = None,
    follow: FollowOption = None,
    stop: StopOption = None,
    pack: PackOption = None,
    allow_commands: CommandsOption = False,
) -> None:
    """Send a job, with the code that is here, to a running cluster through Ray Jobs.

    The output must be storage that all nodes share. Ctrl-C leaves the job running.

    Examples:

        kintsugi submit imagenet-sr4 --cluster cluster.yaml --set output=/shared/runs/sr4

        kintsugi submit job.yaml --address http://127.0.0.1:8265 --no-wait

        kintsugi submit --follow raysubmit_AbCdEf --cluster cluster.yaml
    """
    from kintsugi.jobs import cluster as remote
    from kintsugi.pipeline.execution.identity import of_plugins

    if [job, follow, stop].count(None) != 2:
        raise JobError("submit: name a job, or one that was sent before by --follow ID or --stop ID")
    loaded = remote.load_for_cluster(job, sets or []) if job is not None else None
    if loaded is not None and (packages := sorted(set(of_plugins(loaded).values()))):
        errors.print(f"every node of the cluster needs {', '.join(packages)}: plug-ins are not sent")
    if loaded is not None and pack is not None:
        remote.pack(loaded, pack)
        return
    with remote.connected(cluster, address) as client:
        if stop is not None:
            remote.stop(client, stop)
            return
        if loaded is not None:
            follow = remote.submit_job(client, loaded)
            console.print(f"submitted {follow}")
        assert follow is not None
        if not wait:
            return
        place = f"--address {address}" if cluster is None else f"--cluster {cluster}"
        code = remote.follow(client, follow, place, console)
        if code in (0, EXIT_SOME_FAILED):
            try:
                remote.fetch(client, follow, fetch or Path("reports", follow), console)
            except JobError as error:
                errors.print(str(error), style="yellow")
    raise typer.Exit(code)
