"""What `{draw: NAME, parameters...}` draws for one sample: a number, a mask or a kernel.

    kernel = draws.draw({"draw": "motion", "intensity": 0.5}, np.random.default_rng(0), (256, 256))

A draw is a function of its parameters, the size of the image and the generator, which is the sample's own.
"""

import reprlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, NonNegativeInt, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.errors import SpecError
from kintsugi.operators import kernels, masks, motion
from kintsugi.operators.blur import gaussian
from kintsugi.operators.pointwise import Share
from kintsugi.registry import construct

Kind = Literal["number", "mask", "kernel"]
Value = int | float | Tensor


class Draw(Protocol):
    """What a draw is. kind: a mask is (H, W) bool, true = known; a kernel (h, w) float64, its sum 1."""

    kind: ClassVar[Kind]

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Value:
        """The value for one sample, of an image of `size` (H, W)."""
        ...


def ordered(pair: tuple[float, float]) -> tuple[float, float]:
    """The pair; raises a ValueError if its second number is below its first."""
    if pair[0] > pair[1]:
        raise ValueError(f"from {pair[0]:g} to {pair[1]:g}: the larger number comes second")
    return pair


def odd(size: int) -> int:
    """The size; raises a ValueError if it is even."""
    if size % 2 == 0:
        raise ValueError("must be odd so that the kernel has a centre")
    return size


Twice = BeforeValidator(lambda value: (value, value) if isinstance(value, int | float | str) else value)
"""One number stands for a range that holds it alone."""
Range = Annotated[tuple[Share, Share], Twice, AfterValidator(ordered)]
Sigmas = Annotated[tuple[PositiveFloat, PositiveFloat], Twice, AfterValidator(ordered)]
Size = Annotated[int, Field(ge=1, le=1023), AfterValidator(odd)]


@dataclass(kw_only=True, frozen=True)
class Between:
    """low, high: the numbers between which it is."""

    kind: ClassVar[Kind] = "number"
    low: FiniteFloat
    high: FiniteFloat

    def __post_init__(self) -> None:
        ordered((self.low, self.high))


@dataclass(kw_only=True, frozen=True)
class Uniform(Between):
    """A number from `low` to `high`, each as likely."""

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """The number."""
        return float(rng.uniform(self.low, self.high))


@dataclass(kw_only=True, frozen=True)
class LogUniform(Between):
    """A number from `low` to `high`, both positive, whose logarithm is uniform."""

    low: PositiveFloat

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """The number."""
        number = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        return min(max(number, self.low), self.high)


@dataclass(kw_only=True, frozen=True)
class Integer(Between):
    """A whole number from `low` to `high`, both among them."""

    low: int
    high: int

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> int:
        """The number."""
        return int(rng.integers(self.low, self.high, endpoint=True))


@dataclass(kw_only=True, frozen=True)
class Choice:
    """One of `values`, each as likely."""

    kind: ClassVar[Kind] = "number"
    values: Annotated[list[int | FiniteFloat], Field(min_length=1)]

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> float:
        """The number."""
        return self.values[rng.integers(len(self.values))]


@dataclass(kw_only=True, frozen=True)
class RandomMask:
    """Each pixel is known by itself, with a probability within `keep`, a number or a range."""

    kind: ClassVar[Kind] = "mask"
    keep: Range = (0.3, 0.3)

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The mask."""
        return masks.random(*size, rng.uniform(*self.keep), rng)


@dataclass(kw_only=True, frozen=True)
class Freeform:
    """Brush strokes over a share of the image within `holes` are unknown.

    As of `inpaint`, after gated convolution (Yu et al. 2019, 1806.03589); benchmarks take shares of 10–20 %,
    …, 50–60 % (masks of partial convolutions, Liu et al. 2018, 1804.07723).
    """

    kind: ClassVar[Kind] = "mask"
    holes: Range = (0.1, 0.2)

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The mask."""
        return masks.freeform(*size, self.holes, rng)


@dataclass(kw_only=True, frozen=True)
class Box:
    """A box is unknown, anywhere but in a margin, whose sides are within `sides` of the image's.

    sides: a share of the image's side, or a range within which height and width are apart from each other.
    margin: a share of the image's side. DPS (2209.14687): 0.5 and 0.0625.
    """

    kind: ClassVar[Kind] = "mask"
    sides: Range = (0.5, 0.5)
    margin: Share = 0.0

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The mask."""
        return masks.box_at(*size, self.sides, self.margin, rng)


@dataclass(kw_only=True, frozen=True)
class Thin:
    """Many thin strokes are unknown, of up to `most` of the image: LaMa's "narrow" masks (2109.07161)."""

    kind: ClassVar[Kind] = "mask"
    name: ClassVar[str] = "thin"
    most: Share = 0.5

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The mask."""
        return masks.lama(*size, self.name, self.most, rng)


@dataclass(kw_only=True, frozen=True)
class Medium(Thin):
    """Some strokes, or small boxes, are unknown, of up to `most` of the image: LaMa's "medium" masks."""

    name: ClassVar[str] = "medium"


