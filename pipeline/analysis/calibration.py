"""Calibration: does the spread of several samples tell their error? Of all images of a run."""

import math
from typing import Any

import numpy as np
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.intervals import mean_interval, moments
from kintsugi.pipeline.analysis.measures import finite
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location

GROUPS = 10  # of images, by their spread, at most
FEWEST = 4  # images in one


def calibration(run: Run, rows_file: Location) -> dict[str, Any] | None:
    """How large errors are against spreads, as JSON values; None of a run without samples and truth.

    `samples` is K. `ratio`, with its 95 % interval over the images, is the RMS error of the means over the
    RMS spread times √(1 + 1/K): 1 where truth and samples are draws from one distribution, whatever it is;
    more where the samples are too sure (Fortin et al., J. Hydrometeor. 2014). `groups` are images with
    spreads alike, the least first: how many, and both RMS, on [-1, 1]. Coverage and z-scores are among the
    measures.
    """
    if not run.job.calibrated:
        return None
    count = run.job.restoration.samples_per_image
    with parquet(rows_file) as file:
        table = file.read(["key", "status", "spread", "error_rms"])
    # In an order that is not that of the rows, on which sums would depend.
    order = [("spread", "ascending"), ("key", "ascending")]
    table = table.filter(pc.equal(table["status"], "ok")).sort_by(order)
    squares = np.stack([table[name].to_numpy() ** 2 for name in ("error_rms", "spread")])
    errors, spreads = squares[:, np.isfinite(squares).all(0)]
    expected = spreads * (1 + 1 / count)
    groups = np.array_split(np.arange(len(errors)), min(GROUPS, len(errors) // FEWEST) or 1)
    return {
        "samples": count,
        "ratio": dict(zip(("value", "low", "high"), ratio(errors, expected), strict=True)),
        "groups": [
            {"n": len(of), "spread": math.sqrt(expected[of].mean()), "error": math.sqrt(errors[of].mean())}
            for of in groups
            if len(of)
        ],
    }


def ratio(errors: np.ndarray, expected: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """√(mean of `errors` / mean of `expected`) and its 95 % interval, None where there is none.

    The interval is that of the mean of `errors` − ratio² · `expected`, to first order.

    Args:
        errors, expected: squares, (n,), finite.
    """
    mean = moments(expected)[0] if len(expected) else 0.0
    if mean == 0:
        return None, None, None
    square = moments(errors)[0] / mean
    low, high = (square + end / mean for end in mean_interval(errors - square * expected))
    return math.sqrt(square), finite(math.sqrt(max(low, 0.0))), finite(math.sqrt(max(high, 0.0)))
