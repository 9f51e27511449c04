"""What each of the runs that are compared is by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.compare_rows import Shared
from kintsugi.pipeline.analysis.measures import QUANTILES, average, count_of, counted, histogram, title
from kintsugi.pipeline.analysis.report.gallery import failures
from kintsugi.pipeline.metrics import CLIPS
from kintsugi.samplers.base import COUNTS

Estimate = tuple[float | None, float | None, float | None]
"""A number, and its 95 % interval; None where it has none."""
Described = tuple[Estimate, int, dict[str, Any] | None]
"""Of a measure: its mean, how many values are infinite, and the histogram, None where there is none."""


@dataclass(frozen=True)
class Cost:
    """What an image costs; None where it is not known, as of images made by another program.

    Attributes:
        forwards, vjps: of the network, a mean where they differ. seconds: of the sampler, mean.
        decodes, encodes, autoencoder_vjps: of the autoencoder of a prior of latents; None of one of pixels.
    """

    forwards: float | None = None
    vjps: float | None = None
    seconds: float | None = None
    decodes: float | None = None
    encodes: float | None = None
    autoencoder_vjps: float | None = None

    @property
    def evaluations(self) -> float | None:
        """Forwards and VJPs together.

        A VJP leads back through a forward that is counted already; with respect to the image alone, and not
        to the weights, it takes about as long as that (docs/measured.md: 47.0 % of the time, and 49.8 %).
        """
        return None if self.forwards is None else self.forwards + (self.vjps or 0)


@dataclass(frozen=True)
class RunNumbers:
    """What one run is by itself.

    Attributes:
        rows, failed: samples that it has. absent: samples of the other runs that it has no row of.
        measures: means of the values that count over the compared images, and `infinite`, how many are not
            finite.
        histograms: of the values that count over the compared images, with the same edges in all runs.
        sets: metrics of the whole set as the report has them, with `n`; over all images of the run.
        failures: the first ones: place among the run's rows, key, error.
        cost: None where it is not known.
    """

    label: str
    title: str
    rows: int
    failed: int
    absent: int
    measures: dict[str, Estimate]
    infinite: dict[str, int]
    histograms: dict[str, dict[str, Any]]
    sets: dict[str, dict[str, Any]]
    failures: list[tuple[int, str, str]]
    cost: Cost

    def estimate(self, name: str) -> Estimate:
        """Of a measure, or a metric of the set."""
        if name in self.measures:
            return self.measures[name]
        value, low, high = (self.sets.get(name, {}).get(part) for part in ("value", "low", "high"))
        return value, low, high


def common_edges(name: str, values: np.ndarray) -> np.ndarray | None:
    """Of the bins in which the runs' histograms of a measure are comparable; None where no value counts."""
    known = np.sort(counted(name, values))
    return histogram(known)[1] if len(known) else None


def describe(name: str, values: np.ndarray, edges: np.ndarray | None = None) -> Described:
    """The mean of a measure with its interval, how many values are infinite, and their histogram."""
    known = counted(name, values)
    mean, infinite = average(name, known), int(np.isinf(values).sum())
    if edges is None or not len(known):
        return mean, infinite, None
    return (
        mean,
        infinite,
        {
            "edges": edges.tolist(),
            "counts": np.histogram(known, edges)[0].tolist(),
            "quantiles": {str(q): float(np.quantile(known, q)) for q in QUANTILES},
        },
    )


def run_numbers(one: Input, shared: Shared, run: int, described: Mapping[str, Described]) -> RunNumbers:
    """What a run is by itself.

    Args:
        run: its number in `shared`. described: by measure.
    """
    rows = shared.rows[run]
    counts = {name: count_of(shared.values(run, name)) for name in COUNTS if name in rows.schema.names}
    seconds = described["seconds"][0][0] if "seconds" in described else None
    return RunNumbers(
        one.label,
        one.report.get("title", ""),
        len(rows),
        len(rows) - pc.sum(pc.equal(rows["status"], "ok")).as_py(),
        shared.samples - len(rows),
        *by_measure(described),
        sets=one.report.get("sets", {}),
        failures=failures(rows),
        cost=Cost(seconds=seconds, **counts),
    )


def without_network(label: str, images: int, described: Mapping[str, Described]) -> RunNumbers:
    """What measurements give without a network."""
    return RunNumbers(label, "", images, 0, 0, *by_measure(described), {}, [], Cost())


def by_measure(
    described: Mapping[str, Described],
) -> tuple[dict[str, Estimate], dict[str, int], dict[str, dict[str, Any]]]:
    """Means, infinite values, and histograms where there are any."""
    means = {name: of[0] for name, of in described.items()}
    infinite = {name: of[1] for name, of in described.items()}
    return means, infinite, {name: of[2] for name, of in described.items() if of[2] is not None}


def listed_numbers(one: Input) -> RunNumbers:
    """What results without values of images state: means, of the images that they have."""
    report, metrics = one.report, one.report["metrics"]
    evaluations = report["protocol"]["evaluations"] or {}
    seconds = metrics.get("seconds", {}).get("mean")
    return RunNumbers(
        one.label,
        report.get("title", ""),
        report["protocol"]["images"]["count"],
        0,
        0,
        {name: (of["mean"], of.get("low"), of.get("high")) for name, of in metrics.items()},
        {},
        {},
        sets=report.get("sets", {}),
        failures=[],
        cost=Cost(seconds=seconds, **{name: evaluations.get(name) for name in COUNTS}),
    )


def set_warnings(runs: Sequence[RunNumbers]) -> list[str]:
    """Why metrics of sets must be read with care."""
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.sets):
        of_name = references(runs, name)
        if len(set(of_name.values())) > 1:
            of_each = ", ".join(f"{label} with {reference}" for label, reference in of_name.items())
            found.append(f"{title(name)} is not comparable: {of_each}")
        found += [
            f"{run.label}, {title(name)}: {warning}"
            for run in runs
            for warning in run.sets.get(name, {}).get("warnings", ())
        ]
    return found


def left_out_images(runs: Sequence[RunNumbers], images: int) -> list[str]:
    """In words, what of the runs is not among the images that are compared, and why."""
    found = []
    for run in runs:
        counts = {"failed": run.failed, "are not there": run.absent}
        if reasons := [f"{count} {what}" for what, count in counts.items() if count]:
            found.append(f"{run.label}: of {run.rows + run.absent} images, {' and '.join(reasons)}")
        found += [
            f"{run.label}: {count} values of {name} are infinite"
            for name, count in run.infinite.items()
            if count
        ]
        found += [
            f"{run.label}: {name} is of its {of['n']} images, not of the {images} compared"
            for name, of in run.sets.items()
            if name not in CLIPS and of.get("n") not in (None, images)
        ]
    return found


def references(runs: Sequence[RunNumbers], name: str) -> dict[str, str]:
    """What each run's set was compared with, and the checksum of that, by run."""
    found = {}
    for run in runs:
        if name in run.sets:
            checksum = run.sets[name].get("reference_sha256")
            known = run.sets[name].get("reference", "unknown")
            found[run.label] = f"{known} ({checksum[:12]})" if checksum else known
    return found
