"""The command line: `kintsugi --help`."""

from __future__ import annotations

import io
import logging
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from typer.exceptions import TyperException

from kintsugi.errors import JobError
from kintsugi.jobs.calibrate import calibrate
from kintsugi.jobs.compare import compare
from kintsugi.jobs.list import list_
from kintsugi.jobs.plan import plan
from kintsugi.jobs.query import query
from kintsugi.jobs.report import report
from kintsugi.jobs.run import run
from kintsugi.jobs.score import score
from kintsugi.jobs.shard import shard
from kintsugi.jobs.stats import stats
from kintsugi.jobs.status import status
from kintsugi.jobs.submit import submit
from kintsugi.jobs.suite import suite
from kintsugi.jobs.sweep import sweep
from kintsugi.jobs.terminal import EXIT_INTERRUPTED, console, errors, fail
from kintsugi.jobs.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def show_version(wanted: bool) -> None:
    """Print it and end, if it is asked for."""
    if wanted:
        console.print(f"kintsugi {version('kintsugi')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version and end.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Restore image datasets with diffusion and flow priors, and measure how well it was done."""


COMMANDS: tuple[Callable[..., None], ...] = (
    run,
    plan,
    status,
    report,
    verify,
    list_,
    shard,
    submit,
    score,
    stats,
    sweep,
    calibrate,
    suite,
    compare,
    query,
)
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)


def main() -> None:
    """The `kintsugi` command: clear errors instead of tracebacks for what a user can mend."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than are written here
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, also while nothing is in hand
    try:
        # Not standalone: typer would exit with 2 for a wrong option, which here means failed samples.
        sys.exit(app(standalone_mode=False))
    except JobError as error:
        fail(str(error))
    except TyperException as error:
        fail(error.format_message())
    except OSError as error:
        fail(f"storage: {error}")
    except (KeyboardInterrupt, typer.Abort):
        errors.print("interrupted; the same command does what is missing")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
