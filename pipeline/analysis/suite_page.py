"""The page of a suite, and all files beside it."""

import json
import os.path
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import quote

from kintsugi.pipeline.analysis.compare_page import json_value
from kintsugi.pipeline.analysis.report.write import environments
from kintsugi.pipeline.analysis.suite import Entry, Suite
from kintsugi.pipeline.analysis.suite_pictures import Picture, encoded
from kintsugi.pipeline.analysis.suite_plane import plane
from kintsugi.pipeline.analysis.suite_tables import (
    about_ranks,
    about_tests,
    axes,
    latex,
    left_out_runs,
    markdown,
    measures_table,
    overall_table,
    suite_csv,
)
from kintsugi.pipeline.execution.directory import REPORT
from kintsugi.pipeline.storage.location import Location, is_remote
from kintsugi.pipeline.storage.publish import publish_bytes


def write_suite(suite: Suite, entries: Sequence[Entry], folder: Location) -> Location:
    """Everything in a folder: index.html, suite.md, suite.csv, suite.tex and suite.json.

    Args:
        entries: those that were summarised, whose pictures are shown.

    Returns:
        index.html, which holds the pictures and needs no other file.

    Raises:
        JobError: what a run keeps as pictures cannot be shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "suite.json": json.dumps(json_value(asdict(suite)), indent=1, allow_nan=False) + "\n",
        "suite.md": markdown(suite),
        "suite.csv": suite_csv(suite),
        "suite.tex": latex(suite),
        "index.html": render(suite, entries, folder),
    }
    for name, text in texts.items():
        publish_bytes(folder / name, text.encode())
    return folder / "index.html"


def render(suite: Suite, entries: Sequence[Entry], folder: Location) -> str:
    """The page, for this folder."""
    pictures, form = encoded(suite, entries)
    template = environments()["report.html"].get_template("suite.html.jinja")
    return template.render(
        s=suite,
        axes=axes(suite),
        overall=overall_table(suite),
        left_out=left_out_runs(suite),
        about_ranks=about_ranks(suite),
        about_tests=about_tests(suite),
        planes={task.name: plane(task, *axes(suite)) for task in suite.tasks} if suite.perception else {},
        measures={task.name: measures_table(task) for task in suite.tasks},
        rows=by_image(pictures),
        form=form,
        links=[link(entry, folder) for entry in entries],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def by_image(pictures: Sequence[Picture]) -> Mapping[str, Mapping[str, Mapping[str, bytes]]]:
    """By task, key and what is shown, in order."""
    found: dict[str, dict[str, dict[str, bytes]]] = {}
    for one in pictures:
        found.setdefault(one.task, {}).setdefault(one.key, {})[one.label] = one.content
    return found


def link(entry: Entry, folder: Location) -> str | None:
    """Where the report of a run lies, seen from the page; None where there is none beside it."""
    if entry.run is None or is_remote(folder) or is_remote(entry.run.folder):
        return None
    report = entry.run.folder / REPORT / "report.html"
    return quote(os.path.relpath(str(report), str(folder))) if report.exists() else None
