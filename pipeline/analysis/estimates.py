"""What was estimated with each sample, against what is true: of all samples of a run."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.intervals import mean_interval
from kintsugi.pipeline.analysis.measures import finite
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.parameters import DEVIATION, ESTIMATE
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location

POINTS = 200  # in a figure, at most


def estimates(run: Run, rows_file: Location) -> list[dict[str, Any]]:
    """Of each parameter that was estimated, as JSON values; none of a run without such.

    `field` and `range` are the job's, `n` its samples, `deviation` the median of those that are stated. Where
    true values are known: `error`, the median of |estimate / truth − 1|, and `error_90`, below which are 90 %
    of them; `within`, with its 95 % interval, the share of truths at most two stated deviations away;
    `points`, (truth, estimate) of the first samples in the order of their keys.
    """
    found = []
    for parameter in run.job.degradation.parameters:
        if parameter.range is None:
            continue
        columns = [parameter.column] if parameter.has_source else []
        columns += [parameter.column + ESTIMATE, parameter.column + DEVIATION]
        with parquet(rows_file) as file:
            table = file.read(["key", "status", *columns])
        # In an order that is not that of the rows, on which sums would depend.
        table = table.filter(pc.equal(table["status"], "ok")).sort_by([("key", "ascending")])
        *true, estimate, deviation = (table[name].to_numpy() for name in columns)
        of: dict[str, Any] = {"field": parameter.field, "range": list(parameter.range), "n": len(estimate)}
        if len(estimate):
            of["deviation"] = float(np.median(deviation))
            of |= against(true[0], estimate, deviation) if true else {}
        found.append(of)
    return found


def against(true: np.ndarray, estimate: np.ndarray, deviation: np.ndarray) -> dict[str, Any]:
    """What `estimates` says of a parameter whose true values (n,) are known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.abs(estimate / true - 1)
    within = (np.abs(estimate - true) <= 2 * deviation).astype(float)
    low, high = map(finite, mean_interval(within, (0.0, 1.0)))
    known = errors[np.isfinite(errors)]
    return {
        "error": float(np.median(known)) if len(known) else None,
        "error_90": float(np.quantile(known, 0.9)) if len(known) else None,
        "within": {"value": float(within.mean()), "low": low, "high": high},
        "points": np.stack([true, estimate], axis=1)[:POINTS].tolist(),
    }
