"""Metrics of a set of restored images, from what was committed of each: one pass, with flat memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from pipeline import records
from pipeline.errors import JobError
from pipeline.metrics import SETS, TRUTH, SetMetric
from pipeline.metrics.distances import GROUPS, Estimate, Sample
from pipeline.metrics.moments import Moments
from pipeline.storage import Location, publish

if TYPE_CHECKING:
    from pipeline.commit import Commit
    from pipeline.metrics.reference import Reference
    from pipeline.run import Run

FEW = 2048  # samples, of which Inception's covariance has no full rank
PAIRS_MOST = 10_000  # samples of which all pairs are compared
VERSION = 2  # of what these numbers are; a change makes all that is kept of earlier ones stale

Blocks = Callable[[Sequence[str]], Iterator[tuple[list[str], Mapping[str, np.ndarray]]]]
"""Columns of features to blocks: keys, and (n, values) by column. Each call begins anew."""


@dataclass(frozen=True)
class SetResult:
    """A number for a whole set.

    Attributes:
        value: None where there is none; the last warning says why.
        low, high: its 95 % interval, None where it was not computed.
        n: images that entered it.
        warnings: why it must be read with care.
        reference: what the set was compared with.
        extra: further numbers beside it, such as `fid_infinity`.
        reference_sha256: of the reference's statistics, None of the run's own true images.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    warnings: tuple[str, ...]
    reference: str
    extra: dict[str, float]
    reference_sha256: str | None = None

    __pydantic_config__: ClassVar = ConfigDict(allow_inf_nan=False, extra="forbid")


@dataclass(frozen=True)
class Kept:
    """The results of a state, as they are kept."""

    state: str
    sets: dict[str, SetResult]


KEPT = TypeAdapter(Kept)


def set_metrics(run: Run) -> dict[str, SetResult]:
    """The set metrics that the run's job names, by name, of what is committed; {} where it names none.

    They are kept in report/sets.json, and computed again when anything is that they depend on.

    Raises:
        JobError: a file is not the one that was committed.
    """
    from pipeline.commit import read_features, read_rows
    from pipeline.metrics.features import arrays
    from pipeline.metrics.reference import reference_of

    names = [name for name in run.job.metrics if name in SETS]
    if not names:
        return {}
    # Without what grows with the samples.
    committed = [replace(commit, sample_seconds=[]) for _, commit in run.commits() if commit is not None]
    reference = reference_of(run.job.reference, run.folder)
    file = run.folder / "report" / "sets.json"
    state = state_of(run, names, committed, reference)
    known = None if state is None else kept(file, state, names)
    if known is not None:
        return known
    n = sum(commit.rows - commit.failed for commit in committed)
    jpeg = 0
    for commit in committed:
        sources = read_rows(run.folder, commit, ["source"])["source"].to_pylist()
        jpeg += sum(source is not None and source.startswith("JPEG") for source in sources)

    def blocks(columns: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, np.ndarray]]]:
        for commit in committed:
            table = read_features(run.folder, commit, ["key", *columns])
            if table is not None:
                yield table["key"].to_pylist(), arrays(table)

    warnings = []
    if jpeg:
        warnings.append(f"{jpeg} of the inputs were compressed as JPEG, which leaves its marks in features")
    if run.job.data.fit != "exact" and not reference.paired:
        warnings.append("the images were resized here (data.fit), those of the reference perhaps otherwise")
    found = evaluate(names, n, blocks, reference, run.job.data.size, warnings)
    if state is not None and all(result.value is not None for result in found.values()):
        with publish(file) as temporary:
            temporary.write_bytes(records.sealed(asdict(Kept(state, found))))
    return found


def state_of(run: Run, names: Sequence[str], committed: Sequence[Commit], reference: Reference) -> str | None:
    """A hash of all that a run's set metrics depend on; None where the reference cannot be read."""
    try:
        against = [reference.digest(SETS[name]) for name in names]
    except JobError:
        return None
    rows = [(commit.unit, commit.data_sha256, commit.features_sha256) for commit in committed]
    return hashlib.sha256(json.dumps([VERSION, run.config_hash, names, against, rows]).encode()).hexdigest()


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


