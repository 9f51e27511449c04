"""The parts of a job: its data, what was done to them, what is written, and what it is compared with."""

import math
import reprlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from kintsugi.pipeline import metrics
from kintsugi.pipeline.parameters import Parameter, Value, in_words, parameters_of, with_values
from kintsugi.pipeline.storage.location import at
from kintsugi.pipeline.wanted import Range, Truth, Wanted
from kintsugi.priors.tiled import OVERLAP

T = TypeVar("T")
Spec = dict[str, Any]

LEVEL: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(ge=0, allow_inf_nan=False)])
MAX_SIZE = 4096  # pixels: decompositions take the cube of it


class Model(BaseModel):
    """What a job and its parts have in common: no other fields, no infinities, no values in error texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


def absent(value: object) -> bool:
    """Whether a job file leaves a field out, so that files of all other jobs stay as they were."""
    return not (value.operator if isinstance(value, Degradation) else value)


def is_rgb(channels: int) -> bool:
    """Whether a job file leaves `data.channels` out."""
    return channels == 3


def is_per_sample(noise: str) -> bool:
    """Whether a job file leaves `restoration.noise` out."""
    return noise == "per_sample"


def refuse_no_location(value: T) -> T:
    """The value of a field; raises ValueError for text, or a text among several, that is no path or URL."""
    for name in value if isinstance(value, list) else [value]:
        if name == "":
            raise ValueError("an empty name")
        if isinstance(name, str):
            at(name)
    return value


MemberName = Annotated[str, Field(pattern=r"^[^./][^/]*$")]
"""What follows the key and a dot in the name of a file of a sample, such as `mask.png`."""


class Beside(Model):
    """A file of each sample."""

    member: MemberName = Field(description="What follows the key and a dot in its name, such as hr.png.")


class Subset(Model):
    """A part of the images, by their keys alone: the same in whatever shards and order they are."""

    part: Literal["tune", "evaluate"] = Field(
        default="evaluate", description="tune: those for choosing settings. evaluate: all others."
    )
    fraction: float = Field(
        default=0.1, gt=0, lt=1, description="Of all keys, how many are for choosing settings, about."
    )


class Source(Model):
    """Where the samples are, and by which names: in WebDataset shards, folders or Parquet."""

    shards: str | list[str] = Field(
        description="Paths and s3:// or gs:// URLs, with braces {0000..0049} and globs; a folder stands for "
        "the files in it; FILE.parquet for its rows (column image: {bytes, path}); or builtin:scikit-image."
    )
    kind: Literal["images", "measurements", "restored"] = Field(
        default="images",
        description="images are degraded, restored and compared. measurements are degraded already: "
        "images, or .npy of float (C, h, w), on [-1, 1] or `range`; they are restored as they are, "
        "in any size. restored are images that any method made: they are compared with `truth`, in any "
        "size, and the job has no degradation, prior and sampler.",
    )
    member: MemberName | None = Field(
        default=None,
        exclude_if=absent,
        description="What follows the key and a dot in the name of the file that is the sample, such as "
        "hr.png of KEY.lr.png and KEY.hr.png; other files of its key are not looked at.",
    )
    truth: str | list[str] | Beside | None = Field(
        default=None,
        exclude_if=absent,
        description="Of restored images, the true ones, named as `shards`; they are paired by their keys. Of "
        "measurements, {member: hr.png}: the true image beside each, with which the restoration is compared.",
    )
    pattern: str | None = Field(
        default=None,
        exclude_if=absent,
        description="What names of restored images are like, such as '{key}_out.png'; the default: '{key}'.",
    )
    truth_pattern: str | None = Field(
        default=None,
        exclude_if=absent,
        description="What names of the true images are like, such as '{key}_SRF_4_HR.png'.",
    )

    _locations = field_validator("shards", "truth")(refuse_no_location)

    @property
    def true_images(self) -> str | list[str] | None:
        """Where the true images are, unless they lie beside the samples."""
        return None if isinstance(self.truth, Beside) else self.truth


class Data(Source):
    """The images or measurements."""

    size: PositiveInt = Field(
        default=256,
        le=MAX_SIZE,
        description="Side of the square images, pixels; of measurements, the side of the tiles that the "
        "network sees of larger images.",
    )
    channels: PositiveInt = Field(
        default=3,
        le=256,
        exclude_if=is_rgb,
        description="Of the images, as they are restored. 3: sRGB. 1: grey; colours become their luma. Any "
        "other number: .npy (C, H, W), or pictures that have just as many, such as 4 of RGBA.",
    )
    fit: Literal["exact", "resize_crop"] = Field(
        default="exact",
        description="exact: an image of another size is a failed row. resize_crop: shorter side to "
        "`size` (bicubic, antialiased), then the central square.",
    )
    range: Range | None = Field(
        default=None,
        description="What black and white are where a file does not say it: in .npy, in TIFF of floating "
        "point numbers, and the integers of this range also in images of 16 bits. Left out: [-1,1] of .npy, "
        "[0,65535] of 16 bits; what looks like another range is a failed row.",
    )
    damaged: Literal["refuse", "salvage"] = Field(
        default="refuse",
        description="A truncated or unreadable shard: refuse the job, or do what is readable in it.",
    )
    checksums: Literal["check", "ignore"] = Field(
        default="check",
        description="Whether shards are read once at planning to compare them with the SHA256SUMS beside "
        "them, where there is one.",
    )
    subset: Subset | None = Field(
        default=None, description="Only a part of the samples; all of them where it is left out."
    )
    limit: PositiveInt | None = Field(
        default=None, lt=2**63, description="Only the first N samples, of the subset where there is one."
    )

    @property
    def wanted(self) -> Wanted:
        """Which files of a sample are its image and its truth."""
        truth = (
            Truth(self.truth.member, self.range, self.channels) if isinstance(self.truth, Beside) else None
        )
        return Wanted(self.member, (), truth)


class Restoration(Model):
    """How samples are drawn, and what is written of each restored measurement."""

    format: Literal["png", "png16", "jpeg", "webp"] = Field(
        default="png", description="png16 has 16 bits a channel; jpeg and webp have quality 95."
    )
    samples_per_image: PositiveInt = Field(
        default=1,
        description="K > 1: the restoration is the mean of K samples. Of measurements the samples and "
        "their standard deviation per pixel are written beside it; of images it is measured how well they "
        "tell the error.",
    )
    noise: Literal["per_sample", "per_clip"] = Field(
        default="per_sample",
        exclude_if=is_per_sample,
        description="Of the sampler. per_clip: the same for all frames of a clip, the samples whose keys are "
        "the same but for digits at the end, such as CLIP/0001; measurement noise is each frame's own.",
    )
    overlap: PositiveInt = Field(default=OVERLAP, description="Of neighbouring tiles at least, pixels.")


class Degradation(Model):
    """What was done to the images: an operator, and noise."""

    operator: Spec = Field(description="{name: ..., parameters}; see `kintsugi list operators`.")
    sigma: NonNegativeFloat | Spec = Field(
        default=0.0,
        description="Standard deviation of the Gaussian noise; or, as of the operator's parameters, {member: "
        "sigma.txt}, {draw: uniform, low: …, high: …} or {estimate: [low, high]}, of each sample its own.",
    )
    sigma_range: Literal["[0,1]", "[-1,1]"] = Field(
        default="[0,1]", description="The range of pixel values that sigma refers to."
    )
    poisson: PositiveFloat | None = Field(
        default=None,
        description="Photons that a white pixel receives: Poisson noise, before the Gaussian is added.",
    )

    @field_validator("sigma", mode="plain")
    @classmethod
    def number_or_mapping(cls, value: Any) -> float | Spec:
        """A noise level, or a mapping by which every sample has its own; else raises a ValueError."""
        if isinstance(value, dict):
            return value
        try:
            return LEVEL.validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{error.errors()[0]['msg']} (got {reprlib.repr(value)})") from None

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Those of which every sample has its own value."""
        return tuple(parameters_of({"operator": self.operator, "sigma": self.sigma}))

    def with_values(self, values: Mapping[Parameter, Value]) -> "Degradation":
        """With the values of one sample; raises a ValueError if its noise level is none."""
        if not values:
            return self
        found = with_values({"operator": self.operator, "sigma": self.sigma}, values)
        if not isinstance(found["sigma"], dict) and not 0 <= found["sigma"] < math.inf:
            raise ValueError(f"degradation.sigma: {found['sigma']}; a standard deviation is not negative")
        return self.model_copy(update=found)

    def typical(self, size: tuple[int, int]) -> "Degradation":
        """With values such as samples may have, for images of this height and width."""
        return self.with_values({parameter: parameter.typical(size) for parameter in self.parameters})

    @property
    def scale(self) -> float:
        """What `sigma` is multiplied by to be on [-1, 1]."""
        return 2.0 if self.sigma_range == "[0,1]" else 1.0

    @property
    def level(self) -> float:
        """`sigma`, where it is one for all samples; of one's own see `typical` and `with_values`."""
        if isinstance(self.sigma, dict):
            raise ValueError("degradation.sigma: every sample has its own")
        return self.sigma

    @property
    def gaussian(self) -> float:
        """The standard deviation of the Gaussian noise on the [-1, 1] scale, on which all is computed."""
        return self.scale * self.level

    @property
    def sigma_y(self) -> float:
        """What the sampler is told of the noise, on the [-1, 1] scale.

        Poisson noise counts with its standard deviation at mid-grey: √(½ / photons) on [0, 1].
        """
        shot = 0.0 if self.poisson is None else 2 * (0.5 / self.poisson) ** 0.5
        return math.hypot(self.gaussian, shot)

    @property
    def most_noise(self) -> float:
        """`sigma_y` at most; infinite where each sample has its own, so that no overshoot is too much."""
        return math.inf if isinstance(self.sigma, dict) else self.sigma_y

    @property
    def noise(self) -> str:
        """The noise in words, with its scale."""
        parts = [] if self.poisson is None else [f"Poisson, {self.poisson:g} photons at white"]
        if self.sigma:
            level = in_words(self.sigma) if isinstance(self.sigma, dict) else f"{self.sigma:g}"
            parts.append(f"σ={level} on {self.sigma_range}")
        return " and ".join(parts) or "noiseless"


class PublishedNumbers(Model):
    """A row of a table of the literature, for the report to print beside what was measured."""

    method: str = Field(description="As its source calls it.")
    nfe: PositiveInt = Field(description="Network evaluations per image, without vector-Jacobian products.")
    values: dict[str, float | None] = Field(description="By metric, as in `metrics`; null: not known to us.")
    source: str = Field(description="Where they are printed.")
    caveat: str = Field(default="", description="Why they may not be comparable.")

    @field_validator("values")
    @classmethod
    def known(cls, values: dict[str, float | None]) -> dict[str, float | None]:
        """Raise a ValueError for a name that is no metric's."""
        if unknown := sorted(name for name in values if name not in metrics.REGISTRY):
            raise ValueError(f"{unknown[0]!r} is no metric; see `kintsugi list metrics`")
        return values


class Published(Model):
    """clean-fid's published statistics of a data set."""

    name: str = Field(pattern=r"^[\w-]+$", description="Such as ffhq; see clean-fid's list.")
    split: str = Field(pattern=r"^[\w-]+$", description="Such as trainval70k.")
    resolution: PositiveInt | Literal["na"] = Field(description="Pixels, or na.")
