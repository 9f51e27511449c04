"""The job: what to restore, how, and where to put it. A job file is this model in YAML."""

import hashlib
import json
import math
from contextlib import suppress
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from kintsugi import operators, priors, samplers
from kintsugi.errors import ShapeError, SpecError
from kintsugi.pipeline.compute import Compute
from kintsugi.pipeline.metrics.metric import GREY_OR_RGB
from kintsugi.pipeline.metrics.registry import CLIPS, IMAGE
from kintsugi.pipeline.metrics.registry import check as check_metrics
from kintsugi.pipeline.parts import (
    MAX_SIZE,
    Data,
    Degradation,
    Model,
    Published,
    PublishedNumbers,
    Restoration,
    Spec,
    absent,
    refuse_no_location,
)
from kintsugi.pipeline.storage.location import Location, Written, at
from kintsugi.pipeline.wanted import Wanted
from kintsugi.samplers.inversion import EVALUATIONS

MAX_VALUES = 1 << 28  # of an image

OPERATIONAL = (
    "output",
    "published",
    "prior.path",
    "data.checksums",
    "compute.actors",
    "compute.gpus_per_actor",
    "compute.attempts",
)
"""Fields that may change between a run and its continuation; of the prior, the checksum must not."""

UNKNOWN: dict[str, Any] = {"degradation": {"operator": {}}, "prior": {}, "sampler": {}}
"""What a job of restored images has no fields for: it is not known what made them."""

LATER = {"reference": "truth", "data.range": "[-1,1]"}
"""Fields that older runs do not have, with the value that means the same: their hashes must not change."""


def default_metrics(fields: dict[str, Any]) -> list[str]:
    """What a job measures that names nothing; of measurements without a truth, nothing."""
    data = fields.get("data")
    if not isinstance(data, Data) or data.kind == "images":
        return ["psnr", "ssim", "ms_ssim"]
    return [] if data.truth is None else ["psnr", "ssim"]


