"""Which rows of which runs and results are compared, and whether they restored the same measurements."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.analysis.protocol import Protocol, differing_protocols, same_task
from kintsugi.pipeline.analysis.query import rows_file
from kintsugi.pipeline.analysis.report.stored import read_exchange, read_metrics
from kintsugi.pipeline.analysis.stated import with_defaults
from kintsugi.pipeline.execution.directory import JOB, METRICS
from kintsugi.pipeline.execution.identity import recorded
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job, alike, deciding, flatten
from kintsugi.pipeline.storage.location import Location, at

OTHER_DEGRADATIONS = (
    "the runs restored different degradations: there is no common ranking, and only runs of the same one "
    "have differences, wins and p-values"
)
OTHER_ROUNDING = (
    "PSNR: of runs it is of restorations before rounding, of scored images of 8 bits, which lowers one of "
    "40 dB by 0.05 dB and one of 54 dB by 1.2 dB"
)


@dataclass(frozen=True)
class Input:
    """What takes part.

    Attributes:
        rows: the table of all its rows; None of a file with results, in which values of images may be.
        run: None of such a file, and of a folder that `score` of an earlier version made.
    """

    label: str
    rows: Location | None
    run: Run | None
    report: dict[str, Any]

    @property
    def restoring(self) -> Run | None:
        """The run, if it has restored the images itself; what made others is not known."""
        return None if self.run is None or self.run.job.is_score else self.run

    @property
    def has_images(self) -> bool:
        """Whether there is a value for each image, and not means alone."""
        return self.rows is not None or "values" in self.report


def open_inputs(names: Sequence[str]) -> list[Input]:
    """Find the rows of each run; of a .json read the results that are in it.

    Raises:
        JobError: fewer than two, what is neither a run directory nor made by `kintsugi score`, results that
            do not fit, or none that has values of images.
    """
    if len(names) < 2:
        raise JobError("compare: name at least two runs")
    try:
        folders = [at(name) for name in names]
    except ValueError as error:
        raise JobError(f"RUN: {error}") from error
    inputs = []
    for folder, label in zip(folders, labels(folders), strict=True):
        if folder.name.endswith(".json"):
            inputs.append(Input(label, None, None, read_exchange(folder)))
            continue
        rows = rows_file(folder)
        run = Run.open(folder) if (folder / JOB).exists() else None
        inputs.append(Input(label, rows, run, read_metrics(rows.parent / METRICS)))
        if inputs[-1].restoring is None:
            inputs[-1].report.pop("time", None)  # which scoring took, and not what made the images
    if not any(one.has_images for one in inputs):
        raise JobError("compare: the results are means alone; name a run, or results with values of images")
    return inputs


def labels(folders: Sequence[Location]) -> list[str]:
    """The folders' names; where these are the same with their parents', and numbered if these are, too.

    What XML does not have, and what could steer a terminal, is written as an escape.
    """
    for parts in (1, 2):
        found = [redacted("/".join(str(folder).split("/")[-parts:])) for folder in folders]
        if len(set(found)) == len(found):
            return found
    before = [found[:i].count(name) for i, name in enumerate(found)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(found, before, strict=True)]


def warnings(inputs: Sequence[Input]) -> list[str]:
    """Reasons why differences may not be due to the method."""
    first, *others = inputs
    found = []
    if first.restoring is None and protocol_in(first) is None:
        found.append(
            f"{first.label} scores images that were given: whether the others restored the same measurements "
            "is not known; name a run that restored them first"
        )
    if not can_be_ranked(inputs):
        found.append(OTHER_DEGRADATIONS)
    kinds = {one.restoring is None and protocol_in(one) is None for one in inputs}
    if len(kinds) == 2 and all("psnr" in one.report.get("metrics", {}) for one in inputs):
        found.append(OTHER_ROUNDING)
    for other in others if first.restoring is not None or protocol_in(first) else ():
        found += other_measurements(first, other)
    return found


def other_measurements(first: Input, other: Input) -> list[str]:
    """Why a run may have restored other measurements than the first one."""
    if first.restoring is not None and other.restoring is not None:
        fields = differing_fields(first.restoring, other.restoring)
    elif (one := protocol_in(first)) and (protocol := protocol_in(other)):
        fields = differing_protocols(one, protocol)
    else:
        what = "whether they were restored from the same measurements is not known"
        return [f"{other.label} scores images that were given: {what}"]
    return [
        f"{other.label}: {field} is {given!r}, of {first.label} {expected!r}"
        for field, expected, given in fields
    ]


def means_alone(first: Input, other: Input) -> list[str]:
    """What to know of results that have no values of images."""
    return [
        *other_measurements(first, other),
        f"{other.label} has means alone: it has no paired differences, and is not ranked",
    ]


def protocol_in(one: Input) -> Protocol | None:
    """What results state of how they came about; None where that is not what was restored."""
    protocol: Protocol | None = one.report.get("protocol")
    return protocol if protocol and protocol["operator"] else None


def can_be_ranked(inputs: Sequence[Input]) -> bool:
    """Whether all restored the same degradation, so that one can be said to be the best."""
    return all(same_degradation(*pair) for pair in itertools.combinations(inputs, 2))


def same_degradation(one: Input, other: Input) -> bool:
    """Whether the measurements came about in the same way, as far as is known of images of others."""
    if one.restoring is not None and other.restoring is not None:
        fields = differing_fields(one.restoring, other.restoring)
        return not any(field.startswith("degradation.") for field, _, _ in fields)
    if (first := protocol_in(one)) and (second := protocol_in(other)):
        return same_task(first, second)  # of the images, those of both are compared
    return True


def differing_fields(one: Run, other: Run) -> list[tuple[str, Any, Any]]:
    """What decides which measurements were restored and is not the same: fields, and the value of each run.

    A file is what is in it, wherever it lies, if both runs know its checksum.
    """
    first, second = deciding_fields(one.job), deciding_fields(other.job)
    sums, others = recorded(one.folder), recorded(other.folder)
    for field in sums.keys() & others.keys() & first.keys() & second.keys():
        first[field], second[field] = sums[field], others[field]
    return [
        (field, first.get(field), second.get(field))
        for field in sorted(first.keys() | second.keys())
        if not alike(first.get(field), second.get(field))
    ]


def deciding_fields(job: Job) -> dict[str, Any]:
    """The fields that decide which measurements were restored; an operator's with those left out."""
    found = {k: v for k, v in deciding(job).items() if k == "seed" or k.startswith("data.")}
    degradation = job.degradation
    noise: dict[str, Any] = {"poisson": degradation.poisson}
    if isinstance(degradation.sigma, dict):
        noise |= {"sigma": degradation.sigma, "sigma_range": degradation.sigma_range}
    else:
        noise["sigma on [-1, 1]"] = degradation.gaussian
    operator = numbered(with_defaults(degradation.operator))
    return found | flatten({"degradation": {"operator": operator, **noise}})


def numbered(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of an operator with the parts of `compose` by their number."""
    parts = {str(number): numbered(part) for number, part in enumerate(spec.get("operators", ()))}
    return dict(spec) | ({"operators": parts} if parts else {})
