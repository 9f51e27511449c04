"""Identity: what else than its job and its prior a run's results depend on, by SHA-256.

These are the files of masks, the weights of metrics, and what metrics of sets compare with; and the packages
of plug-ins, by version. The run keeps them by field in files.json, and is not continued with others.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from kintsugi import operators, priors, samplers
from kintsugi.errors import JobError
from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.execution.directory import FILES
from kintsugi.pipeline.execution.reference import reference_of
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import REGISTRY, SETS
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.pipeline.storage.records import read, typed

Digests = dict[str, str]
"""SHA-256, hexadecimal, or a plug-in's "distribution==version", by field of the job."""
CHECKSUMS = TypeAdapter(Digests, config=ConfigDict(strict=True))


def of_specs(job: Job) -> Digests:
    """Of the files that the degradation and the sampler are made of; raises as `sha256`."""
    return {field: sha256(field, spec[parameter]) for field, spec, parameter in files_of(job)}


def files_of(job: Job) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(field, the spec it is in, its name there) for every file that the degradation and the sampler name."""
    yield from operators.files_of(job.degradation.operator, "degradation.operator")
    yield from samplers.files_of(job.sampler, "sampler")


def sha256(field: str, path: str) -> str:
    """Of a file that a field names; raises a JobError if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise JobError(f"{field}: {path} cannot be read: {error}") from error


def of_plugins(job: Job) -> Digests:
    """The packages of the plug-ins that a job names, by field, of metrics by metrics.NAME; imports none."""
    found = priors.REGISTRY.packages(job.prior, "prior") | samplers.REGISTRY.packages(job.sampler, "sampler")
    for field, spec in operators.specs_in(job.degradation.operator, "degradation.operator"):
        found |= operators.REGISTRY.packages(spec, field)
    return found | of_metrics(job.metrics)


def of_metrics(names: Sequence[str]) -> Digests:
    """The packages of the plug-ins among metrics, by metrics.NAME."""
    packages = [REGISTRY.packages({"name": name}, f"metrics.{name}") for name in names]
    return {field: package for each in packages for field, package in each.items()}


def of_weights(job: Job) -> Digests:
    """Of the weights of metrics, as far as they are on this machine: that of a driver may have none."""
    found = {}
    for name in job.metrics:
        if (weights := REGISTRY[name].weights) is not None:
            field = f"metrics.{name}" if name in REGISTRY.builtin else f"metrics.{name}.weights"
            with suppress(MissingWeights):
                found[field] = weights.digest()
    return found


def of_reference(job: Job) -> Digests:
    """Of what metrics of sets compare with, unless it is the truth, or images that are not there any more.

    Raises:
        JobError: its file cannot be read.
    """
    asked = [SETS[name] for name in job.metrics if name in SETS]
    if not asked or job.reference == "truth":
        return {}
    if isinstance(job.reference, str) and not job.reference.endswith(".npz"):
        try:
            return {"reference": Collection("reference", job.reference).contents()}
        except JobError:
            return {}  # the statistics that the run keeps must do, and the report says so
    reference = reference_of(job.reference, Path())
    files = sorted({reference.digest(metric) or "" for metric in asked})
    return {"reference": files[0] if len(files) == 1 else hashlib.sha256("".join(files).encode()).hexdigest()}


def of_truth(job: Job) -> Digests:
    """Of which true images are compared with, not of what is in them; raises as `Collection`."""
    truth = job.data.true_images
    return {} if truth is None else {"data.truth": Collection("data.truth", truth).digest()}


def of_job(job: Job) -> Digests:
    """Of all files on which the results of a job depend; raises as those above."""
    return of_specs(job) | of_weights(job) | of_reference(job) | of_plugins(job) | of_truth(job)


def text_of(values: Mapping[str, Any]) -> bytes:
    """What prior.json and files.json hold."""
    return (json.dumps(values, indent=2) + "\n").encode()


def record(folder: Location, job: Job) -> None:
    """Write down the files with which a run is begun, over what a killed driver left; raises as `of_job`."""
    publish_bytes(folder / FILES, text_of(of_job(job)))


def keep_to(folder: Location, job: Job) -> None:
    """Raise a JobError that names fields if files are others than those with which a run was begun."""
    if changed := list(differing(recorded(folder), of_job(job))):
        raise JobError(
            f"{folder} was begun with other files; choose another output, or restore them:\n  "
            + "\n  ".join(changed)
        )


def recorded(folder: Location) -> Digests:
    """Of the files with which a run was begun, {} of an early version; raises as `records.typed`."""
    try:
        return typed(CHECKSUMS, read(folder / FILES), folder / FILES)
    except FileNotFoundError:
        return {}
    except JobError as error:
        raise JobError(
            f"{error}; put back a copy, or delete it if the files are those with which the run was begun"
        ) from error


def differing(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Which fields name another file than before, in words."""
    for field in sorted(before.keys() & now.keys()):
        if before[field] != now[field]:
            what = "plug-in" if "==" in before[field] else "SHA-256"
            yield f"{field}: {what} {before[field]} → {now[field]}"


def refuse_changed(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise a JobError for files that a worker has read and that are not those of its run."""
    if changed := list(differing(before, now)):
        raise JobError("a file changed while the run went on:\n  " + "\n  ".join(changed))
