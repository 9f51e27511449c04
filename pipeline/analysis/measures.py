"""What a measure of an image is: its title, which values are better, which count, and how it is written.

Reports, comparisons and sweeps all ask here. A measure is a metric of images, or what the rows hold beside
them: the residual, the deviation of several samples, and the seconds.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from kintsugi.errors import SpecError
from kintsugi.pipeline.analysis.intervals import mean_interval, moments
from kintsugi.pipeline.metrics.metric import Better, ImageMetric, Metric, SetMetric
from kintsugi.pipeline.metrics.registry import COVERAGE, REGISTRY, SAMPLED

BINS = 40  # of a histogram, at most
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
ARROWS: Mapping[Better, str] = {"higher": " ↑", "lower": " ↓", "one": " → 1", None: ""}
TITLES = {
    **{name: f"coverage of the {100 * q:g} % interval → {q:g}" for name, q in COVERAGE.items()},
    "z_mean": "mean z-score → 0",
    "z_rms": "RMS z-score → 1",
    "error_rms": "error of the samples' mean, RMS ↓",
    "residual": "residual, RMS ↓",
    "spread": "deviation of the samples, RMS",
    "round_trip": "autoencoder alone, PSNR, dB ↑",
    "seconds": "sampler, s per image",
}
ABOUT = {
    **{
        name: f"Share of the pixels whose truth lies in the {100 * q:g} % interval that the samples give."
        for name, q in COVERAGE.items()
    },
    "z_mean": "Mean over the pixels of the truth less the samples' mean, on the standard normal's scale.",
    "z_rms": "Root mean square of these z-scores: more than 1 where the samples are too sure.",
    "error_rms": "Root mean square over the pixels of the truth less the samples' mean, on [-1, 1].",
    "residual": "Root mean square of H x̂ − y, on [-1, 1].",
    "spread": "Root mean square over the pixels of the samples' standard deviation, on [-1, 1].",
    "round_trip": "PSNR of the true image encoded and decoded: what a prior of latents can hardly exceed.",
    "seconds": "The sampler's time for a batch divided by its samples; to the interval a batch is one value.",
}
ASCENDING: Mapping[Better, tuple[str, str]] = {
    "higher": ("worst", "best"),
    "lower": ("best", "worst"),
    "one": ("lowest", "highest"),
    None: ("lowest", "highest"),
}


@dataclass(frozen=True)
class Mean:
    """The mean of values, or of differences of pairs, that count.

    Attributes:
        value, low, high: it and its 95 % interval; None where there are too few.
        n: how many count. infinite: values, or pairs with a value, that are infinite; see `limited`.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    infinite: int


def metric_of(name: str) -> Metric | None:
    """The metric of this name; of what is none, or is not installed here, None."""
    with suppress(SpecError):
        return None if name in TITLES else REGISTRY.get(name)
    return None


def of_image(name: str) -> ImageMetric | None:
    """The metric of images of this name, as `metric_of`, or whose mean over several samples that is."""
    metric = metric_of(name.removesuffix(SAMPLED))
    return metric if isinstance(metric, ImageMetric) else None


def title(name: str) -> str:
    """A measure as it heads a column, with the direction in which it is better."""
    if name in TITLES:
        return TITLES[name]
    if metric := metric_of(name):
        return metric.title + ARROWS[metric.better]
    if each := of_image(name):
        what, comma, unit = each.title.partition(", ")
        return f"{what} of each sample{comma}{unit}{ARROWS[each.better]}"
    of = metric_of(name.removesuffix("_infinity"))
    return f"{of.title}, n → ∞ ↓" if isinstance(of, SetMetric) else name


def about(name: str) -> str:
    """What a measure is; nothing where that is not known."""
    metric = metric_of(name)
    if metric is None and of_image(name):
        return f"Its mean over the samples. {about(name.removesuffix(SAMPLED))}"
    return metric.about.replace("\n", " ") if metric else ABOUT.get(name, "")


def bare(name: str) -> str:
    """The title of a measure without the arrow and the unit."""
    return re.sub(r"( [↑↓]| → [\d.]+|, .*)+$", "", title(name))


def unit(name: str) -> str:
    """The unit of a metric of images, as its title has it; nothing where it has none."""
    metric = of_image(name)
    return metric.title.partition(", ")[2] if metric else ""


def better(name: str) -> Better:
    """Which values of a measure are: of residuals, errors and seconds the lower; None where neither is."""
    if metric := metric_of(name.removesuffix(SAMPLED)):
        return metric.better
    if name == "z_rms":
        return "one"
    if name == "round_trip":
        return "higher"
    return "lower" if name in ("residual", "error_rms", "seconds") else None


