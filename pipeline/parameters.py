"""Parameters of a degradation that belong to the sample: where their values come from, and what they are.

A parameter of an operator, or `degradation.sigma`, is a value, or one of these mappings:

    {member: mask.png}                     the file KEY.mask.png beside the sample
    {draw: uniform, low: 0.5, high: 3}     drawn anew for every sample, by its key
    {value: 3, estimate: [0.5, 5]}         applied to the image, and not told to the sampler
    {estimate: [0.5, 5]}                   of a measurement: unknown

`estimate` goes with each of the others: what degrades the image is then drawn, say, and not told.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from kintsugi.operators import draws, kernels, masks, specs_in
from kintsugi.operators.family import FREE_KERNEL, inside, placed, range_of
from kintsugi.samplers.noise import philox

Kind = Literal["mask", "kernel", "number"]
Value = float | Tensor
SOURCES = ("member", "draw", "value")
KINDS: dict[str, Kind] = {"mask": "mask", "kernel": "kernel"}
"""Parameters that are no numbers, whatever operator has them."""
SUFFIXES = {"mask": masks.SUFFIXES, "kernel": kernels.SUFFIXES, "number": (".json", ".txt")}
MAX_NUMBER = 1 << 12  # bytes of a file with a number
FILE, ESTIMATE, DEVIATION = "_file", "_estimate", "_deviation"
"""How names of columns with parameters of samples end where they are files or estimates."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """A parameter with a value for each sample.

    Attributes:
        path: of it within the degradation, ("operator", "operators", 1, "mask").
        source: the mapping that a job has in its place. kind: what its values are.
        known: of a mask, which pixels of a file are known.
        variable: of a kernel, the array of a file that has several.
    """

    path: tuple[str | int, ...]
    source: Mapping[str, Any]
    kind: Kind
    known: str | None = None
    variable: str | None = None

    @property
    def field(self) -> str:
        """Its name in the job: "degradation.operator.mask"."""
        return ".".join(map(str, ("degradation", *self.path)))

    @property
    def column(self) -> str:
        """The column of rows with its values: "operator_mask", of a part of `compose` "operator_1_mask"."""
        return "_".join(str(part) for part in self.path if part != "operators")

    @property
    def of_operator(self) -> bool:
        """Whether it is the operator's, and not the level of the noise."""
        return self.path[0] == "operator"

    @property
    def member(self) -> str | None:
        """What is behind the key in the name of the sample's file, if the value comes from one."""
        return self.source.get("member")

    @property
    def has_source(self) -> bool:
        """Whether it is known where its values come from; else it is only estimated."""
        return not self.source.keys().isdisjoint(SOURCES)

    @property
    def range(self) -> tuple[float, float] | None:
        """Where the value is looked for, if the sampler is not told it."""
        if "estimate" not in self.source:
            return None
        low, high = self.source["estimate"]
        return low, high

    def check(self, from_measurements: bool) -> None:
        """Raise a ValueError that begins with the field if the mapping is none, or of another kind."""
        if "draw" in self.source:
            _ = self.drawing
        try:
            self.check_source(from_measurements)
        except ValueError as error:
            raise ValueError(f"{self.field}: {error}") from None

    def check_source(self, from_measurements: bool) -> None:
        """As `check`, without the field, and of what is drawn."""
        given = [name for name in SOURCES if name in self.source]
        if len(given) > 1:
            raise ValueError(f"{given[0]} and {given[1]}; a value comes from one of them")
        if from_measurements and given not in ([], ["member"]):
            raise ValueError(f"{given[0]}: measurements came about before; use member or estimate")
        if not given and not from_measurements:
            raise ValueError("estimate: add value, draw or member, by which the images are degraded here")
        if "draw" not in given and (unknown := sorted(self.source.keys() - {*SOURCES, "estimate"})):
            raise ValueError(f"{unknown[0]}: unknown; a mapping has {', '.join(SOURCES)} or estimate")
        if "estimate" in self.source:
            self.check_range()
        if self.member is not None:
            self.check_member()

    def check_range(self) -> None:
        """Raise a ValueError unless `estimate` is a range of numbers."""
        if self.kind == "kernel":
            raise ValueError(f"estimate: {FREE_KERNEL}")
        range_of(self.source["estimate"])
        if self.kind != "number":
            raise ValueError(f"estimate: of numbers, and this is a {self.kind}")

    def check_member(self) -> None:
        """Raise a ValueError unless `member` is the end of a name, of a kind of file that is read."""
        name, suffixes = self.source["member"], SUFFIXES[self.kind]
        if not isinstance(name, str) or not name.lower().endswith(suffixes) or "/" in name or name[0] == ".":
            example = f"{self.path[-1]}{suffixes[0]}"
            raise ValueError(
                f"member: {name!r}; what is behind the key in the name of a file, such as {example} of "
                f"KEY.{example}; one of {', '.join(suffixes)}"
            )
        if self.kind == "mask" and self.known is None:
            raise ValueError("member: add known: white or known: black, which says which pixels are known")

    @cached_property
    def drawing(self) -> draws.Draw:
        """What draws its values; raises a SpecError that begins with the field if there is no such draw."""
        spec = {name: of for name, of in self.source.items() if name != "estimate"}
        return draws.check(spec, self.kind, self.field)

    def typical(self, size: tuple[int, int]) -> Value:
        """A value to see by that the operator can be built; of files the contents are not known yet."""
        if "value" in self.source:
            return self.given()
        if "draw" in self.source:
            return self.drawn(0, "", size)
        if self.range is not None:
            return sum(self.range) / 2
        if self.kind == "mask":
            return masks.box(*size)
        return 1.0 if self.kind == "number" else torch.full((3, 3), 1 / 9, dtype=torch.float64)

    def of_sample(self, seed: int, key: str, beside: Mapping[str, bytes], size: tuple[int, int]) -> Value:
        """Its value for a sample, as it degrades the sample's image of this height and width.

        Args:
            seed: the run's. beside: the files beside the sample, by what is behind the key in their names.

        Raises:
            ValueError: there is no such file, or it holds no such value.
        """
        if "draw" in self.source:
            return self.drawn(seed, key, size)
        if self.member is None:
            return self.given()
        if self.member not in beside:
            raise ValueError(f"{self.field}: there is no file {key}.{self.member}")
        return self.read(f"{key}.{self.member}", beside[self.member], size)

    def given(self) -> Value:
        """The one value for all samples; raises a ValueError if there is none, or it is no number."""
        value = self.source.get("value")
        if self.kind != "number" or not isinstance(value, int | float):
            raise ValueError(f"{self.field}: value: a number, not {value!r}")
        return value

    def drawn(self, seed: int, key: str, size: tuple[int, int]) -> Value:
        """The sample's draw, a function of the run's seed, the key and the parameter."""
        return self.drawing(philox(seed, key, self.field), size)

    def read(self, name: str, content: bytes, size: tuple[int, int]) -> Value:
        """The value in a file; raises a ValueError that names it."""
        if self.kind == "mask":
            return masks.from_content(name, content, *size, self.known or "white")
        if self.kind == "kernel":
            return kernels.from_content(name, content, self.variable)
        try:
            if len(content) > MAX_NUMBER:
                raise ValueError(f"{len(content):,} bytes, more than {MAX_NUMBER:,}")
            value = json.loads(content)
            if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
                raise ValueError("no number")
        except ValueError as error:
            raise ValueError(f"{self.field}: {name}: {error}") from error
        return value


