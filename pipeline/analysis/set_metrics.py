"""The metrics of sets and clips of a run, of what was committed: kept, and computed anew when it changes."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import TypeAdapter

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.clips import clip_metrics
from kintsugi.pipeline.execution.commit import Commit, read_features, read_rows
from kintsugi.pipeline.execution.directory import REPORT
from kintsugi.pipeline.execution.identity import differing, of_metrics, recorded
from kintsugi.pipeline.execution.reference import reference_of
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics import CLIPS, SETS
from kintsugi.pipeline.metrics.features import arrays
from kintsugi.pipeline.metrics.reference import Reference
from kintsugi.pipeline.metrics.sets import SetResult, evaluate
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes

VERSION = 3  # of what these numbers are; a change makes all that is kept of earlier ones stale


@dataclass(frozen=True)
class Kept:
    """The results of a state, as they are kept."""

    state: str
    sets: dict[str, SetResult]


KEPT = TypeAdapter(Kept)


def set_metrics(run: Run) -> dict[str, SetResult]:
    """The metrics of sets and clips that the run's job names, by name, of what is committed; else {}.

    They are kept in report/sets.json, and computed again when anything is that they depend on.

    Raises:
        JobError: a file is not the one that was committed.
    """

    names = [name for name in run.job.metrics if name in SETS or name in CLIPS]
    if not names:
        return {}
    # Without what grows with the samples.
    committed = [replace(commit, sample_seconds=[]) for _, commit in run.commits() if commit is not None]
    reference = reference_of(run.job.reference, run.folder)
    file = run.folder / REPORT / "sets.json"
    state = state_of(run, names, committed, reference)
    known = None if state is None else kept(file, state, names)
    if known is not None:
        return known
    n = sum(commit.rows - commit.failed for commit in committed)
    jpeg, sides = 0, set()
    for commit in committed:
        rows = read_rows(run.folder, commit, ["source", "status"]).to_pylist()
        jpeg += sum(row["source"] is not None and row["source"].startswith("JPEG") for row in rows)
        sides |= {side for row in rows if row["status"] == "ok" for side in sides_in(row["source"] or "")}

    def blocks(columns: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, np.ndarray]]]:
        for commit in committed:
            table = read_features(run.folder, commit, ["key", *columns])
            if table is not None:
                yield table["key"].to_pylist(), arrays(table)

    changed = differing(recorded(run.folder), of_metrics(names))
    others = [f"computed with another version than the run was begun with: {one}" for one in changed]
    warnings = list(others)
    if jpeg:
        which = "restored images are" if run.job.is_score else "inputs were compressed as"
        warnings.append(f"{jpeg} of the {which} JPEG, which leaves its marks in features")
    if run.job.data.fit != "exact" and not reference.paired:
        warnings.append("the images were resized here (data.fit), those of the reference perhaps otherwise")
    size = run.job.data.size
    if run.job.is_score:  # which are of any size
        size = sides.pop() if len(sides) == 1 else 0
    of_sets = [name for name in names if name in SETS]
    found = evaluate(of_sets, n, blocks, reference, size, warnings)
    found |= clip_metrics(run, committed, [name for name in names if name in CLIPS], others)
    found = {name: found[name] for name in names}
    if state is not None and all(result.value is not None for result in found.values()):
        publish_bytes(file, records.sealed(asdict(Kept(state, found))))
    return found


def sides_in(source: str) -> list[int]:
    """Width and height in what a row says of its file, such as "PNG RGB 256x256"."""
    found = re.search(r"(\d+)x(\d+)", source)
    return [] if found is None else [int(found[1]), int(found[2])]


def state_of(run: Run, names: Sequence[str], committed: Sequence[Commit], reference: Reference) -> str | None:
    """A hash of all that a run's set metrics depend on; None where the reference cannot be read."""
    try:
        against = [reference.digest(SETS[name]) for name in names if name in SETS]
    except JobError:
        return None
    rows = [(commit.unit, commit.data_sha256, commit.features_sha256) for commit in committed]
    parts = [VERSION, run.config_hash, names, against, rows]
    if plugins := of_metrics(names):
        parts.append(plugins)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def kept(file: Location, state: str, names: Sequence[str]) -> dict[str, SetResult] | None:
    """The results in a file if they are as they were written, and of this state."""
    try:
        stored = records.typed(KEPT, records.read(file), file)
    except (OSError, JobError):
        return None
    beside = {f"{name}_infinity" for name in names}
    if list(stored.sets) != list(names) or any(one.extra.keys() - beside for one in stored.sets.values()):
        return None
    return stored.sets if stored.state == state else None
