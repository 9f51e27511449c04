"""Arguments and options that several commands take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from kintsugi.jobs.files import ready_jobs


def beginning(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """For the completion of a shell: those of the known names that begin so."""
    return lambda incomplete: [name for name in known() if name.startswith(incomplete)]


JobArgument = Annotated[
    str,
    typer.Argument(
        help="A job file, or the name of a ready job (`kintsugi list jobs`), or NAME:VARIANT of either.",
        autocompletion=beginning(ready_jobs),
    ),
]
RunArgument = Annotated[str, typer.Argument(help="A run directory, a path or a URL.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field of the job, such as sampler.w=8 or sampler='{name: ddnm, steps: 5}'; text is "
        "taken as it is; repeatable.",
    ),
]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Do the samples that failed again, and only these.")
]


def consent(given: bool) -> None:
    """Let this process, and those that it starts, run the commands of job files, if that is said."""
    if given:
        os.environ["KINTSUGI_ALLOW_COMMANDS"] = "1"


CommandsOption = Annotated[
    bool,
    typer.Option(
        "--allow-commands",
        callback=consent,
        help="Run the program that the job names by its sampler `external`.",
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TRACKER",
        help="Tell it of progress, numbers, pictures and the report: mlflow, tensorboard, wandb or a "
        "plug-in; repeatable.",
    ),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="auto or ray://HOST:10001: an existing Ray cluster. local: a Ray of its own (the default). "
        "none: no Ray, in this process.",
    ),
]
