"""Distances between a restored set and a reference set, from the features of their images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kintsugi.pipeline.metrics.moments import Gaussian, Moments, factor, frechet, summed

BLOCK = 1024  # samples, of which all pairs are compared at once
PAIRS_MOST = 10_000  # samples of which all pairs are compared
GROUPS = 8  # of a set, of which each is left out once by the jackknife; of 2,048 features one takes seconds
FEWEST = 2 * GROUPS  # samples, for an interval
CONFIDENCE = 0.95
NORMAL = 1.96  # standard deviations of a 95 % interval
NEIGHBOUR = 3
STRAIGHT = 4  # samples per feature, from which FID is a line over 1/n
LEVEL = 1 / 255  # of an 8-bit image: textures that are less have no scale to be measured in


@dataclass(frozen=True)
class FeatureSet:
    """What is known of a set.

    Attributes:
        n: images in it, None where nobody says.
        gaussian: the moments of a reference's features.
        parts: exact sums of disjoint random parts that make the set up, where it is as large as features are
            wide.
        features: (m, d) of all, or of many of its images, in random order.
        paired: whether row i of two sets, and part i, is the same images, restored and true.
    """

    n: int | None
    gaussian: Gaussian | None = None
    parts: tuple[Moments, ...] = ()
    features: np.ndarray | None = None
    paired: bool = False


@dataclass(frozen=True)
class Estimate:
    """A number, the samples that entered it, its 95 % interval if it has one, and numbers beside it.

    Attributes:
        warnings: why a number beside it is not given.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    extra: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


Compare = Callable[[FeatureSet, FeatureSet], Estimate]
"""(restored, reference); raises ValueError where there are too few samples."""

OfGroups = Callable[[Sequence[int]], float]
"""A distance of the samples in some groups."""


def fid(restored: FeatureSet, reference: FeatureSet) -> Estimate:
    """The Fréchet distance with a jackknife interval, and extrapolated where there are sums of parts.

    The interval is of what FID is at this number of samples, which is larger than that of infinitely many
    by about 1/n. The extrapolation is the line over 1/n at 0 (Chong and Forsyth, CVPR 2020) through all
    samples and through all but one group: the jackknife's, whose scatter is hardly that of FID's own. What
    it takes away is a few percent too much (`tests/test_metrics_sets.py`); below four samples per feature FID
    is no line and it is far too much, and where it is more than half of FID the rest is mostly error.
    """
    if restored.parts:
        sizes = [part.n for part in restored.parts]
        of = fid_of_parts(restored, reference)
    else:
        sizes = group_sizes(restored)
        of = fid_of_products(restored, reference, sizes)
    groups = range(len(sizes))
    n, value = sum(sizes), of(groups)
    if n < FEWEST:
        return Estimate(value, n)
    corrected, half = jackknife(value, [of([i for i in groups if i != out]) for out in groups], sizes)
    estimate = Estimate(value, n, max(value - half, 0.0), value + half)
    if not restored.parts:
        return estimate
    features = len(restored.parts[0].total)
    if n < STRAIGHT * features:
        why = f"{n:,} samples, and FID is a line over 1/n only from {STRAIGHT * features:,} on"
    elif corrected < value / 2:
        why = f"the bias of {n:,} samples is more than half of it"
    else:
        return replace(estimate, extra={"infinity": corrected})
    return replace(estimate, warnings=(f"not extrapolated to infinitely many samples: {why}",))


def group_sizes(sample: FeatureSet) -> list[int]:
    """Of consecutive groups of the features' rows, as equal as can be.

    Raises:
        ValueError: fewer than two samples.
    """
    n = 0 if sample.features is None else len(sample.features)
    if n < 2:
        raise ValueError(f"needs at least 2 samples, there are {n}")
    return [len(part) for part in np.array_split(range(n), min(GROUPS, n))]


def fid_of_parts(restored: FeatureSet, reference: FeatureSet) -> OfGroups:
    """FID from exact sums; of a paired reference the same parts, so that errors that they share cancel."""
    if reference.paired:

        def of_pairs(kept: Sequence[int]) -> float:
            ours, theirs = (summed(each.parts[i] for i in kept).gaussian for each in (restored, reference))
            return frechet(ours, theirs)

        return of_pairs
    gaussian = reference.gaussian
    assert gaussian is not None
    known = factor(gaussian.covariance)
    return lambda kept: frechet(summed(restored.parts[i] for i in kept).gaussian, gaussian, known)