@dataclass(kw_only=True, frozen=True)
class Thick(Thin):
    """Few thick strokes, or boxes, are unknown, of up to `most` of the image: LaMa's "wide" masks."""

    name: ClassVar[str] = "thick"


@dataclass(kw_only=True, frozen=True)
class Motion:
    """The path of a shaken camera, on a kernel of size × size, centred by its mass.

    intensity: 0 is nearly straight, 1 long and turning. As of the benchmark of DPS (2209.14687), 61 and 0.5.
    """

    kind: ClassVar[Kind] = "kernel"
    size: Size = 61
    intensity: Share = 0.5

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The kernel."""
        return motion.trajectory(self.size, self.intensity, rng)


@dataclass(kw_only=True, frozen=True)
class Gaussian:
    """A Gaussian on a kernel of size × size, whose standard deviation in pixels is within `sigma`."""

    kind: ClassVar[Kind] = "kernel"
    sigma: Sigmas
    size: Size = 61

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The kernel."""
        taps = gaussian(self.size, rng.uniform(*self.sigma))
        return torch.outer(taps, taps)


@dataclass(kw_only=True, frozen=True)
class FromFile:
    """One of the kernels in a file, divided by its sum, each as likely, or always the one at `index`, from 0.

    kernels: an npz or mat (up to version 7) whose arrays are kernels, of which sizes may differ, or an npy or
    npz with one array (n, h, w). docs/operators.md makes such a file of the eight kernels of Levin et al.
    (Understanding and evaluating blind deconvolution algorithms, CVPR 2009).
    """

    kind: ClassVar[Kind] = "kernel"
    kernels: str
    index: NonNegativeInt | None = None

    def __post_init__(self) -> None:
        count = len(of_file(self.kernels))
        if self.index is not None and self.index >= count:
            raise ValueError(f"index: {self.kernels} has {count} kernels, 0 to {count - 1}")

    def __call__(self, rng: np.random.Generator, size: tuple[int, int]) -> Tensor:
        """The kernel."""
        found = of_file(self.kernels)
        return found[rng.integers(len(found)) if self.index is None else self.index]


@lru_cache(maxsize=4)
def of_file(path: str) -> tuple[Tensor, ...]:
    """The kernels of a file, read once: it does not change while a job runs."""
    return tuple(kernels.kernels_of(path))


REGISTRY: dict[str, type[Draw]] = {
    "uniform": Uniform,
    "loguniform": LogUniform,
    "integer": Integer,
    "choice": Choice,
    "random": RandomMask,
    "freeform": Freeform,
    "box": Box,
    "thin": Thin,
    "medium": Medium,
    "thick": Thick,
    "motion": Motion,
    "gaussian": Gaussian,
    "from_file": FromFile,
}


def check(spec: Mapping[str, Any], kind: Kind, field: str = "draw") -> Draw:
    """The draw that a spec describes.

    Args:
        kind: what it must draw. field: what the spec is called.

    Raises:
        SpecError: no such draw, or of another kind, or a parameter that does not fit; the message names it.
    """
    values = dict(spec)
    name = values.pop("draw", None)
    entry = REGISTRY.get(name) if isinstance(name, str) else None
    if entry is None or entry.kind != kind:
        drawn = "is no draw" if entry is None else f"draws a {entry.kind}"
        listed = ", ".join(other for other, draw in REGISTRY.items() if draw.kind == kind)
        raise SpecError(f"{field}.draw: {reprlib.repr(name)} {drawn}; choose one of a {kind}: {listed}")
    if "name" in values:
        raise SpecError(f"{field}.name: {name!r} has no such parameter; `draw` says what is drawn")
    return construct(field, REGISTRY, {**values, "name": name})


def draw(spec: Mapping[str, Any], rng: np.random.Generator, size: tuple[int, int]) -> Value:
    """What a spec that was checked draws for a sample whose image is of `size` (H, W).

    Raises:
        ShapeError: it cannot be drawn for images of this size.
    """
    return check(spec, REGISTRY[spec["draw"]].kind)(rng, size)
