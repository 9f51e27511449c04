"""Rows: what is written of each sample of a unit."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.pictures import array_file, encode
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution.commit import Commit, read_features, read_rows, schema_of
from kintsugi.pipeline.execution.degrade import eight_bits
from kintsugi.pipeline.execution.stage import Restored, Scored
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.features import arrays
from kintsugi.pipeline.parameters import DEVIATION, ESTIMATE, FILE, Parameter, Value
from kintsugi.pipeline.storage.location import Location

GALLERY = 16  # the first samples of a job keep all their pictures, for the report

Result = Scored | str
"""What came of a sample: its scores, with what was restored here, or why it failed."""


class Done(NamedTuple):
    """A sample that is done: its row, the sampler's seconds for it, and its features by space."""

    row: dict[str, Any]
    seconds: float
    features: Mapping[str, np.ndarray]


def done(job: Job, unit: Unit, sample: Decoded, result: Result) -> Done:
    """A sample with its row, as `commit.schema_of` has it."""
    error = result if isinstance(result, str) else result.error
    row = failed_row(job, unit, sample, error or "")
    if isinstance(result, str) or sample.image is None:
        return Done(row, 0.0, {})
    shown = unit.first + sample.index - unit.start < GALLERY
    if isinstance(result, Restored):
        row |= {"forwards": result.forwards, "vjps": result.vjps, "batch_size": result.batch_size}
        row |= result.of_autoencoder
        row["residual"] = result.residual if result.error is None else None
    if result.error is None:
        row |= result.metrics | {"status": "ok", "error": None}
        row |= pictures(job, result, sample, shown)
    if isinstance(result, Restored) and result.own is not None:
        for parameter, value in result.own.values.items():
            row |= cells(parameter, value, shown or job.images == "all")
        for parameter, (value, deviation) in result.own.estimates.items():
            row |= {parameter.column + ESTIMATE: value, parameter.column + DEVIATION: deviation}
    return Done(row, result.seconds, result.features)


def cells(parameter: Parameter, value: Value, with_file: bool) -> dict[str, Any]:
    """What a row says of a parameter of its own: a number, or the SHA-256 of a mask or kernel, and its file.

    The file is of a mask (H, W) a PNG, white where it is known, and otherwise an .npy.
    """
    if not isinstance(value, Tensor):
        return {parameter.column: float(value)}
    array = value.cpu().numpy()
    made: dict[str, Any] = {parameter.column: hashlib.sha256(array.tobytes()).hexdigest()}
    if with_file:
        is_mask = array.ndim == 2 and array.dtype == bool
        file = encode(array[..., None] * np.uint8(255)) if is_mask else array_file(array)
        made[parameter.column + FILE] = file
    return made


def pictures(job: Job, result: Scored, sample: Decoded, shown: bool) -> dict[str, Any]:
    """The pictures of a row that are kept, as files; `shown`: in the report."""
    given, truth = sample.array, sample.truth
    everything = shown or job.images == "all"
    restored = shown or job.images != "none"
    if not isinstance(result, Restored):
        return {
            "restored": encode(given[0]) if restored else None,
            "truth": encode(given[1]) if everything else None,
        }
    several = result.several
    if not job.from_measurements:
        return {
            "spread": several and several.spread,
            "deviation": array_file(several.deviation) if several and everything else None,
            "samples": [encode(one) for one in several.samples] if several and everything else None,
            "restored": encode(result.restored) if restored else None,
            "measurement": encode(result.measurement) if everything else None,
            "truth": encode(eight_bits(given)) if everything else None,
        }
    form = job.restoration.format
    return {
        "restored": encode(result.restored, form),
        "measurement": encode(result.measurement) if everything else None,
        "truth": encode(eight_bits(truth)) if everything and truth is not None else None,
        "deviation": several and array_file(several.deviation),
        "spread": several and several.spread,
        "samples": several and [encode(one, form) for one in several.samples],
    }


def failed_row(job: Job, unit: Unit, sample: Decoded, error: str) -> dict[str, Any]:
    """The row of a sample that could not be restored."""
    return dict.fromkeys(schema_of(job).names) | {
        "key": sample.key,
        "shard": unit.shard,
        "index": sample.index,
        "label": sample.label,
        "source": sample.source,
        "status": "failed",
        "error": error,
        "seed": job.seed,
        "file": sample.file,
    }


def kept_of(job: Job, folder: Location, committed: Commit | None) -> dict[str, Done]:
    """By key, the samples of a committed unit that did not fail, {} of None; raises as `read_rows`."""
    if committed is None:
        return {}
    rows = read_rows(folder, committed, schema_of(job, latents=True).names).to_pylist()
    features: dict[str, dict[str, np.ndarray]] = {}
    if (stored := read_features(folder, committed)) is not None:
        columns, keys = arrays(stored), stored["key"].to_pylist()
        features = {key: {name: of[i] for name, of in columns.items()} for i, key in enumerate(keys)}
    return {
        row["key"]: Done(row, seconds, features.get(row["key"], {}))
        for row, seconds in zip(rows, committed.sample_seconds, strict=True)
        if row["status"] == "ok"
    }
