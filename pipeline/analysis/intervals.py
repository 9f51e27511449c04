"""Intervals of means and tests of paired differences.

All are functions of the multiset of values: neither the order of the rows nor their split matters. Values
of the opposite sign give exactly the opposite result, so that comparing B with A is comparing A with B.
"""

import math
from functools import lru_cache

import numpy as np

LEVEL = 0.95
FEWEST = 10  # values of which the skewness is known well enough to use it
UNBOUNDED = (-math.inf, math.inf)
ENUMERATED = 20  # differences, of which all choices of signs are tried
DRAWS, DRAWN = 9999, 256  # random choices of signs, and how many signs of each; see `paired_p_value`


def mean_interval(values: np.ndarray, bounds: tuple[float, float] = UNBOUNDED) -> tuple[float, float]:
    """The 95 % confidence interval of the mean, with Student's quantiles corrected for skewness.

    The correction is Hall's monotone cubic transformation of the studentised mean (Hall, On the Removal of
    Skewness by Transformation, JRSS B 1992). It covers as often as bootstrap-t, also of ten values, and never
    less often than Student's interval, as the Edgeworth expansion does (`tests/test_aggregate.py`). Of fewer
    than 10 values it is Student's.

    Args:
        values: finite, (n,).
        bounds: the least and largest value that a mean can have; the interval ends there.

    Returns:
        (low, high); NaN for fewer than two values.
    """
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    mean, deviation, skewness = moments(values)
    lower, upper = (float(end) for end in quantiles(np.array(n), np.array(skewness)))
    error = deviation / math.sqrt(n)
    least, most = min(bounds[0], mean), max(bounds[1], mean)  # values out of bounds are somebody else's
    return max(mean - upper * error, least), min(mean - lower * error, most)


def quantiles(n: np.ndarray, skewness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the studentised mean of n values with this skewness, those that leave out 2.5 % at either end."""
    from scipy.special import stdtrit

    student = stdtrit(np.where(n > 1, n - 1, np.nan), (1 + LEVEL) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        k = np.where(n >= FEWEST, skewness, 0) / np.sqrt(n)
        k = np.where(np.abs(k) < 1e-6, 0, k)

        def transformed(z: np.ndarray) -> np.ndarray:
            return np.where(k == 0, z, 3 / k * (np.cbrt(1 + k * (z - k / 6)) - 1))

        return transformed(-student), transformed(student)


def group_intervals(
    values: np.ndarray, codes: np.ndarray, groups: int, bounds: tuple[float, float] = UNBOUNDED
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of many groups with `mean_interval`, in time that does not depend on their number.

    Args:
        values: finite, (n,). Sums are made in their order.
        codes: the group of each, 0 … groups − 1, (n,).

    Returns:
        Mean, low and high, each (groups,); NaN where there are no values, or no two.
    """
    n = np.bincount(codes, minlength=groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(codes, values, groups) / n
        centred = values - mean[codes]
        squares, cubes = (np.bincount(codes, powers, groups) for powers in (centred**2, centred**2 * centred))
        skewness = np.where(squares > 0, cubes / n / (squares / n) ** 1.5, 0)
        lower, upper = quantiles(n, skewness)
        error = np.sqrt(squares / (n - 1) / n)
    least, most = np.fmin(bounds[0], mean), np.fmax(bounds[1], mean)
    return mean, np.maximum(mean - upper * error, least), np.minimum(mean - lower * error, most)


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


def paired_p_value(differences: np.ndarray, draws: int = DRAWS) -> float:
    """The two-sided p-value of a sign-flip test of the mean of paired differences (Fisher 1935).

    If neither run is better, each difference is as likely to have the other sign: they are distributed
    symmetrically about 0, which is what is assumed. This tests the mean, the number that is reported, and
    not ranks as Wilcoxon's test does.

    Up to 20 differences all 2ⁿ signs are tried. Of more, `draws` seeded choices of signs are, and the
    observed one counts as one of them, so that p ≤ α no more often than α (Phipson and Smyth 2010) and is
    1/(1 + draws) at least. Beyond 256 differences the largest 256 have signs, and the sum of the others, none
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
        sums = random_sums(sizes[-DRAWN:], float(np.square(sizes[:-DRAWN]).sum()), draws)
        return float(1 + (np.abs(sums) >= observed).sum()) / (1 + draws)
    # The sign of one is given by symmetry.
    sums = sizes[:1]
    for size in sizes[1:]:
        sums = np.concatenate([sums + size, sums - size])
    return float((np.abs(sums) >= observed).mean())


def random_sums(sizes: np.ndarray, variance: float, draws: int) -> np.ndarray:
    """(draws,) sums of at most DRAWN sizes with random signs, and of a Gaussian with this variance."""
    bits, gaussian = random_signs(draws)
    sums = math.sqrt(variance) * gaussian - sizes.sum()
    for first in range(0, draws, 500):  # the numbers of one step stay small
        positive = np.unpackbits(bits[first : first + 500], axis=1, count=len(sizes))
        sums[first : first + 500] += 2 * (positive.astype(float) @ sizes)
    return sums


@lru_cache(maxsize=1)
def random_signs(draws: int) -> tuple[np.ndarray, np.ndarray]:
    """(draws, DRAWN / 8) bytes of which each bit is a sign, and (draws,) standard Gaussian numbers."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (draws, DRAWN // 8), np.uint8), random.standard_normal(draws)


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number: the family-wise error rate is kept (Holm 1979)."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