def fid_of_products(restored: FeatureSet, reference: FeatureSet, sizes: Sequence[int]) -> OfGroups:
    """FID of fewer samples than features, whose products are smaller than covariances.

    tr (Σ Σ')^½ is the sum of the singular values of A Bᵀ/(n−1), where A and B are the samples less their
    means, and of the roots of the eigenvalues of A Σ' Aᵀ/(n−1).
    """
    assert restored.features is not None
    x = restored.features.astype(np.float64)
    rows = np.split(np.arange(len(x)), np.cumsum(sizes)[:-1])
    y, gaussian = None, reference.gaussian
    if reference.paired:
        assert reference.features is not None
        y = reference.features.astype(np.float64)
        products = x @ y.T
    else:
        assert gaussian is not None
        products = x @ (gaussian.covariance @ x.T)

    def of(kept: Sequence[int]) -> float:
        places = np.concatenate([rows[i] for i in kept])
        n = len(places)
        centred = products[np.ix_(places, places)]
        centred = centred - centred.mean(0) - centred.mean(1, keepdims=True) + centred.mean()
        mean, trace = x[places].mean(0), x[places].var(0, ddof=1).sum()
        if y is not None:
            common = np.linalg.svd(centred, compute_uv=False).sum() / (n - 1)
            their_mean, their_trace = y[places].mean(0), y[places].var(0, ddof=1).sum()
        else:
            assert gaussian is not None
            common = np.sqrt(np.linalg.eigvalsh(centred / (n - 1)).clip(0)).sum()
            their_mean, their_trace = gaussian.mean, np.trace(gaussian.covariance)
        return float(((mean - their_mean) ** 2).sum() + trace + their_trace - 2 * common)

    return of


def jackknife(value: float, left_out: Sequence[float], sizes: Sequence[int]) -> tuple[float, float]:
    """A statistic less its bias of 1/n, and half its 95 % interval, from its values without one group each.

    Through pseudo-values, which have no such bias whatever the groups' sizes are (Busing, Meijer and van der
    Leeden 1999), with Student's quantile for so many groups.
    """
    from scipy.special import stdtrit

    ratios = sum(sizes) / np.array(sizes)
    pseudo = ratios * value - (ratios - 1) * np.array(left_out)
    centre = value * len(sizes) - ((1 - 1 / ratios) * np.array(left_out)).sum()
    variance = ((pseudo - centre) ** 2 / (ratios - 1)).mean()
    return float(centre), float(stdtrit(len(sizes) - 1, 0.5 + CONFIDENCE / 2) * np.sqrt(variance))


