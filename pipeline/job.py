"""The job: what to restore, how, and where to put it. A job file is this model in YAML."""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

import operators
import priors
import samplers
from operators.registry import SpecError
from pipeline import score

Spec = dict[str, Any]

OPERATIONAL = ("output", "prior.path", "compute.actors", "compute.gpus_per_actor", "compute.attempts")
"""Fields that may change between a run and its continuation; of the prior, the checksum must not."""


class JobError(Exception):
    """The job cannot run; the message names the cause and the fix. Exit code 1."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Model):
    """The images: WebDataset shards, uncompressed tars."""

    shards: str | list[str] = Field(
        description="Paths with braces {0000..0049} and globs, or builtin:scikit-image."
    )
    size: PositiveInt = Field(default=256, description="Side of the square images, pixels.")
    fit: Literal["exact", "resize_crop"] = Field(
        default="exact",
        description="exact: an image of another size is a failed row. resize_crop: shorter side to "
        "`size` (bicubic, antialiased), then the central square.",
    )
    damaged: Literal["refuse", "salvage"] = Field(
        default="refuse",
        description="A truncated or unreadable shard: refuse the job, or do what is readable in it.",
    )
    limit: PositiveInt | None = Field(default=None, description="Only the first N samples.")


class Degradation(Model):
    operator: Spec = Field(description="{name: ..., parameters}; see `kintsugi list operators`.")
    sigma: NonNegativeFloat = Field(default=0.0, description="Standard deviation of the Gaussian noise.")
    sigma_range: Literal["[0,1]", "[-1,1]"] = Field(
        default="[0,1]", description="The range of pixel values that sigma refers to."
    )
    poisson: PositiveFloat | None = Field(
        default=None,
        description="Photons that a white pixel receives: Poisson noise, before the Gaussian is added.",
    )

    @property
    def gaussian(self) -> float:
        """The standard deviation of the Gaussian noise on the [-1, 1] scale, on which all is computed."""
        return 2 * self.sigma if self.sigma_range == "[0,1]" else self.sigma

    @property
    def sigma_y(self) -> float:
        """What the sampler is told of the noise, on the [-1, 1] scale.

        Poisson noise counts with its standard deviation at mid-grey: √(½ / photons) on [0, 1].
        """
        shot = 0.0 if self.poisson is None else 2 * (0.5 / self.poisson) ** 0.5
        return math.hypot(self.gaussian, shot)

    @property
    def noise(self) -> str:
        """The noise in words, with its scale."""
        parts = [] if self.poisson is None else [f"Poisson, {self.poisson:g} photons at white"]
        if self.sigma:
            parts.append(f"σ={self.sigma:g} on {self.sigma_range}")
        return " and ".join(parts) or "noiseless"


class Compute(Model):
    actors: PositiveInt | Literal["auto"] = Field(default="auto", description="auto: all that fit.")
    gpus_per_actor: NonNegativeFloat = Field(
        default=1, description="Ignored, with a message, where the cluster has no GPU."
    )
    cpus_per_actor: PositiveInt = Field(default=2, description="Also the number of compute threads.")
    batch_size: PositiveInt | Literal["auto"] = Field(
        default=16,
        description="auto: the largest that fits into the GPU's memory, found once and kept in the run "
        "directory; 16 on a CPU.",
    )
    unit_size: PositiveInt = Field(default=256, description="Samples per unit of work, committed as one.")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32",
        description="Of the network; the sampler's state is float32 always. fp16 loses the small gradients "
        "of samplers with vector-Jacobian products.",
    )
    compile: Literal["default", "reduce-overhead", "max-autotune"] | None = Field(
        default=None,
        description="torch.compile's mode for the network; reduce-overhead uses CUDA graphs. Falls back "
        "with a message.",
    )
    attempts: PositiveInt = Field(default=3, description="Before a unit that fails as a whole is given up.")

    @field_validator("gpus_per_actor")
    @classmethod
    def whole_or_shared(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError(f"more than one GPU must be a whole number, got {value:g}")
        return value


class Job(Model):
    """One run. The same job gives the same rows, whatever the number of actors or interruptions."""

    data: Data
    degradation: Degradation
    prior: Spec = Field(default={"name": "natural"}, description="See `kintsugi list priors`.")
    sampler: Spec = Field(default={"name": "conjugate"}, description="See `kintsugi list samplers`.")
    metrics: list[str] = Field(default=["psnr", "ssim", "ms_ssim"])
    compute: Compute = Compute()
    images: Literal["none", "restored", "all"] = Field(
        default="restored",
        description="Pictures kept in the rows, PNG. The first images keep all three, for the report.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    output: str = Field(description="The run directory.")

    @model_validator(mode="after")
    def check_parts(self) -> "Job":
        """Build what is cheap to build, so that a bad spec is found before anything runs."""
        shape = (3, self.data.size, self.data.size)
        try:
            operator = operators.build(self.degradation.operator, shape)
        except SpecError as error:
            raise ValueError(f"degradation.{error}") from error
        if self.degradation.poisson is not None and not operator.pixels:
            name = self.degradation.operator["name"]
            raise ValueError(f"degradation.poisson: the measurement of {name!r} is no image of photon counts")
        samplers.build(self.sampler)
        priors.check(self.prior)
        score.check(self.metrics, self.data.size)
        return self

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, self.data.size, self.data.size)


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
    """The fields on which results depend, flat; 15.0 is written 15, and None, the default, left out."""

    def plain(value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    fields = flatten(job.model_dump(mode="json"))
    return {k: plain(v) for k, v in fields.items() if k not in OPERATIONAL and v is not None}


def config_hash(job: Job) -> str:
    """SHA-256 of the fields on which results depend."""
    return hashlib.sha256(json.dumps(deciding(job), sort_keys=True).encode()).hexdigest()


def differences(before: Job, now: Job) -> list[tuple[str, Any, Any]]:
    """(field, before, now) for every deciding field that differs."""
    old, new = deciding(before), deciding(now)
    fields = sorted(old.keys() | new.keys())
    return [(f, old.get(f), new.get(f)) for f in fields if old.get(f) != new.get(f)]
