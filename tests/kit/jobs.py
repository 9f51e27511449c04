"""Jobs by the command line, and by the executors."""

import hashlib
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from kintsugi.jobs.cli import app, main
from kintsugi.pipeline.analysis.rows import committed
from kintsugi.pipeline.execution.commit import schema_of
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.job import Job

runner = CliRunner()


def kintsugi(*arguments: str | Path):
    result = runner.invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_job(file: Path, job: Job) -> Path:
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return file


def told(*arguments: str | Path) -> tuple[int, str]:
    """The exit code of the whole program, in this process, and all that it prints."""
    printed = io.StringIO()
    before, sys.argv = sys.argv, ["kintsugi", *map(str, arguments)]
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            main()
    except SystemExit as end:
        return int(end.code or 0), printed.getvalue()
    finally:
        sys.argv = before
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0, printed.getvalue()


def forked(log: Path, *arguments: str | Path) -> int:
    """The process of the whole program, forked off this one, which has imported what it needs; its output."""
    if child := os.fork():
        return child
    code = 70
    try:
        code, output = told(*arguments)
        log.write_text(output)
    finally:
        os._exit(code)


def execute(job: Job, executor: Callable[..., Any] = in_process, *extra: Any) -> Run:
    run = open_or_plan(job)
    for _ in executor([Part(run, list(run.outstanding()))], Live(), *extra):
        pass
    return run


def rows(run: Run) -> list[dict[str, Any]]:
    return [row for table, _ in committed(run, schema_of(run.job).names) for row in table.to_pylist()]


def digests(run: Run) -> dict[str, str]:
    return {
        f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted((run.folder / "data").iterdir())
    }
