"""What each of the runs that are compared is by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.measures import QUANTILES, average, count_of, counted, histogram, title
from kintsugi.pipeline.analysis.report.gallery import failures

Estimate = tuple[float | None, float | None, float | None]
"""A number, and its 95 % interval; None where it has none."""


@dataclass(frozen=True)
class Cost:
    """What an image costs; None where it is not known, as of images made by another program.

    Attributes:
        forwards, vjps: of the network, a mean where they differ. seconds: of the sampler, mean.
    """

    forwards: float | None = None
    vjps: float | None = None
    seconds: float | None = None

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


def common_edges(values: np.ndarray) -> np.ndarray:
    """Of the bins in which the runs' histograms of a measure are comparable."""
    return histogram(values)[1] if len(values) else values


def describe(
    values: Mapping[str, np.ndarray], edges: Mapping[str, np.ndarray]
) -> tuple[dict[str, Estimate], dict[str, int], dict[str, Any]]:
    """Means with intervals, how many values are infinite, and histograms, by measure."""
    means, infinite, histograms = {}, {}, {}
    for name, of in values.items():
        known = counted(name, of)
        means[name], infinite[name] = average(name, known), int(np.isinf(of).sum())
        if len(known) and name in edges:
            histograms[name] = {
                "edges": edges[name].tolist(),
                "counts": np.histogram(known, edges[name])[0].tolist(),
                "quantiles": {str(q): float(np.quantile(known, q)) for q in QUANTILES},
            }
    return means, infinite, histograms


def run_numbers(
    one: Input,
    table: pa.Table,
    absent: int,
    compared: pa.Table,
    described: tuple[dict[str, Estimate], dict[str, int], dict[str, Any]],
) -> RunNumbers:
    """What a run is by itself.

    Args:
        table, compared: all of its rows, and those of the compared images. described: these, by `describe`.
    """
    means = described[0]
    forwards, vjps = (
        count_of(compared[name].to_numpy()) if name in compared.schema.names else None
        for name in ("forwards", "vjps")
    )
    return RunNumbers(
        one.label,
        one.report.get("title", ""),
        len(table),
        len(table) - pc.sum(pc.equal(table["status"], "ok")).as_py(),
        absent,
        *described,
        sets=one.report.get("sets", {}),
        failures=failures(table),
        cost=Cost(forwards, vjps, means["seconds"][0] if "seconds" in means else None),
    )


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
        cost=Cost(evaluations.get("forwards"), evaluations.get("vjps"), seconds),
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
            if of.get("n") not in (None, images)
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
