"""The numbers of a report as tables, in words and as shapes: what is read from metrics.json."""

from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.csv

from kintsugi.pipeline.analysis.measures import (
    ASCENDING,
    bare,
    better,
    interval,
    number,
    title,
    with_interval,
)
from kintsugi.pipeline.analysis.tables import Table, no_formula
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.registry import BASELINES, COVERAGE, baseline_column

IDEAL = {**{name: f"{share:g}" for name, share in COVERAGE.items()}, "z_mean": "0", "z_rms": "1"}
STATED = ("value", "low", "high", "deviation")


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of images, whose mean is the value, and of the set with the numbers beside them."""
    found = {name: {"value": v["mean"], **v} for name, v in metrics["metrics"].items()}
    for name, v in metrics["sets"].items():
        found[name] = v
        found |= {extra: {"value": value, "n": v["n"]} for extra, value in v["extra"].items()}
    return found


def table(metrics: Mapping[str, Any]) -> Table:
    """The headline table."""
    rows = [
        [title(name), *(number(v.get(part)) for part in STATED), str(v["n"])]
        for name, v in numbers(metrics).items()
    ]
    return Table(["measure", *STATED, "n"], rows)


def exact_table(metrics: Mapping[str, Any]) -> Table:
    """The same and the baselines for programs: names for titles, all digits, nothing where nothing is."""
    stated = list(numbers(metrics).items())
    for name, baseline, v in baselines(metrics):
        stated += [(baseline_column(name, baseline), v), (f"{name}_less_{baseline}", v["difference"])]
    rows = [
        [name, *("" if (value := v.get(part)) is None else repr(value) for part in STATED), str(v["n"])]
        for name, v in stated
    ]
    return Table(["measure", *STATED, "n"], rows)


def baselines(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Each measure of what needs no network: the measure, the baseline, and its numbers."""
    for name, measure in metrics["metrics"].items():
        for baseline, v in measure.get("baselines", {}).items():
            yield name, baseline, v


def against(metrics: Mapping[str, Any]) -> Table:
    """Each measure of what needs no network, H⁺y and linear MMSE, and what restoring adds to it."""
    rows = [
        [
            bare(name),
            BASELINES[baseline],
            number(v["value"]),
            with_interval(*(v["difference"][part] for part in ("value", "low", "high"))),
            "–" if v["improved"] is None else f"{100 * v['improved']:.0f} %",
        ]
        for name, baseline, v in baselines(metrics)
    ]
    return Table(["measure", "no network", "mean", "restored less this, 95 %", "improved"], rows)


def calibration_table(metrics: Mapping[str, Any]) -> Table:
    """What several samples say of their error, beside what it should be; no rows where there are none."""
    columns = ["of the samples", "should be", "is", "95 %", "images"]
    if (found := metrics.get("calibration")) is None:
        return Table(columns, [])
    stated = [(name, v) for name, v in metrics["metrics"].items() if name in (*IDEAL, "error_rms")]
    rows = [
        [bare(name), IDEAL.get(name, "–"), number(v["mean"]), interval(v["low"], v["high"]), str(v["n"])]
        for name, v in stated
    ]
    ends, n = found["ratio"], str(sum(group["n"] for group in found["groups"]))
    last = [number(ends["value"]), interval(ends["low"], ends["high"]), n]
    return Table(columns, [*rows, ["error / spread √(1 + 1/K), RMS of all", "1", *last]])


def estimates_table(metrics: Mapping[str, Any]) -> Table:
    """What was estimated with each sample, and how far from the truth; no rows where nothing was."""
    columns = ["estimated", "range", "error, median", "error, 90 %", "deviation", "within 2 of it, 95 %", "n"]
    rows = []
    for found in metrics.get("estimates", []):
        shares = [
            "–" if found.get(name) is None else f"{100 * found[name]:.1f} %" for name in ("error", "error_90")
        ]
        within = found.get("within")
        covered = with_interval(*(within[part] for part in STATED[:3])) if within else "–"
        span = " … ".join(f"{end:g}" for end in found["range"])
        stated = number(found.get("deviation"))
        rows.append([found["field"], span, *shares, stated, covered, str(found["n"])])
    return Table(columns, rows)


def about_baselines(metrics: Mapping[str, Any]) -> list[str]:
    """In words, where restoring did worse than that, and which of it there is not."""
    known = list(baselines(metrics))
    found = [
        f"{bare(name)}: {BASELINES[baseline]}, which needs no network, does better on "
        f"{100 - 100 * v['improved']:.0f} % of the images"
        for name, baseline, v in known
        if v["improved"] is not None and v["improved"] < 0.5
    ]
    if known and not any(baseline == "lmmse" for _, baseline, _ in known):
        found.append("there is no linear MMSE estimate: the operator is not linear")
    return found


def published(job: Job) -> list[str]:
    """The metrics of which the literature's numbers are known."""
    values = [entry.values for entry in job.published]
    return list(dict.fromkeys(name for each in values for name, value in each.items() if value is not None))


def groups_csv(breakdowns: Mapping[str, pa.Table]) -> bytes:
    """All groups of all breakdowns, with all digits."""
    sink = BytesIO()
    found = pa.concat_tables(
        table.add_column(0, "by", pa.array([by] * len(table), pa.string()))
        for by, table in breakdowns.items()
    )
    names = pa.array([no_formula(name) for name in found["group"].to_pylist()], pa.string())
    pyarrow.csv.write_csv(found.set_column(1, "group", names), sink)
    return sink.getvalue()


def orders(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the samples can be sorted by, as the script reads it, and in words."""
    found = [("place:1", "as in the job"), ("failed:-1", "failures first")]
    for name in metrics:
        low, high = (f"{bare(name)}, {end} first" for end in ASCENDING[better(name)])
        found += [(f"{name}:1", low), (f"{name}:-1", high)]
    return [order for order in found if not order[0].startswith("seconds")]


def histogram(measure: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """A histogram as shapes in a square of 100 × 100: bars (x, y, width, height), and where quantiles are.

    Args:
        most: the count of a bar as high as the square; the default is the largest one.
    """
    edges, counts = measure["edges"], measure["counts"]
    width, most = (edges[-1] - edges[0]) or 1.0, most or max(counts)

    def place(value: float) -> float:
        return round(100 * (value - edges[0]) / width, 2)

    bars = [
        (place(left), round(100 - 100 * count / most, 2), place(edges[0] + right - left), 100 * count / most)
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    return {"bars": bars, "quantiles": {q: place(value) for q, value in measure["quantiles"].items()}}