def columns_of(parameters: Iterable[Parameter]) -> list[str]:
    """The columns of rows with parameters of samples."""
    found = []
    for parameter in parameters:
        if parameter.has_source:
            found.append(parameter.column)
        if parameter.kind != "number":
            found.append(parameter.column + FILE)
        if parameter.range is not None:
            found += [parameter.column + ESTIMATE, parameter.column + DEVIATION]
    return found


def kind_of(column: str) -> Literal["number", "text", "file"]:
    """What is in a column with parameters of samples."""
    if column.endswith(FILE):
        return "file"
    return "text" if column.rpartition("_")[2] in KINDS else "number"


def parameters_of(degradation: Mapping[str, Any]) -> Iterator[Parameter]:
    """The parameters of samples in a degradation {operator, sigma, …}, where mappings stand for values."""
    sigma = degradation["sigma"]
    if is_mapping(sigma):
        yield Parameter(("sigma",), sigma, "number")
    for where, spec in specs_in(degradation.get("operator"), "operator"):
        path = tuple(int(part) if part.isdigit() else part for part in where.split("."))
        for name, value in spec.items():
            if is_mapping(value):
                kind = KINDS.get(name, "number")
                yield Parameter((*path, name), value, kind, spec.get("known"), spec.get("variable"))


def is_mapping(value: object) -> bool:
    """Whether a value in a job stands for one of each sample."""
    return isinstance(value, Mapping) and not value.keys().isdisjoint({*SOURCES, "estimate"})


def with_values(degradation: Mapping[str, Any], values: Mapping[Parameter, Any]) -> dict[str, Any]:
    """A degradation {operator, sigma, …} with the values of one sample in their places."""
    found = placed(degradation, {each.path: value for each, value in values.items()})
    for each in values:
        if each.kind == "kernel":  # whose file had several
            inside(found, each.path[:-1]).pop("variable", None)
    return found


def in_words(mapping: Mapping[str, Any]) -> str:
    """A mapping as a title has it: "{draw: uniform, low: 1, high: 4}"."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in mapping.items()) + "}"
