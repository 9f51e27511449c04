"""`kintsugi suite --track`: tells trackers of its runs and its page when they are done, of each once."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version

from pydantic import TypeAdapter

from kintsugi.jobs.suite_file import Suite
from kintsugi.jobs.terminal import console
from kintsugi.jobs.tracking import about_run, identity, outcome_of, public, tracked
from kintsugi.pipeline.execution.directory import METRICS, REPORT
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.pipeline.trackers import Outcome, Tracked

TOLD = "tracked.json"
"""In the suite's folder, by tracker and place: the SHA-256 of the numbers of which it was told."""
KIND = TypeAdapter(dict[str, dict[str, str]])
PAGE = ("index.html", "suite.md", "suite.csv", "suite.tex", "suite.json")

Told = tuple[Tracked, int, Outcome]
"""As of `Tracking.start`."""


def tell_all(suite: Suite, folder: Location, runs: Sequence[Run], names: Sequence[str]) -> None:
    """Tell trackers of runs that have a report, one after another, and then of the suite's page.

    One that fails or does not answer is told no more; the next command goes on with what it was not told.

    Raises:
        JobError: the record of what they were told is damaged.
    """
    file = folder / TOLD
    told = records.typed(KIND, records.read(file), file) if file.exists() else {}
    for name in dict.fromkeys(names):
        known = told.setdefault(name, {})
        for place, numbers, of in places(suite, folder, runs):
            digest = hashlib.sha256(numbers.read_bytes()).hexdigest()
            if known.get(place) == digest:
                continue
            with console.status(f"{name}: {place}"), tracked([name]) as tracking:
                tracking.start(*of())
            if not tracking.heard:
                break
            known[place] = digest
            publish_bytes(file, json.dumps(told, indent=1).encode())


def places(
    suite: Suite, folder: Location, runs: Sequence[Run]
) -> Iterator[tuple[str, Location, Callable[[], Told]]]:
    """Of each run, and at last of the suite: its name, the file with its numbers, and what is told of it."""
    for run in runs:
        place = f"{run.folder.parent.name}/{run.folder.name}"
        yield place, run.folder / REPORT / METRICS, partial(told_of_run, run, place, folder)
    yield "suite", folder / "suite.json", partial(told_of_suite, suite, folder, runs)


def told_of_run(run: Run, place: str, folder: Location) -> Told:
    """A run under its task and method, with its suite among its fields."""
    about = about_run(run)
    about = replace(about, name=place, config={**about.config, "suite": str(folder)})
    return about, *outcome_of(run.folder / REPORT / "report.html")


def told_of_suite(suite: Suite, folder: Location, runs: Sequence[Run]) -> Told:
    """The suite, with what its file says and its page; the numbers are in its runs."""
    config = public({**suite.file.model_dump(mode="json"), "kintsugi": version("kintsugi")})
    about = Tracked(identity(str(folder)), folder.name, suite.wanted.title, str(folder), config)
    done = sum(run.progress().rows for run in runs)
    return about, done, Outcome({}, None, {name: (folder / name).read_bytes() for name in PAGE})