def badness(name: str, values: np.ndarray) -> np.ndarray:
    """Values so that lower is better; where neither is, as they are."""
    match better(name):
        case "higher":
            return -values
        case "one":
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.abs(np.log(values))
        case _:
            return values


def badness_of(name: str, value: float | None) -> float | None:
    """Of one value, or mean; None of none, and of a ratio that is none."""
    found = math.nan if value is None else float(badness(name, np.array([value]))[0])
    return None if math.isnan(found) else found


def bounds(name: str) -> tuple[float, float]:
    """Least and largest value that a measure can have."""
    if metric := of_image(name):
        return metric.range
    return (-math.inf if name == "z_mean" else 0.0, 1.0 if name in COVERAGE else math.inf)


def limited(name: str, values: np.ndarray) -> np.ndarray:
    """The values as they count in means, differences and intervals: at most `most`, of a PSNR 100 dB.

    Identical images have an infinite PSNR. Without them, the best images would lower the mean.
    """
    return np.minimum(values, metric.most) if (metric := of_image(name)) else values


def counted(name: str, values: np.ndarray) -> np.ndarray:
    """The values of which there is a mean: those that are finite once they are `limited`."""
    values = limited(name, values)
    return values[np.isfinite(values)]


def average(name: str, values: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Mean of values that count and its 95 % interval, None where there are too few.

    The samples of a batch have its time between them, all the same: to the interval a batch is one value.
    """
    if not len(values):
        return None, None, None
    mean = moments(values)[0]
    if name == "seconds":
        each, sizes = np.unique(values, return_counts=True)
        values = mean + sizes / sizes.mean() * (each - mean)  # whose mean is that of the samples
    low, high = mean_interval(values, bounds(name))
    return finite(mean), finite(low), finite(high)


def difference(name: str, before: np.ndarray, after: np.ndarray) -> Mean:
    """`after` less `before`, (n,) each, of the pairs that count."""
    pairs = pairs_of(name, before, after)
    least, most = bounds(name)
    value = finite(moments(pairs)[0]) if len(pairs) else None
    low, high = map(finite, mean_interval(pairs, (least - most, most - least)))
    infinite = (np.isinf(before) | np.isinf(after)) & ~(np.isnan(before) | np.isnan(after))
    return Mean(value, low, high, len(pairs), int(infinite.sum()))


def pairs_of(name: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The differences that count."""
    with np.errstate(invalid="ignore"):
        found = limited(name, after) - limited(name, before)
    return found[np.isfinite(found)]


def share_better(name: str, before: np.ndarray, after: np.ndarray) -> float | None:
    """Share of the samples in which `after` is better, ties counted half; None where none has both."""
    known = ~(np.isnan(before) | np.isnan(after))
    worse, now = badness(name, before[known]), badness(name, after[known])
    return float((now < worse).mean() + (now == worse).mean() / 2) if known.any() else None


def histogram(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges by Rice's rule; values that differ by rounding only share one bin."""
    first, last = ordered[0], ordered[-1]
    alike = last - first <= 1e-9 * max(abs(first), abs(last))
    return np.histogram(ordered, 1 if alike else min(BINS, math.ceil(2 * len(ordered) ** (1 / 3))))


def finite(value: float) -> float | None:
    """JSON has no NaN: an interval of a single value is null."""
    return value if math.isfinite(value) else None


def number(value: float | None, digits: int | None = None) -> str:
    """A number for reading, with three digits behind the point, or with three that count if it is small."""
    if value is None:
        return "–"
    if digits is None and 0 < abs(value) < 0.1:
        return f"{value:#.3g}"
    return f"{value:.{3 if digits is None else digits}f}"


def count_of(counts: Sequence[float] | np.ndarray) -> float | None:
    """How often something was done for an image: a whole number, or a mean of one digit; None of none."""
    known = np.asarray(counts, float)
    if not (known := known[~np.isnan(known)]).size:
        return None
    mean = round(float(known.mean()), 1)
    return int(mean) if mean.is_integer() else mean


def interval(low: float | None, high: float | None) -> str:
    """The ends of an interval, as a cell of a table; a dash where there is none."""
    return "–" if low is None and high is None else f"{number(low)} … {number(high)}"


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A number with its interval in brackets, where it has one."""
    return number(value) + (f" ({interval(low, high)})" if low is not None or high is not None else "")


def count(measure: Mapping[str, Any]) -> str:
    """How many values a mean is of, how many are infinite, and how many more are undefined."""
    infinite, undefined = (measure.get(what) for what in ("infinite", "undefined"))
    found = f"{measure['n']} ({infinite} infinite)" if infinite else str(measure["n"])
    return f"{found} + {undefined} undefined" if undefined else found


def percent(share: float) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.1f} %"