class Job(Model):
    """One run. The same job gives the same rows, whatever the number of actors or interruptions."""

    data: Data
    degradation: Degradation = Field(exclude_if=absent)
    prior: Spec = Field(
        default={"name": "natural"}, exclude_if=absent, description="See `kintsugi list priors`."
    )
    sampler: Spec = Field(
        default={"name": "conjugate"}, exclude_if=absent, description="See `kintsugi list samplers`."
    )
    metrics: list[str] = Field(
        default_factory=default_metrics,
        validate_default=True,
        description="See `kintsugi list metrics`; psnr, ssim and ms_ssim; of restored images, which may be "
        "small, without the last, and so of measurements with a truth; of others none.",
    )
    reference: Published | str = Field(
        default="truth",
        description="What metrics of sets compare with. truth: the true images of this job. "
        "{name, split, resolution}: clean-fid's published statistics. Else a path: a folder, shards, or an "
        ".npz that `kintsugi stats` made.",
    )
    restoration: Restoration = Restoration()
    compute: Compute = Compute()
    images: Literal["none", "restored", "all"] = Field(
        default="restored",
        description="Pictures kept in the rows, PNG. The first images keep all three, for the report.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Of the noise; each image has its own, by its key."
    )
    published: list[PublishedNumbers] = Field(
        default=[], description="Numbers of the literature for this experiment; nothing depends on them."
    )
    output: Written = Field(min_length=1, description="The run directory: a path, or an s3:// or gs:// URL.")

    _locations = field_validator("reference")(refuse_no_location)

    @model_validator(mode="before")
    @classmethod
    def without_what_is_unknown(cls, values: Any) -> Any:
        """The fields, of restored images with `UNKNOWN`; raises a ValueError if it is given."""
        data = values.get("data") if isinstance(values, dict) else None
        kind = data.get("kind") if isinstance(data, dict) else getattr(data, "kind", None)
        if kind != "restored":
            return values
        if given := [name for name in UNKNOWN if name in values]:
            raise ValueError(f"{given[0]}: restored images are compared as they are; leave it out")
        return values | UNKNOWN

    @model_validator(mode="after")
    def check_parts(self) -> "Job":
        """Build what is cheap to build, so that a bad spec is found before anything runs."""
        checked = self.check_score() if self.is_score else self.check_restoring()
        if self.images != "all" and (names := [name for name in self.metrics if name in CLIPS]):
            raise ValueError(
                f"metrics: {names[0]} compares the pictures of a clip's frames, restored and true; "
                "set images=all, which keeps them, or leave the metric out"
            )
        return checked

    def check_score(self) -> "Job":
        """Raise a ValueError for what comparing restored images has no use for, or lacks."""
        # Each image is asked for its own size.
        check_metrics(self.metrics, MAX_SIZE, True, self.reference, self.data.channels, has_prior=False)
        if self.data.true_images is None:
            raise ValueError("data.truth: missing; name the true images, with which restored are compared")
        unused = {"data.fit": self.data.fit != "exact", "data.range": self.data.range is not None}
        for field, given in (unused | {"restoration": self.restoration != Restoration()}).items():
            if given:
                raise ValueError(f"{field}: restored images are compared as they are; leave it out")
        return self

    def check_restoring(self) -> "Job":
        """Raise a ValueError for a degradation, prior or sampler that cannot be, or what does not fit it."""
        data = self.data
        unused = {"truth": data.true_images, "pattern": data.pattern, "truth_pattern": data.truth_pattern}
        for field, given in unused.items():
            if given is not None:
                raise ValueError(f"data.{field}: is for data.kind=restored; leave it out")
        if math.prod(self.image_shape) > MAX_VALUES:
            raise ValueError(
                f"data.channels: with data.size they make more than {MAX_VALUES:,} values an image"
            )
        if data.truth is not None and not self.from_measurements:
            raise ValueError("data.truth: images are the truth of what is made of them; leave it out")
        if data.wanted.truth is not None and data.wanted.truth.member == data.member:
            raise ValueError("data.truth.member: is that of the measurement, data.member; name another file")
        size = self.image_shape[1:]
        for parameter in self.degradation.parameters:
            parameter.check(self.from_measurements)
        try:
            operator = operators.build(self.degradation.typical(size).operator, self.image_shape)
        except SpecError as error:
            # Measurements have sizes of their own, which may fit where `data.size` does not.
            if not (self.from_measurements and isinstance(error.__cause__, ShapeError)):
                raise ValueError(f"degradation.{error}") from error
            pixels = True
        else:
            pixels = operator.pixels
            if self.degradation.poisson is not None and not pixels:
                name = self.degradation.operator["name"]
                raise ValueError(
                    f"degradation.poisson: the measurement of {name!r} is no image of photon counts"
                )
        self.check_reuse(samplers.build(self.sampler))
        priors.check(self.prior)
        if isinstance(path := self.prior.get("path"), str):
            at(path)
        # Of measurements each image is asked for its own size, where they have a truth.
        smallest = data.size if data.truth is None else MAX_SIZE
        check_metrics(self.metrics, smallest, self.has_truth, self.reference, data.channels)
        if self.from_measurements and self.data.fit != "exact":
            raise ValueError("data.fit: measurements are restored in the size they have; leave it out")
        if self.from_measurements and self.images == "none":
            raise ValueError("images: restored measurements are always kept; set images=restored, or all")
        if self.from_measurements and self.data.range is not None and not pixels:
            raise ValueError("data.range: the measurement is no image; leave it out")
        ours = self.restoration
        several = Restoration(samples_per_image=ours.samples_per_image, noise=ours.noise)
        if not self.from_measurements and ours != several:
            raise ValueError(
                "restoration: is for data.kind=measurements; leave it out, but for samples_per_image "
                "and noise"
            )
        if self.data.channels not in GREY_OR_RGB and not self.restoration.format.startswith("png"):
            raise ValueError(
                f"restoration.format: {self.restoration.format} holds 1 or 3 channels, data.channels is "
                f"{self.data.channels}; png and png16 are written as .npy"
            )
        return self

    def check_reuse(self, sampler: samplers.Sampler) -> None:
        """Raise a ValueError for features that are reused, and a sampler that would differentiate them."""
        if self.compute.reuse is not None and getattr(sampler, "differentiates", False):
            raise ValueError(
                f"compute.reuse: {self.sampler['name']!r} asks for vector-Jacobian products, and features of "
                "another evaluation have no derivative; leave it out, or choose a sampler without"
            )

    @property
    def folder(self) -> Location:
        """The run directory, from the root; `output` stays as it is written."""
        return at(self.output)

    @property
    def from_measurements(self) -> bool:
        """Whether the data are measurements."""
        return self.data.kind == "measurements"

    @property
    def calibrated(self) -> bool:
        """Whether several samples are drawn of images whose truth is known: is their spread right?"""
        return self.has_truth and self.restoration.samples_per_image > 1

    @property
    def measuring(self) -> int:
        """Network forwards per sample by which it is measured, beside those of the sampler."""
        if not any(name in IMAGE and IMAGE[name].needs_prior for name in self.metrics):
            return 0
        return EVALUATIONS * (1 + self.restoration.samples_per_image if self.calibrated else 1)

    @property
    def is_score(self) -> bool:
        """Whether the data are restored already, and are only compared with the truth."""
        return self.data.kind == "restored"

    @property
    def has_truth(self) -> bool:
        """Whether there is a true image for each sample."""
        return not self.from_measurements or self.data.truth is not None

    @property
    def wanted(self) -> Wanted:
        """Which files of a sample it reads."""
        members = [each.member for each in self.degradation.parameters if each.member is not None]
        members += [] if self.prompts is None else [self.prompts]
        return self.data.wanted._replace(beside=tuple(dict.fromkeys(members)))

    @property
    def prompts(self) -> str | None:
        """The file of each sample that holds its prompt, by what is behind the key; None where none does."""
        prompt = self.prior.get("prompt")
        member = prompt.get("member") if isinstance(prompt, dict) else None
        return member if isinstance(member, str) else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the square images."""
        return (self.data.channels, self.data.size, self.data.size)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"size": 256}} → {"data.size": 256}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def deciding(job: Job) -> dict[str, Any]:
    """The fields on which results depend, flat; 15.0 is written 15, and None, the default, left out.

    Of a job that no run has decided yet `auto` is what it is on a CPU: so jobs keep the hashes they had.
    """

    def plain(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    decided = job.model_copy(update={"compute": job.compute.on("cpu")})
    fields = flatten(decided.model_dump(mode="json"))
    decide = {k: v for k, v in fields.items() if k not in OPERATIONAL and v is not None}
    return {k: plain(v) for k, v in decide.items() if (k, v) not in LATER.items()}


def config_hash(job: Job) -> str:
    """SHA-256 of the fields on which results depend."""
    return hashlib.sha256(json.dumps(deciding(job), sort_keys=True).encode()).hexdigest()


def differences(before: Job, now: Job) -> list[tuple[str, Any, Any]]:
    """(field, before, now) for every deciding field that differs."""
    old, new = deciding(before), deciding(now)
    fields = sorted(old.keys() | new.keys())
    return [(f, old.get(f), new.get(f)) for f in fields if not alike(old.get(f), new.get(f))]


def alike(before: Any, now: Any) -> bool:
    """Whether two values are the same; in specs of older runs a number such as 1e-3 is text."""
    match before, now:
        case dict(), dict():
            return before.keys() == now.keys() and all(alike(before[name], now[name]) for name in now)
        case list(), list():
            return len(before) == len(now) and all(map(alike, before, now))
        case str(), int() | float():
            with suppress(ValueError):
                return float(before) == now
    return bool(before == now)


def as_before(before: Spec, now: Spec) -> Spec:
    """A spec with what is the same as it was written, since the configuration's hash is of that."""
    return {k: before[k] if k in before and alike(before[k], value) else value for k, value in now.items()}
