"""What makes results comparable: which images, what was done to them, and what restoring them cost.

Every metrics.json has it under `protocol`, that of a run and that which another program writes.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BeforeValidator, Field, with_config
from typing_extensions import TypedDict

from kintsugi.pipeline.storage.records import Count, Digest, Number, Text

SCALES = {"[-1,1]": 1.0, "[0,1]": 2.0, "[0,255]": 2 / 255}
"""What a standard deviation on a range is multiplied by to be on [-1, 1]."""
BLOCK = 1 << 16  # keys that are encoded at once
SHOWN = 120  # characters of an operator in a message
WHICH = ("count", "keys_sha256", "shards_sha256")
MADE = ("size", "channels", "fit")
"""Of the fields of images, those that say which they are, and how they were made."""
CLOSED = with_config(extra="forbid")
Evaluated = Count | Annotated[float, Field(ge=0, le=1e90, allow_inf_nan=False)]
"""A mean where the images needed more or fewer."""


def one_only(value: Any) -> Any:
    """The number of results from which the one that counts was chosen; raises a ValueError unless it is 1."""
    if value != 1 or isinstance(value, bool):
        raise ValueError(
            f"the best of {value!r}: a result that was chosen by the truth is not comparable, and is not "
            "read; state the first of them, or the mean over all"
        )
    return value


def summed(value: "Evaluations") -> "Evaluations":
    """The evaluations; raises a ValueError if their sum is another one."""
    if value["total"] != value["forwards"] + value["vjps"]:
        raise ValueError(f"total is {value['total']}, forwards and vjps are together another number")
    return value


@CLOSED
class Images(TypedDict):
    """Which images: how many, SHA-256 of their sorted keys and of their shards', and how they were made.

    size: of a square, pixels. fit: as `data.fit` of a job, how images of other sizes came to it.
    """

    count: Count
    keys_sha256: Digest | None
    shards_sha256: NotRequired[Digest | None]
    size: NotRequired[Count | None]
    channels: NotRequired[Count | None]
    fit: NotRequired[Text | None]


@CLOSED
class OperatorOf(TypedDict):
    """A degradation: all its parameters, files by their SHA-256; and the `sha256_of_spec` of that."""

    spec: dict[str, Any]
    sha256: Digest | None


@CLOSED
class Noise(TypedDict):
    """Standard deviation, of each sample its own where it is a mapping, and the range that it is on."""

    sigma: Number | dict[str, Any]
    range: Literal["[-1,1]", "[0,1]", "[0,255]"]
    poisson: NotRequired[Number | None]


@CLOSED
class Start(TypedDict):
    """Where the sampler begins: its time, what of, and its noise over its signal, on [-1, 1]."""

    time: Number | None
    init: Text | None
    sigma: Number | None


@CLOSED
class Evaluations(TypedDict):
    """Of the network, for an image; a vector-Jacobian product is one of its own.

    decodes, encodes, autoencoder_vjps: of the autoencoder of a prior of latents, not in the total.
    reuse: `compute.reuse` of a job: forwards are whole in every Nth alone, in others the finest level.
    """

    forwards: Evaluated
    vjps: Evaluated
    total: Evaluated
    reuse: NotRequired[Count]
    decodes: NotRequired[Evaluated]
    encodes: NotRequired[Evaluated]
    autoencoder_vjps: NotRequired[Evaluated]


@CLOSED
class PriorOf(TypedDict):
    """The network in words, and the SHA-256 of its weights."""

    title: Text
    sha256: Digest | None


@CLOSED
class Protocol(TypedDict):
    """All of it; None is what is not known, as of images that were only scored."""

    version: Literal[1]
    images: Images
    operator: OperatorOf | None
    noise: Noise | None
    start: NotRequired[Start | None]
    evaluations: Annotated[Evaluations, AfterValidator(summed)] | None
    samples: NotRequired[Count]
    best_of: Annotated[Literal[1], BeforeValidator(one_only)]
    seeds: NotRequired[list[int]]
    sampler: NotRequired[dict[str, Any] | Text | None]
    prior: NotRequired[PriorOf | None]
    software: NotRequired[list[Text]]


def sha256_of_keys(keys: Iterable[Any]) -> str:
    """SHA-256 of sorted keys, a line feed after each, as `LC_ALL=C sort keys.txt | sha256sum` has it."""
    digest, lines = hashlib.sha256(), (f"{key}\n" for key in keys)
    while block := "".join(islice(lines, BLOCK)):
        digest.update(block.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def sha256_of_spec(spec: Mapping[str, Any]) -> str:
    """SHA-256 of its JSON: fields sorted, no blanks, UTF-8, whole numbers written as integers."""
    text = json.dumps(whole_numbers(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def whole_numbers(value: Any) -> Any:
    """The same with 3 for 3.0, wherever it is."""
    if isinstance(value, Mapping):
        return {name: whole_numbers(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [whole_numbers(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def differing_protocols(one: Protocol, other: Protocol) -> list[tuple[str, Any, Any]]:
    """Fields in which what was restored differs, with the value of each; what one does not state does not."""
    first, second = compared(one), compared(other)
    differing = [
        field
        for field in first
        if None not in (first[field], second[field]) and not same(first[field], second[field])
    ]
    shown = [
        of | {"operator": in_short(of["operator"], by["operator"])}
        for of, by in ((first, one), (second, other))
    ]
    return [(field, shown[0][field], shown[1][field]) for field in differing]


def compared(protocol: Protocol) -> dict[str, Any]:
    """What must be the same for results to be comparable, flat."""
    images, operator, noise = protocol["images"], protocol["operator"], protocol["noise"]
    sigma = noise and noise["sigma"]
    if noise and isinstance(sigma, int | float):
        sigma = sigma * SCALES[noise["range"]]
    return {
        **{f"images.{field}": images.get(field) for field in (*WHICH, *MADE)},
        "operator": operator and (operator["sha256"] or sha256_of_spec(operator["spec"])),
        "sigma on [-1, 1]": sigma,
        "poisson": (noise.get("poisson") or 0) if noise else None,
    }


def in_short(sha256: str | None, operator: OperatorOf | None) -> str:
    """An operator in a line: its parameters, as far as there is room, and the beginning of its SHA-256."""
    words = " ".join(f"{name}={value}" for name, value in sorted((operator or {"spec": {}})["spec"].items()))
    return f"{words if len(words) <= SHOWN else words[:SHOWN] + '…'} ({(sha256 or '')[:12]})"


def same_task(one: Protocol, other: Protocol) -> bool:
    """Whether the same was done to images that were made in the same way, as far as both state it."""
    which = {f"images.{field}" for field in WHICH}
    return which.issuperset(field for field, _, _ in differing_protocols(one, other))


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers but for rounding."""
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-12)
    return bool(one == other)
