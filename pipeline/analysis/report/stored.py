"""metrics.json as it is read back, which may be somebody else's: of a run, or of images that were scored."""

from typing import Any, Required

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.records import Count, Digest, Number, Text


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


class Stored(NotReadBack, total=False):
    """All that it may hold: of scored images less."""

    # Not `allow`: where a bit of the digest's name has flipped, it is a field that nobody knows.
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    title: Text
    metrics: dict[Text, dict[Text, Any]]
    sets: dict[Text, OfSet]
    provenance: dict[Text, Text | list[Text]]
    config_hash: Digest
    convention: Text
    masks: list[Text]
    command: Text
    time: Time
    shards: Shards


STORED = TypeAdapter(Stored)


def read_metrics(file: Location) -> dict[str, Any]:
    """What a metrics.json says, {} if there is none; raises a JobError if it is not what was written."""
    try:
        content = records.read(file)
    except FileNotFoundError:
        return {}
    stored = records.typed(STORED, content, file)
    return dict(stored)
