"""Metrics of a set of restored images, from what was committed of each: one pass, with flat memory."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from kintsugi.errors import JobError
from kintsugi.pipeline.metrics.distances import GROUPS, PAIRS_MOST, Estimate, FeatureSet
from kintsugi.pipeline.metrics.metric import SetMetric
from kintsugi.pipeline.metrics.moments import Moments
from kintsugi.pipeline.metrics.reference import Reference
from kintsugi.pipeline.metrics.registry import SETS, TRUTH

FEW = 2048  # samples, of which Inception's covariance has no full rank

Blocks = Callable[[Sequence[str]], Iterator[tuple[list[str], Mapping[str, np.ndarray]]]]
"""Columns of features to blocks: keys, and (n, values) by column. Each call begins anew."""


@dataclass(frozen=True)
class SetResult:
    """A number for a whole set.

    Attributes:
        value: None where there is none; the last warning says why.
        low, high: its 95 % interval, None where it was not computed.
        n: images that entered it; of a metric of clips, clips.
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
    name: str, restored: FeatureSet, truth: FeatureSet, reference: Reference, size: int, care: Sequence[str]
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


def estimate(metric: SetMetric, restored: FeatureSet, reference: FeatureSet) -> Estimate:
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


def gather(space: str, n: int, blocks: Blocks, with_truth: bool) -> tuple[FeatureSet, FeatureSet]:
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
        FeatureSet(
            seen,
            parts=tuple(part for part in into if part.n),
            features=np.stack([rows[place] for _, _, rows in chosen]) if chosen else None,
            paired=with_truth,
        )
        for place, into in enumerate(sums)
    )
    return restored, truth[0] if truth else FeatureSet(None)


def smallest(chosen: list[tuple[float, str, list[np.ndarray]]]) -> list[tuple[float, str, list[np.ndarray]]]:
    """The first samples in the order of their hashes, as many as are kept."""
    return sorted(chosen, key=lambda each: each[:2])[:PAIRS_MOST]


def share(key: str) -> float:
    """A number in [0, 1) that a key alone decides."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48
