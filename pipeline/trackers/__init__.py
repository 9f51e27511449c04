"""Trackers: programs that show a job's progress and results beside those of others.

Each file here is one, named as after `--track`, and the only one that imports its library; plug-ins are
entry points of the group `kintsugi.trackers`. A tracker may raise anything at any time: whoever calls it
(`jobs/tracking.py`) says so once and goes on without it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol

from kintsugi.errors import JobError, SpecError
from kintsugi.registry import Registry, choices


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker is told of.

    Attributes:
        id: 16 hexadecimal digits, the same whenever the run is continued.
        name: short, for lists. title: a line. folder: the run directory, a path or a URL.
        config: fields of the job by their names, such as "data.size", and what else results depend on.
    """

    id: str
    name: str
    title: str
    folder: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a run: numbers by name, its contact sheet as PNG if there is one, files of its report."""

    values: Mapping[str, float]
    pictures: bytes | None
    files: Mapping[str, bytes]


class Tracker(Protocol):
    """What `--track` names. Its methods are called in order, all in one thread, which is not the main one."""

    def begin(self, run: Tracked) -> str:
        """A run begins, or is continued; returns where it can be seen."""

    def progress(self, done: int, values: Mapping[str, float]) -> None:
        """How far it is: samples that are committed, and finite numbers by name."""

    def finish(self, done: int, outcome: Outcome | None) -> None:
        """It ends with a report; None: it was interrupted, or could not go on."""


def built_in(name: str) -> Tracker:
    """The tracker of a file here; raises a JobError if its library is not installed."""
    try:
        module = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise JobError(
            f"--track {name}: {error.name} is not installed; `pip install 'kintsugi[{name}]'` does that"
        ) from error
    made: Tracker = module.TRACKER()
    return made


BUILTIN: dict[str, Callable[[], Tracker]] = {
    name: partial(built_in, name) for name in ("mlflow", "tensorboard", "wandb")
}
REGISTRY = Registry("tracker", BUILTIN, field="--track")


def build(name: str) -> Tracker:
    """The tracker of this name, with its library imported.

    Raises:
        JobError: there is none, or its library cannot be imported; the message says what to install.
    """
    try:
        if (factory := REGISTRY.get(name)) is None:
            raise JobError(f"--track {name}: no such tracker; choose from {choices(REGISTRY)}")
        return factory()
    except SpecError as error:
        raise JobError(str(error)) from error
    except (ImportError, SystemExit) as error:  # a library that is there, and does not fit to others
        raise JobError(f"--track {name}: {error}") from error
