"""What a run states for others: its protocol, and, of few images, their values."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from inspect import signature
from pathlib import Path
from typing import Any, cast

import pyarrow.compute as pc

from kintsugi import operators, samplers
from kintsugi.operators import draws
from kintsugi.pipeline.analysis.aggregate import Summary
from kintsugi.pipeline.analysis.protocol import (
    Evaluations,
    OperatorOf,
    Protocol,
    Start,
    sha256_of_keys,
    sha256_of_spec,
)
from kintsugi.pipeline.analysis.rows import Tally, measures_in
from kintsugi.pipeline.execution.identity import recorded
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.files import parquet
from kintsugi.samplers.descent import Descent
from kintsugi.samplers.grids import Span

BLOCK = 1 << 16  # keys that are held as Python's texts
FEW = 1000  # images of which metrics.json has the values; of more, rows.parquet has them
OTHER_SOFTWARE = ("device", "host", "prior_sha256")  # of provenance, what is no package


def protocol_of(run: Run, tally: Tally, summary: Summary, rows: Path) -> Protocol:
    """The protocol of a run.

    Args:
        rows: the flat table of all its rows.
    """
    job = run.job
    found: Protocol = {
        "version": 1,
        "images": {
            "count": tally.rows,
            "keys_sha256": sha256_of_keys(sorted_keys(rows)),
            "shards_sha256": run.summary.shards_sha256 or None,
            "channels": job.data.channels,
        },
        "operator": None,
        "noise": None,
        "evaluations": None,
        "samples": job.restoration.samples_per_image,
        "best_of": 1,
        "seeds": [job.seed],
        "software": software(tally),
    }
    if job.is_score:
        return found
    degradation, (forwards, vjps) = job.degradation, (summary.forwards, summary.vjps)
    found["operator"] = operator_of(degradation.operator, recorded(run.folder))
    found["noise"] = {
        "sigma": degradation.sigma,
        "range": degradation.sigma_range,
        "poisson": degradation.poisson,
    }
    found["images"] |= {"size": job.data.size, "fit": job.data.fit}
    found["start"], found["sampler"] = start_of(job.sampler), job.sampler
    if found["start"] and summary.of_autoencoder:  # which is as far as the prior's path reaches
        found["start"]["sigma"] = None
    counts = {"forwards": forwards, "vjps": vjps, "total": forwards + vjps}
    evaluations = cast(Evaluations, counts | summary.of_autoencoder)
    if job.compute.reuse is not None:
        evaluations["reuse"] = job.compute.reuse
    found["evaluations"] = evaluations
    found["prior"] = {"title": run.prior.title, "sha256": run.prior.sha256}
    return found


def software(tally: Tally) -> list[str]:
    """Packages and their versions, of all workers."""
    return [
        f"{name} {version}"
        for name, versions in sorted(tally.made_by.items())
        if name not in OTHER_SOFTWARE
        for version in sorted(versions)
    ]


def sorted_keys(rows: Path) -> Iterator[str]:
    """The keys of a flat table, by their UTF-8."""
    with parquet(rows) as file:
        keys = file.read(["key"])["key"]
    keys = keys.take(pc.sort_indices(keys))
    for start in range(0, len(keys), BLOCK):
        yield from keys.slice(start, BLOCK).to_pylist()


def values_of(rows: Path, summary: Summary) -> dict[str, list[Any]]:
    """Keys and values of the images of a flat table, by column; {} where they are more than a few.

    None is what a sample lacks, "inf" what JSON does not have.
    """
    with parquet(rows) as file:
        if not 0 < file.metadata.num_rows <= FEW:
            return {}
        names = [name for name in measures_in(file.schema_arrow) if name in summary.measures]
        table = file.read(["key", "status", *names]).sort_by("key")
    ok = table["status"].to_pylist()
    found = {"key": table["key"].to_pylist()}
    for name in names:
        values = zip(table[name].to_pylist(), ok, strict=True)
        found[name] = [written(value) if status == "ok" else None for value, status in values]
    return found


def written(value: float | None) -> float | str | None:
    """A value as JSON has it."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def operator_of(spec: Mapping[str, Any], sums: Mapping[str, str]) -> OperatorOf:
    """A degradation with all its parameters; a file, wherever it lies, is its SHA-256.

    Args:
        sums: SHA-256 of files by field, as `identity.recorded` has them.
    """
    whole = with_defaults(deepcopy(dict(spec)))
    files = operators.files_of(whole, "degradation.operator")
    for field, part, parameter in list(files):  # a list, since what it walks through is changed
        part[parameter] = f"sha256:{sums[field]}" if field in sums else Path(part[parameter]).name
    plain = json.loads(json.dumps(whole))
    return {"spec": plain, "sha256": sha256_of_spec(plain)}


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of an operator with every parameter, also of what is drawn, and so the parts of `compose`."""
    found = parameters_left_out(operators.REGISTRY[spec["name"]]) | dict(spec)
    for name, value in found.items():
        if isinstance(value, Mapping) and value.get("draw") in draws.REGISTRY:
            found[name] = parameters_left_out(draws.REGISTRY[value["draw"]]) | dict(value)
    if parts := spec.get("operators"):
        found["operators"] = [with_defaults(part) for part in parts]
    return found


def parameters_left_out(factory: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of parameters, tuples as lists."""
    given = signature(factory).parameters.items()
    defaults = {name: of.default for name, of in given if of.default is not of.empty}
    return {name: list(of) if isinstance(of, tuple) else of for name, of in defaults.items()}


def start_of(spec: Mapping[str, Any]) -> Start | None:
    """Where a sampler begins; None of one that has no such times, as a plug-in may be."""
    sampler = samplers.build(spec)
    if not isinstance(sampler, Descent | Span):
        return None
    return {"time": sampler.start, "init": getattr(sampler, "init", None), "sigma": sampler.start_level()}
