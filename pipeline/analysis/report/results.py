"""What a report states, as JSON values: all of metrics.json."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from kintsugi import operators
from kintsugi.operators import masks
from kintsugi.pipeline.analysis.aggregate import Summary
from kintsugi.pipeline.analysis.measures import percent
from kintsugi.pipeline.analysis.rows import Tally
from kintsugi.pipeline.execution.identity import files_of, recorded
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.sets import SetResult
from kintsugi.pipeline.parameters import in_words

PARTS = {
    "read": "waiting for images",
    "degrade": "degrading",
    "forward": "network: forwards",
    "vjp": "network: vector-Jacobian products",
    "sampler": "sampler beside the network",
    "score": "waiting for scores",
    "encode": "waiting for pictures to be encoded",
    "write": "writing",
}
REST = "the rest"
# In threads that work while the network does:
BESIDE = {"fetch": "reading", "decode": "decoding", "scoring": "scoring"}
BOUNDS = {
    "the network": ("forward", "vjp"),
    "the sampler": ("sampler",),
    "degrading": ("degrade",),
    "scoring": ("score",),
    "reading": ("read",),
    "writing": ("encode", "write"),
}
UNPAIRED = ("without_truth", "without_restored")
BY_COMMAND = "; restored by a command, whose own cost is not known"
GROUPS = 50  # at most, of a breakdown; breakdowns.csv has all
ON_DEVICE = ("degrade", "sample", "score")


def results(run: Run, tally: Tally, summary: Summary, sets: Mapping[str, SetResult]) -> dict[str, Any]:
    """Everything the report states, as JSON values."""
    return {
        "title": title(run.job),
        "samples": {
            "planned": run.summary.samples,
            "done": tally.rows,
            "ok": tally.rows - tally.failed,
            "failed": tally.failed,
        },
        "units": {"planned": run.summary.units, "done": tally.units},
        "metrics": {name: asdict(measure) for name, measure in summary.measures.items()},
        "sets": {name: asdict(result) for name, result in sets.items()},
        "breakdowns": {
            by: {"groups": len(groups), "largest": largest(groups, list(summary.measures))}
            for by, groups in summary.breakdowns.items()
        },
        "cost": {
            "forwards": summary.forwards,
            "vjps": summary.vjps,
            **summary.of_autoencoder,
            **more_of_cost(run.job),
        },
        "time": spent(tally),
        "failures": asdict(summary.failures),
        "shards": {
            "read": len(run.summary.shards),
            "damaged": run.summary.damaged,
            "empty": run.summary.empty,
            "left_out": {"files": run.summary.left_out, "first": run.summary.left_out_first},
        },
        "convention": convention(run.job) + (BY_COMMAND if by_command(run.job) else ""),
        "files": list(own_files(run)),
        "masks": list(mask_sources(run.job.degradation.operator)),
        "provenance": {
            "prior": [run.prior.title],
            **{name: sorted(values) for name, values in sorted(tally.made_by.items())},
            **{
                f"reference of {name}": [f"{result.reference}, SHA-256 {result.reference_sha256}"]
                for name, result in sets.items()
                if result.reference_sha256
            },
        },
        **({name: getattr(run.summary, name) for name in UNPAIRED} if run.job.is_score else {}),
        "config_hash": run.config_hash,
        "job": run.job.model_dump(mode="json"),
        "command": f"kintsugi run {shlex.quote(str(run.folder / 'job.yaml'))} --set output=NEW-FOLDER",
    }


def more_of_cost(job: Job) -> dict[str, int]:
    """The forwards per sample by which it is measured, and N where others are whole in every Nth alone."""
    found = {"measuring": job.measuring, "reuse": job.compute.reuse}
    return {name: count for name, count in found.items() if count}


def convention(job: Job) -> str:
    """Of the noise, and on which scale it is counted."""
    if job.is_score:
        return "not known: restored images were given"
    degradation = job.degradation
    if isinstance(degradation.sigma, dict):
        return f"{degradation.noise}; of each sample its own, which the sampler is told or estimates"
    if not degradation.sigma_y:
        return "no noise"
    return f"{degradation.noise}; standard deviation {degradation.sigma_y:g} on [-1, 1] for the sampler"


def largest(groups: pa.Table, measures: list[str]) -> list[dict[str, Any]]:
    """The largest groups of a breakdown, with (mean, low, high) of the measures that they have."""
    return [
        {name: row[column] for name, column in (("name", "group"), ("n", "n"), ("failed", "failed"))}
        | {
            "measures": {
                name: (row[name], row[f"{name}_low"], row[f"{name}_high"])
                for name in measures
                if row[name] is not None
            }
        }
        for row in groups.slice(0, GROUPS).to_pylist()
    ]


def title(job: Job) -> str:
    """What was done, in a line: "bicubic factor=4 · conjugate steps=5 · natural", "theirs against truth"."""

    if job.is_score:
        both = (job.data.shards, job.data.true_images)
        return " against ".join(", ".join(one) if isinstance(one, list) else str(one) for one in both)

    def line(spec: dict[str, Any]) -> str:
        words = {name: in_words(of) if isinstance(of, dict) else of for name, of in spec.items()}
        return " ".join([words.pop("name"), *(f"{name}={of}" for name, of in words.items())])

    parts = [line(job.degradation.operator), job.degradation.noise, line(job.sampler)]
    return " · ".join(parts if by_command(job) else [*parts, line(job.prior)])


def by_command(job: Job) -> bool:
    """Whether a program of the user restores, and no prior of the job's is asked."""
    return job.sampler.get("name") == "external"


