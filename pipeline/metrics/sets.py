"""Metrics of a set of restored images, from what was committed of each: one pass, with flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline.metrics import SETS
from pipeline.metrics.distances import PARTS, Sample
from pipeline.metrics.statistics import Moments
from pipeline.storage import parquet

if TYPE_CHECKING:
    from pipeline.metrics.reference import Reference
    from pipeline.run import Run

FEW = 2048  # samples, of which Inception's covariance has no full rank
PAIRS_MOST = 10_000  # samples of which all pairs are compared
TRUTH = "_truth"  # ends the name of a column with features of the truth

Blocks = Callable[[Sequence[str]], Iterator[tuple[list[str], Mapping[str, np.ndarray]]]]
"""Columns of features to blocks: keys, and (n, values) by column. Each call begins anew."""


@dataclass(frozen=True)
class SetResult:
    """A number for a whole set.

    Attributes:
        low, high: its 95 % interval, None where it was not computed.
        n: images that entered it.
        warnings: why it must be read with care.
        reference: what the set was compared with.
        extra: further numbers beside it, such as `fid_infinity`.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    warnings: tuple[str, ...]
    reference: str
    extra: dict[str, float]


def set_metrics(run: Run) -> dict[str, SetResult]:
    """The set metrics that the run's job names, by name, of what is committed; {} where it names none.

    Raises:
        JobError: a file is not the one that was committed, or the reference cannot be read.
    """
    from pipeline.commit import data_file, read_features
    from pipeline.metrics.features import arrays
    from pipeline.metrics.reference import reference_of

    names = [name for name in run.job.metrics if name in SETS]
    if not names:
        return {}
    # Without what grows with the samples.
    committed = [replace(commit, sample_seconds=[]) for _, commit in run.commits() if commit is not None]
    n = sum(commit.rows - commit.failed for commit in committed)
    jpeg = 0
    for commit in committed:
        with parquet(data_file(run.folder, commit.unit)) as file:  # this column only, not the pictures
            sources = file.read(["source"])["source"].to_pylist()
        jpeg += sum(source is not None and source.startswith("JPEG") for source in sources)

    def blocks(columns: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, np.ndarray]]]:
        for commit in committed:
            table = read_features(run.folder, commit, ["key", *columns])
            if table is not None:
                yield table["key"].to_pylist(), arrays(table)

    reference = reference_of(run.job.reference, run.folder)
    warnings = []
    if jpeg:
        warnings.append(f"{jpeg} of the inputs were compressed as JPEG, which leaves its marks in features")
    if run.job.data.fit != "exact" and not reference.paired:
        warnings.append("the images were resized here (data.fit), those of the reference perhaps otherwise")
    return evaluate(names, n, blocks, reference, run.job.data.size, warnings)


def evaluate(
    names: Sequence[str], n: int, blocks: Blocks, reference: Reference, size: int, warnings: Sequence[str]
) -> dict[str, SetResult]:
    """Set metrics of the images in `blocks`.

    Args:
        n: how many they are. size: their side, pixels. warnings: for all of the numbers.
    """
    spaces = list(dict.fromkeys(SETS[name].space for name in names))
    if n < 2:
        return {}
    results: dict[str, SetResult] = {}
    for space in spaces:
        asked = [name for name in names if SETS[name].space == space]
        restored, truth = gather(space, n, blocks, reference.paired)
        if restored.n is None or restored.n < 2:
            continue
        if not reference.paired:
            truth = reference.sample(space, features=not all(SETS[name].moments for name in asked))
        care = [*warnings, *reference.warnings(space, size)]
        if restored.n < FEW and space != "patches":
            care.append(f"{restored.n} samples, fewer than {FEW:,}: the number depends on how many they are")
        if not all(part.exact for part in restored.parts):
            care.append("the sums of features were rounded: another split may differ in the last digits")
        for name in asked:
            found = SETS[name].compare(restored, truth)
            also = list(care)
            if not SETS[name].moments and n > PAIRS_MOST:
                also.append(f"of about {PAIRS_MOST:,} samples, chosen by their keys")
            results[name] = SetResult(
                found.value, found.low, found.high, restored.n, tuple(also), reference.title, found.extra
            )
    return {name: results[name] for name in names if name in results}


def gather(space: str, n: int, blocks: Blocks, with_truth: bool) -> tuple[Sample, Sample]:
    """The restored images and their truth as sets of features.

    Sums go to parts, and features are kept, by the image's key: neither depends on the order or split.
    """
    columns = [space, space + TRUTH] if with_truth else [space]
    sums: list[list[Moments]] | None = None
    kept: list[tuple[str, list[np.ndarray]]] = []
    seen = 0
    for keys, values in blocks(columns):
        shares = np.array([share(key) for key in keys])
        seen += len(keys)
        choice = shares < PAIRS_MOST / n
        kept += [(key, [values[column][i] for column in columns]) for i, key in enumerate(keys) if choice[i]]
        if space == "patches":
            continue
        width = values[space].shape[1]
        parts = PARTS if n >= 2 * width else 1
        if sums is None:
            sums = [[Moments(width) for _ in range(parts if column == space else 1)] for column in columns]
        for column, into in zip(columns, sums, strict=True):
            for number, moments in enumerate(into):
                moments.add(values[column][(shares * len(into)).astype(int) == number])
    kept.sort(key=lambda pair: pair[0])
    sets = []
    for place in range(2):
        if place == len(columns):
            sets.append(Sample(None))
            continue
        features = np.stack([rows[place] for _, rows in kept]) if kept else None
        own = tuple(sums[place]) if sums is not None else ()
        total = None
        if own and seen > 1:
            total = Moments(len(own[0].total))
            for part in own:
                total.merge(part)
        gaussian = None if total is None else total.gaussian
        sets.append(Sample(seen, gaussian, own, features, paired=with_truth))
    return sets[0], sets[1]


def share(key: str) -> float:
    """A number in [0, 1) that a key alone decides."""
    import hashlib

    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