def evaluate(
    names: Sequence[str], n: int, blocks: Blocks, reference: Reference, size: int, warnings: Sequence[str]
) -> dict[str, SetResult]:
    """Set metrics of the images in `blocks`; one that cannot be computed has no value, and says why.

    Args:
        n: how many images there are. size: their side, pixels. warnings: for all of the numbers.
    """
    results: dict[str, SetResult] = {}
    for space in dict.fromkeys(SETS[name].space for name in names):
        restored, truth = gather(space, n, blocks, reference.paired)
        seen = restored.n or 0
        care = list(warnings)
        if seen < n:
            care.append(f"{n - seen} of {n} restored images have no features, and are left out")
        if seen < FEW and space != "patches":
            care.append(f"{seen} samples, fewer than {FEW:,}: the number depends on how many they are")
        if not all(part.exact for part in (*restored.parts, *truth.parts)):
            care.append("the sums of features were rounded: another split may differ in the last digits")
        for name in (name for name in names if SETS[name].space == space):
            results[name] = evaluated(name, restored, truth, reference, size, care)
    return {name: results[name] for name in names}


def evaluated(
    name: str, restored: Sample, truth: Sample, reference: Reference, size: int, care: Sequence[str]
) -> SetResult:
    """One metric of a set. `truth` is the reference if that is paired."""
    metric, also, digest = SETS[name], list(care), None
    try:
        also += reference.warnings(metric.space, size)
        digest = reference.digest(metric)
        found = estimate(metric, restored, truth if reference.paired else reference.sample(metric))
    except Exception as error:  # a report without this number is better than none
        what = str(error) if isinstance(error, JobError | ValueError) else f"{type(error).__name__}: {error}"
        also.append(f"not computed: {what}")
        return SetResult(None, None, None, restored.n or 0, tuple(also), reference.title, {}, digest)
    if found.n < (restored.n or 0):
        also.append(f"of {found.n:,} of the {restored.n:,} samples, chosen by the hash of their keys")
    also += found.warnings
    extra = {f"{name}_{suffix}": value for suffix, value in found.extra.items()}
    return SetResult(found.value, found.low, found.high, found.n, tuple(also), reference.title, extra, digest)


def estimate(metric: SetMetric, restored: Sample, reference: Sample) -> Estimate:
    """The metric's number.

    Raises:
        ValueError: it cannot be computed of these samples, or is not finite.
    """
    if (restored.n or 0) < 2:
        raise ValueError(f"needs at least 2 restored images, there are {restored.n}")
    found = metric.compare(restored, reference)
    numbers = [found.value, *found.extra.values(), *(v for v in (found.low, found.high) if v is not None)]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("the number is not finite")
    return found


def gather(space: str, n: int, blocks: Blocks, with_truth: bool) -> tuple[Sample, Sample]:
    """The restored images and their truth as sets of features.

    The hash of an image's key decides which part's sums it enters, whether its features are kept, and where:
    nothing depends on the order or split. A part's sums take 8 d² bytes.
    """
    columns = [space, space + TRUTH] if with_truth else [space]
    sums: list[list[Moments]] = [[] for _ in columns]
    chosen: list[tuple[float, str, list[np.ndarray]]] = []
    bound, seen = 1.0, 0
    for keys, values in blocks(columns):
        shares = np.array([share(key) for key in keys])
        seen += len(keys)
        for i in np.flatnonzero(shares <= bound):
            chosen.append((shares[i], keys[i], [values[column][i].copy() for column in columns]))
        if len(chosen) > 2 * PAIRS_MOST:
            chosen = smallest(chosen)
            bound = chosen[-1][0]
        width = values[space].shape[1]
        if space == "patches" or n < width:
            continue
        for column, into in zip(columns, sums, strict=True):
            into += [Moments(width) for _ in range(GROUPS - len(into))]
            for number, moments in enumerate(into):
                moments.add(values[column][(shares * GROUPS).astype(int) == number])
    chosen = smallest(chosen)
    restored, *truth = (
        Sample(
            seen,
            parts=tuple(part for part in into if part.n),
            features=np.stack([rows[place] for _, _, rows in chosen]) if chosen else None,
            paired=with_truth,
        )
        for place, into in enumerate(sums)
    )
    return restored, truth[0] if truth else Sample(None)


def smallest(chosen: list[tuple[float, str, list[np.ndarray]]]) -> list[tuple[float, str, list[np.ndarray]]]:
    """The first samples in the order of their hashes, as many as are kept."""
    return sorted(chosen, key=lambda each: each[:2])[:PAIRS_MOST]


def share(key: str) -> float:
    """A number in [0, 1) that a key alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