def spent(tally: Tally) -> dict[str, Any]:
    """Where the workers' time went, and what bounds them."""
    total = tally.seconds.get("total", 0.0)
    if not total:
        return {
            "worker_seconds": 0.0,
            "parts": {},
            "beside": {},
            "device_share": None,
            "verdict": "No unit is done yet.",
        }
    seconds: dict[str, float] = dict(tally.seconds)
    if "sample" in seconds:  # a score has none
        seconds["sampler"] = seconds["sample"] - seconds.get("forward", 0.0) - seconds.get("vjp", 0.0)
    parts = {label: seconds[part] for part, label in PARTS.items() if part in seconds}
    parts[REST] = max(total - sum(parts.values()), 0.0)
    shares = {
        what: sum(seconds.get(part, 0.0) for part in of) / total
        for what, of in BOUNDS.items()
        if seconds.keys() & set(of)
    }
    first, *others = sorted(shares, key=lambda what: -shares[what])
    on_device = sum(seconds.get(part, 0.0) for part in ON_DEVICE) / total
    if first in ("reading", "writing"):
        kind = "I/O-bound"
    else:
        on_gpu = any("cuda" in device for device in tally.made_by.get("device", ()))
        kind = "GPU-bound" if on_gpu else "CPU-bound"
    rest = ", ".join(f"{what} {percent(shares[what])}" for what in others)
    return {
        "worker_seconds": total,
        "parts": {label: {"seconds": s, "share": s / total} for label, s in parts.items()},
        "beside": {label: seconds.get(part, 0.0) for part, label in BESIDE.items()},
        "device_share": on_device,
        "verdict": f"{kind}: {first} took {percent(shares[first])} of the workers' time; {rest}. "
        f"The device was busy for {percent(on_device)} of it.",
    }


def mask_sources(spec: Mapping[str, Any]) -> Iterator[str]:
    """Where the masks of an operator come from: a file, and what is known by it, or a rule and its seed."""
    for _, one in operators.specs_in(spec, "operator"):
        if (mask := one.get("mask")) is None:
            continue
        if isinstance(mask, Mapping):
            yield f"{in_words(mask)}, of each sample its own; SHA-256 in its row"
            continue
        if mask.lower().endswith(masks.SUFFIXES):
            yield f"{mask}, {one['known']} is known"
            continue
        drawn = f", drawn with seed {one.get('seed', 0)}" if mask in ("random", "freeform") else ""
        yield f"{mask}{drawn} (operators/masks.py)"


def own_files(run: Run) -> Iterator[dict[str, str | None]]:
    """The masks, kernels and tables that are files of the job's own: what each is, its name, and its SHA-256.

    It is that with which the run was begun, whatever the file is now; None of a run of an early version.
    """
    digests = recorded(run.folder)
    for field, spec, parameter in files_of(run.job):
        yield {"what": parameter, "name": Path(spec[parameter]).name, "sha256": digests.get(field)}
