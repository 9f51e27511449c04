"""Operators of one spec with unknown numbers: `{estimate: [low, high]}` where a number would be."""

import inspect
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch

from kintsugi.errors import SpecError
from kintsugi.operators import REGISTRY, build
from kintsugi.operators.base import Operator
from kintsugi.registry import look_up

STRIDE = {"taps": 2}
"""Whole numbers that do not count one by one."""
MOST = 3
"""Unknown numbers of a spec: a grid of more has too many values."""
FREE_KERNEL = (
    "a free kernel cannot be estimated (docs/blind.md has what was tried); estimate numbers: the sigmas and "
    "angle of anisotropic_blur, the length and angle of linear_motion_blur, or the sigma of gaussian_blur"
)
"""What is said to who asks for it."""


@dataclass(frozen=True)
class Unknown:
    """A number of a spec that is to be estimated.

    Attributes:
        place: where in the spec: its keys, and positions in lists. low, high: its range.
        stride: of whole numbers the distance between neighbours, else None.
    """

    place: tuple[str | int, ...]
    low: float
    high: float
    stride: int | None

    @property
    def field(self) -> str:
        """Its place as a name: "sigma", "sigmas.0"."""
        return ".".join(map(str, self.place))

    @property
    def logarithmic(self) -> bool:
        """Whether equal ratios are equal steps: of widths, which are positive, and not of angles."""
        return self.low > 0 and self.stride is None and self.place[-1] != "angle"

    def coordinate(self, value: float) -> float:
        """Where the value is on the axis that is divided into equal steps."""
        return math.log(value) if self.logarithmic else value

    def value(self, coordinate: float) -> float:
        """The value at a place on that axis, within the range, and a whole number where it must be."""
        value = math.exp(coordinate) if self.logarithmic else coordinate
        if self.stride is not None:
            value = self.low + self.stride * round((value - self.low) / self.stride)
        return min(max(value, self.low), self.high)

    @property
    def span(self) -> tuple[float, float]:
        """The coordinates of both ends."""
        return self.coordinate(self.low), self.coordinate(self.high)

    def between(self, low: float, high: float, count: int) -> list[float]:
        """At most `count` different values, in equal steps between two coordinates."""
        steps = torch.linspace(low, high, count, dtype=torch.float64).tolist()
        return sorted({self.value(step) for step in steps})


class Family:
    """The operators of a spec for every value of what is unknown in it.

    Args:
        spec: of an operator, with {"estimate": [low, high]} in place of one to three of its numbers.
        image_shape: (C, H, W) of the images. device, dtype: of `operator`.

    Raises:
        SpecError: the message names the field.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        image_shape: tuple[int, int, int],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.spec, self.image_shape, self.device, self.dtype = spec, image_shape, device, dtype
        self.unknown = [unknown(spec, place, ask) for place, ask in asked(spec)]
        if not 1 <= len(self.unknown) <= MOST:
            raise SpecError(f"operator: estimate 1 to {MOST} of its numbers, not {len(self.unknown)}")

    @property
    def fields(self) -> list[str]:
        """The names of what is unknown."""
        return [one.field for one in self.unknown]

    def of(self, values: Sequence[float]) -> dict[str, Any]:
        """The spec with a value for each unknown number."""
        pairs = zip(self.unknown, values, strict=True)
        return placed(self.spec, {u.place: value if u.stride is None else round(value) for u, value in pairs})

    def operator(self, values: Sequence[float], dtype: torch.dtype | None = None) -> Operator:
        """The operator with these values, of the family's precision or of another."""
        return build(self.of(values), self.image_shape, device=self.device, dtype=dtype or self.dtype)

    def untruncated(self) -> "Family | None":
        """The same without a threshold below which nothing is measured, if there is one to be left out."""
        factory, values = look_up("operator", REGISTRY, self.spec)
        default = inspect.signature(factory).parameters.get("threshold")
        if default is None or values.get("threshold", default.default) == 0:
            return None
        spec = {**self.spec, "threshold": 0.0}
        return Family(spec, self.image_shape, device=self.device, dtype=self.dtype)


def asked(spec: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(place, range) of everything in a spec that is to be estimated."""
    if isinstance(spec, Mapping):
        if set(spec) == {"estimate"}:
            yield place, spec["estimate"]
            return
        for key, value in spec.items():
            yield from asked(value, (*place, key))
    elif isinstance(spec, list | tuple):
        for position, value in enumerate(spec):
            yield from asked(value, (*place, position))


def unknown(spec: Mapping[str, Any], place: tuple[str | int, ...], ask: Any) -> Unknown:
    """What is asked for at a place of a spec; raises a SpecError if that is no range."""
    field = ".".join(["operator", *map(str, place)])
    if place[-1] == "kernel":
        raise SpecError(f"{field}.estimate: {FREE_KERNEL}")
    try:
        low, high = range_of(ask)
    except ValueError as error:
        raise SpecError(f"{field}.{error}") from error
    stride = STRIDE.get(str(place[-1]), 1) if whole(spec, place) else None
    return Unknown(place, low, high, stride)


def range_of(ask: Any) -> tuple[float, float]:
    """The two ends of what `estimate` says; raises a ValueError that begins with it if that is no range."""
    numbers = isinstance(ask, list | tuple) and all(isinstance(v, int | float) for v in ask)
    if not numbers or len(ask) != 2 or not -math.inf < ask[0] < ask[1] < math.inf:
        raise ValueError(f"estimate: two numbers, [low, high], low below high, not {reprlib.repr(ask)}")
    return float(ask[0]), float(ask[1])


def placed(spec: Mapping[str, Any], values: Mapping[tuple[str | int, ...], Any]) -> dict[str, Any]:
    """A spec, or what has one inside, with values in their places: keys, and positions in lists."""
    found: dict[str, Any] = copied(spec)
    for place, value in values.items():
        inside(found, place[:-1])[place[-1]] = value
    return found


def inside(spec: Any, place: Sequence[str | int]) -> Any:
    """What is at a place of a spec."""
    for key in place:
        spec = spec[key]
    return spec


def copied(spec: Any) -> Any:
    """Specs that can be changed."""
    if isinstance(spec, Mapping):
        return {name: copied(value) for name, value in spec.items()}
    return [copied(value) for value in spec] if isinstance(spec, list | tuple) else spec


def whole(spec: Mapping[str, Any], place: tuple[str | int, ...]) -> bool:
    """Whether the parameter at a place of a spec is a whole number."""
    if place[0] == "operators" and len(place) > 2:
        return whole(spec["operators"][place[1]], place[2:])
    factory, _ = look_up("operator", REGISTRY, {"name": spec.get("name")})
    parameter = inspect.signature(factory).parameters.get(str(place[0]))
    annotation = parameter and parameter.annotation
    return annotation is int or int in get_args(annotation)[:1]
