"""metrics.json as it is read back, which may be somebody else's: of a run, or of images that were scored.

Other programs can write it, too: `Exchange` says what must be in it then, `schema` says it as JSON Schema.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Required, cast

import pyarrow as pa
from pydantic import AfterValidator, ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.protocol import Protocol, sha256_of_keys, sha256_of_spec
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.records import Count, Digest, Number, Text
from kintsugi.samplers.base import COUNTS


class OfSet(TypedDict, total=False):
    """A metric of the set: its value with what stands beside it, as `sets.SetResult` has it."""

    value: Number | None
    low: Number | None
    high: Number | None
    n: Count
    warnings: list[Text]
    reference: Text
    extra: dict[Text, Number]
    reference_sha256: Digest | None


class MeanOf(TypedDict, total=False):
    """The mean over n images, with its 95 % interval."""

    mean: Required[Number | None]
    low: Number | None
    high: Number | None
    n: Required[Count]


class OfImages(MeanOf, total=False):
    """A metric of images, with what a report states beside the mean."""

    deviation: Number | None
    infinite: Count
    undefined: Count
    quantiles: dict[Text, Number]
    edges: list[Number]
    counts: list[Count]
    worst: list[Text]
    best: list[Text]
    baselines: Any


def as_table(values: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Values of images by column; raises a ValueError unless each key stands once, with a value in each."""
    keys = values.get("key")
    if not keys or not all(isinstance(key, str) for key in keys):
        raise ValueError('it needs a column "key", of texts')
    if len(set(keys)) != len(keys):
        raise ValueError("a key occurs twice, so images cannot be paired by it")
    for name, column in values.items():
        if len(column) != len(keys):
            raise ValueError(f"{name!r} has {len(column)} values, of {len(keys)} keys")
        if name != "key" and any(isinstance(value, str) and value not in INFINITE for value in column):
            raise ValueError(f"{name!r} holds a text that is no number")
    return values


INFINITE = ("inf", "-inf")
Cell = Number | Text | None
"""A key, or a value: None is what an image lacks, "inf" and "-inf" what JSON has no number for."""
Values = Annotated[dict[Text, list[Cell]], AfterValidator(as_table)]


class Part(TypedDict):
    """Seconds of the workers' time, and their share of it."""

    seconds: Number
    share: Number


class Time(TypedDict):
    """Where the workers' time went."""

    worker_seconds: Number
    parts: dict[Text, Part]
    beside: dict[Text, Number]
    device_share: Number | None
    verdict: Text


class Shards(TypedDict, total=False):
    """What planning found; of what is left out the run's own report tells."""

    read: Required[Count]
    damaged: Required[dict[Text, Text]]
    empty: Required[list[Text]]
    left_out: Any


class NotReadBack(TypedDict, total=False):
    """What is there for other programs, and has no type here; some of it of scored images alone."""

    samples: Any
    units: Any
    breakdowns: Any
    calibration: Any
    estimates: Any
    cost: Any
    files: Any
    failures: Any
    job: Any
    without_truth: Any
    without_restored: Any


class Common(NotReadBack, total=False):
    """All that it may hold beside metrics of images: of scored images less."""

    # Not `allow`: where a bit of the digest's name has flipped, it is a field that nobody knows.
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    title: Text
    sets: dict[Text, OfSet]
    values: Values
    provenance: dict[Text, Text | list[Text]]
    config_hash: Digest
    convention: Text
    masks: list[Text]
    command: Text
    time: Time
    shards: Shards


class Stored(Common, total=False):
    """What a run directory has, of earlier versions, too."""

    metrics: dict[Text, dict[Text, Any]]
    protocol: Protocol


class Exchange(Common, total=False):
    """What is enough to stand in a table beside others: any program's, and any run's."""

    metrics: Required[dict[Text, OfImages]]
    protocol: Required[Protocol]


STORED = TypeAdapter(Stored)
EXCHANGE = TypeAdapter(Exchange)


def read_metrics(file: Location) -> dict[str, Any]:
    """What a metrics.json says, {} if there is none; raises a JobError if it is not what was written."""
    try:
        content = records.read(file)
    except FileNotFoundError:
        return {}
    stored = records.typed(STORED, content, file)
    return dict(stored)


def read_exchange(file: Location) -> dict[str, Any]:
    """The results in a file, of any program; raises a JobError that names the field that does not fit."""
    try:
        found = cast(dict[str, Any], records.typed(EXCHANGE, records.read(file), file))
    except FileNotFoundError as error:
        raise JobError(f"{file}: no such file") from error
    except JobError as error:
        hint = (
            "`kintsugi list schema` prints what results hold; `kintsugi report RUN` makes those of a run anew"
        )
        raise JobError(f"{error}; {hint}") from error
    refuse_contradictions(found, file)
    return found


def refuse_contradictions(found: Mapping[str, Any], file: Location) -> None:
    """Raise a JobError where a checksum or a number is not that of what stands beside it."""
    operator, images = found["protocol"]["operator"], found["protocol"]["images"]
    checked: list[tuple[str, Any, Any, str]] = []
    if operator is not None:
        checked.append(("operator.sha256", operator["sha256"], sha256_of_spec(operator["spec"]), "its spec"))
    if "values" in found:
        keys = sorted(found["values"]["key"], key=str.encode)
        checked.append(("images.count", images["count"], len(keys), "values"))
        checked.append(
            ("images.keys_sha256", images["keys_sha256"], sha256_of_keys(keys), "the keys in values")
        )
    for field, stated, now, what in checked:
        if stated not in (None, now):
            raise JobError(f"{file}: protocol.{field} is {stated}, of {what} it is {now}")


def table_of(report: Mapping[str, Any]) -> pa.Table:
    """Rows of the values of images in results; an image without any is a failed one."""
    keys, *names = sorted(report["values"], key=lambda name: name != "key")
    columns = {name: pa.array(map(number_of, report["values"][name]), pa.float64()) for name in names}
    known = [any(of[i].is_valid for of in columns.values()) for i in range(len(report["values"][keys]))]
    evaluations = report["protocol"]["evaluations"] or {}
    cost = {name: [evaluations[name]] * len(known) for name in COUNTS if name in evaluations}
    return pa.table(
        {
            "key": pa.array(report["values"][keys], pa.string()),
            "status": ["ok" if one else "failed" for one in known],
            "error": pa.array([None if one else "it has no value" for one in known], pa.string()),
            **columns,
            **cost,
        }
    )


def number_of(value: float | str | None) -> float | None:
    """A value as a number: JSON has none for an infinite one."""
    return None if value is None else float(value)


def schema() -> dict[str, Any]:
    """JSON Schema of what `read_exchange` reads."""
    found = EXCHANGE.json_schema()
    found["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    found["title"] = "Results of Kintsugi, metrics.json"
    found["properties"]["sha256"] = {
        "description": "Of the file without this field; other programs leave it out.",
        "pattern": "^[0-9a-f]{64}$",
        "type": "string",
    }
    return found
