"""Distances between a restored set and a reference set, from the features of their images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.metrics.statistics import Gaussian, Moments, frechet, root

BLOCK = 1024  # samples, of which all pairs are compared at once
REPLICATES = 20  # of the bootstrap; it gives a standard deviation, no quantiles
BOOTSTRAP_MOST = 5_000  # samples, of which it is affordable
NORMAL = 1.96  # standard deviations of a 95 % interval
NEIGHBOUR = 3
PARTS = 8  # of a set, of which FIDs of half to all of it are computed


@dataclass(frozen=True)
class Sample:
    """What is known of a set.

    Attributes:
        n: images in it, None where nobody says.
        gaussian: the moments of its features, None where only patches are known.
        parts: the exact sums of disjoint parts that make it up, for extrapolation.
        features: (m, d) of all, or of many of its images.
        paired: whether row i of two sets is the same image, restored and true.
    """

    n: int | None
    gaussian: Gaussian | None = None
    parts: tuple[Moments, ...] = ()
    features: np.ndarray | None = None
    paired: bool = False


@dataclass(frozen=True)
class Estimate:
    """A number, its 95 % interval where there is one, and further numbers beside it."""

    value: float
    low: float | None = None
    high: float | None = None
    extra: dict[str, float] = field(default_factory=dict)


Compare = Callable[[Sample, Sample], Estimate]
"""(restored, reference)."""


def fid(restored: Sample, reference: Sample) -> Estimate:
    """The Fréchet distance, its extrapolation and a bootstrap interval, where there are samples for them."""
    assert restored.gaussian is not None
    assert reference.gaussian is not None
    x = restored.features
    of = None
    if x is not None and len(x) == restored.n and len(x) <= BOOTSTRAP_MOST:
        of = fid_of_some(x.astype(np.float64), reference)
    if of is not None and x is not None and len(x) <= x.shape[1]:
        value = of(np.arange(len(x)))
    else:
        value = frechet(restored.gaussian, reference.gaussian)
    extra = {}
    if len(restored.parts) > 1:
        extra["fid_infinity"] = extrapolated(restored.parts, reference.gaussian)
    if of is None:
        return Estimate(value, extra=extra)
    half = NORMAL * bootstrap_deviation(of, restored.n or 0)
    return Estimate(value, value - half, value + half, extra)


def fid_of_some(x: np.ndarray, reference: Sample) -> Callable[[np.ndarray], float]:
    """A function that gives the FID of the rows of x (n, d), float64, at some n places, with repetitions.

    If the reference is paired it is taken at the same places. With fewer samples than features, products of
    samples are smaller than covariances: tr (Σ Σ')^½ is the sum of the singular values of A Bᵀ/(n−1), where
    A and B are the samples less their means, and of the roots of the eigenvalues of A Σ' Aᵀ/(n−1).
    """
    n, size = x.shape
    gaussian = reference.gaussian
    assert gaussian is not None
    y = None
    if reference.paired and reference.features is not None:
        y = reference.features.astype(np.float64)
    if n > size:
        known = root(gaussian.covariance) if y is None else None

        def by_covariances(places: np.ndarray) -> float:
            theirs = gaussian if y is None else Gaussian(y[places].mean(0), np.cov(y[places], rowvar=False))
            mine = Gaussian(x[places].mean(0), np.cov(x[places], rowvar=False))
            return frechet(mine, theirs, known)

        return by_covariances
    products = x @ (gaussian.covariance @ x.T if y is None else y.T)

    def by_products(places: np.ndarray) -> float:
        centred = products[np.ix_(places, places)]
        centred = centred - centred.mean(0) - centred.mean(1, keepdims=True) + centred.mean()
        mean, trace = x[places].mean(0), x[places].var(0, ddof=1).sum()
        if y is None:
            common = np.sqrt(np.linalg.eigvalsh(centred / (n - 1)).clip(0)).sum()
            their_mean, their_trace = gaussian.mean, np.trace(gaussian.covariance)
        else:
            common = np.linalg.svd(centred, compute_uv=False).sum() / (n - 1)
            their_mean, their_trace = y[places].mean(0), y[places].var(0, ddof=1).sum()
        return float(((mean - their_mean) ** 2).sum() + trace + their_trace - 2 * common)

    return by_products


def extrapolated(parts: tuple[Moments, ...], reference: Gaussian) -> float:
    """FID of infinitely many samples: the line through FIDs over 1/n at 1/n = 0 (Chong and Forsyth 2020)."""
    known = root(reference.covariance)
    so_far = Moments(len(reference.mean))
    inverse, values = [], []
    for number, part in enumerate(parts, 1):
        so_far.merge(part)
        if 2 * number >= len(parts):
            inverse.append(1 / so_far.n)
            values.append(frechet(so_far.gaussian, reference, known))
    return float(np.polynomial.Polynomial.fit(inverse, values, 1)(0.0))


def bootstrap_deviation(of: Callable[[np.ndarray], float], n: int) -> float:
    """Standard deviation of FID over sets drawn with replacement.

    A set with repetitions has a larger FID, always, so the deviation is used and not the quantiles.
    """
    rng = np.random.default_rng(0)
    return float(np.std([of(rng.integers(0, n, n)) for _ in range(REPLICATES)], ddof=1))


def blocks(features: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
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


def own_kernel(x: np.ndarray) -> np.ndarray:
    return np.concatenate([((a * a).sum(1) / x.shape[1] + 1) ** 3 for _, a in blocks(x)])


def kid(restored: Sample, reference: Sample) -> Estimate:
    """Unbiased MMD² of all samples, with the interval of a U-statistic (Hoeffding 1948)."""
    x, y = restored.features, reference.features
    assert x is not None
    assert y is not None
    n, m = len(x), len(y)
    cross_x, cross_y = kernel_sums(x, y) / m, kernel_sums(y, x) / n
    own_x = (kernel_sums(x, x) - own_kernel(x)) / (n - 1)
    own_y = (kernel_sums(y, y) - own_kernel(y)) / (m - 1)
    value = own_x.mean() + own_y.mean() - 2 * cross_x.mean()
    a, b = own_x - cross_x, own_y - cross_y  # what each sample adds, half of it
    if reference.paired:
        variance = 4 * (a + b).var(ddof=1) / n
    else:
        variance = 4 * a.var(ddof=1) / n + 4 * b.var(ddof=1) / m
    half = NORMAL * float(np.sqrt(variance))
    return Estimate(float(value), float(value) - half, float(value) + half)


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


def precision(restored: Sample, reference: Sample) -> Estimate:
    assert restored.features is not None
    assert reference.features is not None
    return Estimate(covered(restored.features, reference.features))


def recall(restored: Sample, reference: Sample) -> Estimate:
    assert restored.features is not None
    assert reference.features is not None
    return Estimate(covered(reference.features, restored.features))


def swd(restored: Sample, reference: Sample) -> Estimate:
    """Sliced Wasserstein distance of patches, in units of the truth's standard deviation per channel."""
    import torch

    from pipeline.metrics.texture import patch_distance

    x, y = (
        torch.from_numpy(each.features.astype(np.float32)).reshape(-1, 49, 3)
        for each in (restored, reference)
        if each.features is not None
    )
    scale = y.flatten(0, 1).std(0).clamp_min(torch.finfo(torch.float32).tiny)
    generator = torch.Generator().manual_seed(0)
    return Estimate(patch_distance((x / scale).flatten(1), (y / scale).flatten(1), generator))
