"""Intervals of means and tests of paired differences.

All are functions of the multiset of values: neither the order of the rows nor their split matters. Values
of the opposite sign give exactly the opposite result, so that comparing B with A is comparing A with B.
"""

import math
from functools import lru_cache

import numpy as np

LEVEL = 0.95
FEWEST, MOST = 10, 300  # values of which means are resampled; see `mean_interval`
RESAMPLES = 2000  # each with its mirror image
ENUMERATED = 20  # differences, of which all choices of signs are tried
DRAWS, DRAWN = 9999, 256  # random choices of signs, and how many signs of each; see `paired_p_value`


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % confidence interval of the mean: bootstrap-t (Efron and Tibshirani 1993, section 12.5).

    Of the bootstrap's intervals it is the one that is second-order correct and keeps Student's width for
    Gaussian data; the percentile interval is too short for small samples, and with BCa more so where the
    values are skewed, as residuals and LPIPS are (`tests/test_aggregate.py`). Resampling is seeded, and
    every resample of the sorted values is used with its mirror image.

    From 300 values on the quantiles of the studentised mean are taken from its Edgeworth expansion about
    Student's (Hall, The Bootstrap and Edgeworth Expansion, 1992, section 2.6), which is what bootstrap-t
    estimates: they agree to O(1/n), less than the scatter of the resamples, and a million values take a tenth
    of a second. Fewer than 10 values have too few resamples: Student's interval, as where resamples have no
    variance.

    Args:
        values: finite, (n,).

    Returns:
        (low, high); NaN for fewer than two values.
    """
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, deviation, skewness = moments(values)
    tail = (1 - LEVEL) / 2
    upper = float(stdtrit(n - 1, 1 - tail))
    lower = -upper
    if n >= MOST:
        shift = skewness / (6 * math.sqrt(n)) * (2 * upper**2 + 1)
        lower, upper = lower - shift, upper - shift
    elif n >= FEWEST:
        resampled = studentised_quantiles(np.sort(values - mean), tail)
        if all(map(math.isfinite, resampled)):
            lower, upper = resampled
    error = deviation / math.sqrt(n)
    return mean - upper * error, mean - lower * error


def group_intervals(
    values: np.ndarray, codes: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of many groups with Student's 95 % intervals, in time that does not depend on their number.

    Of skewed values these are shorter than `mean_interval`'s, which resamples, a little: 90 % of those of 50
    log-normal values hold the mean, of 10 values 84 %.

    Args:
        values: finite, (n,). Sums are made in their order.
        codes: the group of each, 0 … groups − 1, (n,).

    Returns:
        Mean, low and high, each (groups,); NaN where there are no values, or no two.
    """
    from scipy.special import stdtrit

    n = np.bincount(codes, minlength=groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(codes, values, groups) / n
        variance = np.bincount(codes, np.square(values - mean[codes]), groups) / (n - 1)
        half = stdtrit(np.where(n > 1, n - 1, np.nan), (1 + LEVEL) / 2) * np.sqrt(variance / n)
    return mean, mean - half, mean + half


def moments(values: np.ndarray) -> tuple[float, float, float]:
    """Mean, standard deviation (n − 1; NaN for one value) and skewness of values in any order, (n,)."""
    ordered = np.sort(values, kind="stable")  # which sees what is sorted already
    n = len(ordered)
    mean = total(ordered) / n
    ordered -= mean
    powers = ordered * ordered
    squares = total(powers)
    powers *= ordered  # NumPy's own third power takes twenty times as long
    skewness = total(powers) / n / (squares / n) ** 1.5 if squares else 0.0
    return mean, math.sqrt(squares / (n - 1)) if n > 1 else math.nan, skewness


def total(ordered: np.ndarray) -> float:
    """Half the sums in this order and in the reverse: numbers of the other sign give just the negative."""
    return float(ordered.sum() + np.ascontiguousarray(ordered[::-1]).sum()) / 2


def studentised_quantiles(centred: np.ndarray, tail: float) -> tuple[float, float]:
    """The lower and upper quantile of the resamples' (mean − 0) / standard error.

    Args:
        centred: sorted values of mean 0.
    """
    n = len(centred)
    chosen = resamples(n)
    statistics = []
    for source in (centred, np.ascontiguousarray(centred[::-1])):
        drawn = source[chosen]
        means = drawn.mean(1)
        variances = np.maximum(np.square(drawn).mean(1) - means**2, 0) / (n - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = means / np.sqrt(variances)
        statistics.append(np.where(means == 0, 0.0, ratios))
    ordered = np.sort(np.concatenate(statistics))
    place = round(tail * (len(ordered) + 1)) - 1
    return float(ordered[place]), float(ordered[-1 - place])


@lru_cache(maxsize=1)
def resamples(n: int) -> np.ndarray:
    """(RESAMPLES, n) places to draw from."""
    return np.random.default_rng(0).integers(0, n, (RESAMPLES, n))


def paired_p_value(differences: np.ndarray) -> float:
    """The two-sided p-value of a sign-flip test of the mean of paired differences (Fisher 1935).

    If neither run is better, each difference is as likely to have the other sign: they are distributed
    symmetrically about 0, which is what is assumed. This tests the mean, the number that is reported, and
    not ranks as Wilcoxon's test does.

    Up to 20 differences all 2ⁿ signs are tried. Of more, 9,999 seeded choices of signs are, and the observed
    one counts as one of them, so that p ≤ α no more often than α (Phipson and Smyth 2010) and is
    1e-4 at least. Beyond 256 differences the largest 256 have signs, and the sum of the others, none
    of which dominates, is Gaussian with variance Σd². The Gaussian limit for all is no substitute: where a
    few large differences decide, it can be half of the truth (`tests/test_aggregate.py`).

    Args:
        differences: finite, (n,). Zeros say nothing.
    """
    sizes = np.sort(np.abs(differences[differences != 0]))
    if not len(sizes):
        return 1.0
    observed = abs(total(np.sort(differences))) - 1e-12 * sizes.sum()  # sums are rounded
    if len(sizes) > ENUMERATED:
        sums = random_sums(sizes[-DRAWN:], float(np.square(sizes[:-DRAWN]).sum()))
        return float(1 + (np.abs(sums) >= observed).sum()) / (1 + DRAWS)
    # The sign of one is given by symmetry.
    sums = sizes[:1]
    for size in sizes[1:]:
        sums = np.concatenate([sums + size, sums - size])
    return float((np.abs(sums) >= observed).mean())


def random_sums(sizes: np.ndarray, variance: float) -> np.ndarray:
    """(DRAWS,) sums of at most DRAWN sizes with random signs, and of a Gaussian with this variance."""
    bits, gaussian = random_signs()
    sums = math.sqrt(variance) * gaussian - sizes.sum()
    for first in range(0, DRAWS, 500):  # the numbers of one step stay small
        positive = np.unpackbits(bits[first : first + 500], axis=1, count=len(sizes))
        sums[first : first + 500] += 2 * (positive.astype(float) @ sizes)
    return sums


@lru_cache(maxsize=1)
def random_signs() -> tuple[np.ndarray, np.ndarray]:
    """(DRAWS, DRAWN / 8) bytes of which each bit is a sign, and (DRAWS,) standard Gaussian numbers."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (DRAWS, DRAWN // 8), np.uint8), random.standard_normal(DRAWS)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number: the family-wise error rate is kept (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