def blocks(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Of (m, d) at most `BLOCK` rows at a time: where they stand, and their values in float64."""
    for first in range(0, len(features), BLOCK):
        part = slice(first, min(first + BLOCK, len(features)))
        yield part, features[part].astype(np.float64)


def kernel_sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Σⱼ (xᵢᵀyⱼ/d + 1)³ for every i."""
    sums = np.zeros(len(x))
    for here, a in blocks(x):
        for _, b in blocks(y):
            sums[here] += ((a @ b.T / x.shape[1] + 1) ** 3).sum(1)
    return sums


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(xᵢᵀyᵢ/d + 1)³ of the same row of both."""
    return np.concatenate(
        [((a * b).sum(1) / x.shape[1] + 1) ** 3 for (_, a), (_, b) in zip(blocks(x), blocks(y), strict=True)]
    )


def kid(restored: FeatureSet, reference: FeatureSet) -> Estimate:
    """Unbiased MMD² of all samples, with the interval of a U-statistic (Hoeffding 1948).

    An image and its own truth are no independent pair: if the reference is paired, such pairs are left out.

    Raises:
        ValueError: fewer than two samples.
    """
    x, y = (np.empty((0, 1)) if each.features is None else each.features for each in (restored, reference))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        raise ValueError(f"needs at least 2 samples, there are {min(n, m)}")
    own_x = (kernel_sums(x, x) - kernel(x, x)) / (n - 1)
    own_y = (kernel_sums(y, y) - kernel(y, y)) / (m - 1)
    cross_x, cross_y = kernel_sums(x, y), kernel_sums(y, x)
    if reference.paired:
        same = kernel(x, y)
        cross_x, cross_y = (cross_x - same) / (n - 1), (cross_y - same) / (n - 1)
    else:
        cross_x, cross_y = cross_x / m, cross_y / n
    value = float(own_x.mean() + own_y.mean() - 2 * cross_x.mean())
    a, b = own_x - cross_x, own_y - cross_y  # what each sample adds, half of it
    if reference.paired:
        variance = 4 * (a + b).var(ddof=1) / n
    else:
        variance = 4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m
    half = NORMAL * float(np.sqrt(variance))
    return Estimate(value, n, value - half, value + half)


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of all pairs of rows."""
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


def radii(features: np.ndarray) -> np.ndarray:
    """Squared distance of each sample from its third neighbour."""
    found = []
    for _, a in blocks(features):
        nearest = np.full((len(a), NEIGHBOUR + 1), np.inf)  # itself is one of them
        for _, b in blocks(features):
            both = np.concatenate([nearest, squared_distances(a, b)], 1)
            nearest = np.partition(both, NEIGHBOUR, 1)[:, : NEIGHBOUR + 1]
        found.append(nearest.max(1))
    return np.concatenate(found)


def covered(points: np.ndarray, centres: np.ndarray) -> float:
    """Share of points in the union of the balls around the centres to their third neighbour."""
    reach = radii(centres)
    inside = np.zeros(len(points), bool)
    for here, a in blocks(points):
        for there, b in blocks(centres):
            inside[here] |= (squared_distances(a, b) <= reach[there]).any(1)
    return float(inside.mean())


def equally_many(restored: FeatureSet, reference: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    """As many features of one set as of the other: balls are smaller where samples are denser.

    Raises:
        ValueError: too few for a third neighbour.
    """
    x, y = (np.empty((0, 1)) if each.features is None else each.features for each in (restored, reference))
    n = min(len(x), len(y))
    if n <= NEIGHBOUR:
        raise ValueError(f"needs at least {NEIGHBOUR + 1} samples of each set, there are {n}")
    return x[:n], y[:n]


def precision(restored: FeatureSet, reference: FeatureSet) -> Estimate:
    """The share of the restored features that lie among the true ones, 0 to 1 (1904.06991)."""
    x, y = equally_many(restored, reference)
    return Estimate(covered(x, y), len(x))


def recall(restored: FeatureSet, reference: FeatureSet) -> Estimate:
    """The share of the true features that lie among the restored ones, 0 to 1 (1904.06991)."""
    x, y = equally_many(restored, reference)
    return Estimate(covered(y, x), len(x))


def swd(restored: FeatureSet, reference: FeatureSet) -> Estimate:
    """Sliced Wasserstein distance of patches, in units of the truth's standard deviation per channel.

    With a jackknife interval of what it is at this number of samples, as FID's. Samples without one group are
    compared along an eighth of the projections, the same for all groups: all that costs as much as the value.

    Raises:
        ValueError: no samples.
    """
    import torch

    from kintsugi.pipeline.metrics.texture import PROJECTIONS, patch_distance

    if restored.features is None or reference.features is None:
        raise ValueError("needs at least 1 sample, there is none")
    x, y = (
        torch.from_numpy(features.astype(np.float32)).reshape(len(features), -1, 49, 3)
        for features in (restored.features, reference.features)
    )
    n = len(x)

    def of(rows: np.ndarray, projections: int) -> float:
        ours, theirs = x[rows].flatten(0, 1), y[rows].flatten(0, 1)
        scale = theirs.flatten(0, 1).std(0).clamp_min(LEVEL)
        generator = torch.Generator().manual_seed(0)
        return patch_distance((ours / scale).flatten(1), (theirs / scale).flatten(1), generator, projections)

    every = np.arange(n)
    value = of(every, PROJECTIONS)
    if n < FEWEST:
        return Estimate(value, n)
    groups, few = np.array_split(every, GROUPS), PROJECTIONS // GROUPS
    left_out = [of(np.delete(every, group), few) for group in groups]
    _, half = jackknife(of(every, few), left_out, [len(group) for group in groups])
    return Estimate(value, n, max(value - half, 0.0), value + half)
