"""Suite files: a base job and axes, which make a table of jobs."""

from __future__ import annotations

import copy
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, NonNegativeFloat, ValidationError, field_validator

from kintsugi.errors import JobError
from kintsugi.jobs.files import apply, assign, check, closest, located, plain, problem, read_values
from kintsugi.jobs.trials import overlap, refuse_varied
from kintsugi.jobs.values import kinds_at, parse_yaml
from kintsugi.pipeline.analysis.suite import Wanted
from kintsugi.pipeline.analysis.sweep_settings import Settings
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.parts import Model
from kintsugi.pipeline.storage.location import Written

NAME = re.compile(r"(?!\.)[\w.+=-]{1,60}")
"""A point: a part of the names of folders, which are joined by commas."""
SAME = ("output", "images", "metrics", "reference", "published", "compute.actors", "compute.gpus_per_actor")
"""What all jobs have alike: their pages are one, and so are their actors."""
TASK = ("data", "degradation")
TASK_OF_RESTORED = ("data.truth", "data.truth_pattern")
"""Other fields of the data of restored images say who restored them."""
ACTOR = ("cpus_per_actor", "gpus_per_actor", "actors")

Points = dict[str, Settings]
"""What an axis can be, by name: fields of the job with their values."""


class Tuning(Model):
    """Strengths that are chosen on images for tuning before anything is evaluated."""

    grid: dict[str, dict[str, dict[str, list[Any]]]] = Field(
        description="By axis and point: fields, and the values that are tried."
    )
    images: int = Field(default=16, ge=2, description="For tuning, at most.")
    by: str = Field(default="psnr", description="The metric of single images that decides.")
    within: NonNegativeFloat = Field(
        default=0.0, description="Means that are this near to the best are alike."
    )
    then: str | None = Field(default=None, description="Decides among settings that are alike; `by` if none.")
    fields: dict[str, Any] = Field(
        default={},
        description="Other fields of the job for tuning, such as data.shards; without any, a part of the "
        "images is for tuning and the rest is evaluated (data.subset).",
    )

    @field_validator("fields")
    @classmethod
    def check_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Raise a ValueError for what tuning sets itself."""
        for field, instead in (("data.limit", "tune.images"), ("metrics", "tune.by"), ("output", "output")):
            if field in fields:
                raise ValueError(f"{field}: of tuning that is by {instead}")
        return fields


class Page(Model):
    """What the page shows; see `analysis.suite.Wanted`."""

    title: str = ""
    distortion: str = "psnr"
    perception: str | None = None
    family: tuple[str, ...] = ()
    against: str | None = None


class SuiteFile(Model):
    """A suite file as it is written."""

    base: str | dict[str, Any] = Field(description="A job file, the name of a ready job, or fields of a job.")
    output: Written = Field(min_length=1, description="The folder of the suite: a path or URL.")
    axes: dict[str, dict[str, dict[str, Any]] | list[Any]] = Field(
        min_length=1,
        description="By name: points and the fields that each sets; or, of a field, a list of its values.",
    )
    include: list[dict[str, Any]] = Field(
        default=[], description="Further jobs: by axis a point, several, or new ones; of the others all."
    )
    exclude: list[dict[str, str | list[str]]] = Field(
        default=[], description="Jobs that are left out: by axis a point or several."
    )
    tune: Tuning | None = None
    page: Page = Page()

    @field_validator("axes")
    @classmethod
    def check_axes(cls, axes: dict[str, Any]) -> dict[str, Any]:
        """Raise a ValueError for an axis without points, or a list whose name is no field."""
        for axis, written in axes.items():
            if not written:
                raise ValueError(f"{axis}: an axis without points")
            if isinstance(written, list) and not kinds_at(axis.split("."), [Job]):
                raise ValueError(f"{axis}: a list is of the values of a field, and a job has no such field")
        return axes


@dataclass(frozen=True)
class Cell:
    """One job of a suite.

    Attributes:
        points: the point on each axis. fields: what they set. grid: fields and values to choose from.
    """

    points: Mapping[str, str]
    fields: Settings
    grid: Mapping[str, list[Any]]


@dataclass(frozen=True)
class Suite:
    """A suite file, and the jobs that it asks for.

    Attributes:
        values: fields of the base job. about: the first comment.
        task, method, seed: names of axes, by what they change.
    """

    file: SuiteFile
    values: dict[str, Any]
    source: str
    about: str
    cells: list[Cell]
    task: tuple[str, ...]
    method: tuple[str, ...]
    seed: tuple[str, ...]

    def name(self, cell: Cell, axes: Sequence[str]) -> str:
        """The points on some axes, as pages have them."""
        return " ".join(cell.points[axis] for axis in axes) or "all"

    def place(self, cell: Cell, axes: Sequence[str]) -> str:
        """The same as a folder."""
        return ",".join(cell.points[axis] for axis in axes) or "all"

    @property
    def wanted(self) -> Wanted:
        """What its page shows."""
        page = self.file.page
        return Wanted(page.title or self.about, page.distortion, page.perception, page.family, page.against)

    def job(self, cell: Cell, folder: str, fields: Settings) -> tuple[dict[str, Any], Job]:
        """The fields of a cell's job, and it, with others set; raises a JobError that names its points."""
        values = self.fields(cell, fields | {"output": folder})
        return values, check(values, self.where(cell))

    def fields(self, cell: Cell, fields: Settings) -> dict[str, Any]:
        """The fields of a cell's job, with others set."""
        values = copy.deepcopy(self.values)
        for field, value in [*cell.fields.items(), *fields.items()]:
            assign(values, field, plain(value), f"{self.where(cell)}: {field}")
        return values

    def where(self, cell: Cell) -> str:
        """A cell, for messages."""
        return f"{self.source}, {' '.join(cell.points.values())}"


def read_suite(name: str, sets: Sequence[str]) -> Suite:
    """The suite in a file, with fields of its base job overridden.

    Raises:
        JobError: no such file, bad YAML, or what does not fit; the message names the field.
    """
    path = located("SUITE", name)
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"SUITE: {error}") from error
    try:
        file = SuiteFile.model_validate(parse_yaml(text, name, [SuiteFile]))
    except ValidationError as error:
        raise JobError(f"{name}:\n  " + "\n  ".join(problem(dict(e)) for e in error.errors())) from None
    if isinstance(file.base, str):
        values, _ = read_values(file.base, list(sets))
    else:
        values = copy.deepcopy(file.base)
        for one in sets:
            apply(values, one)
    axes = {axis: points_of(axis, of, name) for axis, of in file.axes.items()}
    cells = expand(file, axes, name)
    refuse_without_effect(sets, cells)
    of_kind: dict[str, list[str]] = {"task": [], "method": [], "seed": []}
    for axis, points in axes.items():
        of_kind[kind_of(points, values)].append(axis)
    first = text.splitlines()[0] if text.strip() else ""
    about = first.lstrip("# ").strip() if first.startswith("#") else name
    return Suite(file, values, name, about, cells, **{kind: tuple(of) for kind, of in of_kind.items()})


def kind_of(points: Points, values: Mapping[str, Any]) -> str:
    """What an axis changes of the job of these values: the task, the seed alone, or the method."""
    fields = {field for of in points.values() for field in of}
    data = values.get("data")
    restored = isinstance(data, dict) and data.get("kind") == "restored"
    task = TASK_OF_RESTORED if restored else TASK
    if any(f"{field}.".startswith(f"{one}.") for field in fields for one in task):
        return "task"
    return "seed" if fields == {"seed"} else "method"


def refuse_without_effect(sets: Sequence[str], cells: Sequence[Cell]) -> None:
    """Raise a JobError for fields of the base job that are set, and then set again by the file."""
    for field in (one.partition("=")[0] for one in sets):
        if field == "output":
            raise JobError("--set output: the folder of a suite is `output` in its file")
        for cell in cells:
            if any(f"{field}.".startswith(f"{other}.") for other in (*cell.fields, *cell.grid)):
                raise JobError(
                    f"--set {field}: the file sets it for {' '.join(cell.points.values())}; change it there"
                )


def points_of(axis: str, written: Mapping[str, Settings] | list[Any], source: str) -> Points:
    """The points of an axis; raises a JobError for names and fields that cannot be."""
    if isinstance(written, list):
        points = {label(axis, value): {axis: value} for value in written}
        if len(points) < len(written):
            raise JobError(
                f"{source}: axes.{axis}: two values of one name; name them, NAME: {{{axis}: VALUE}}"
            )
    else:
        points = dict(written)
    for name, fields in points.items():
        if not NAME.fullmatch(name):
            raise JobError(
                f"{source}: axes.{axis}: {name!r} is no name of a point: letters, digits and + = - _ ., 60 "
                "at most, not . first, as folders are named after them"
            )
        if not isinstance(fields, dict):
            raise JobError(f"{source}: axes.{axis}.{name}: expected fields of a job, FIELD: VALUE")
        for field in fields:
            if any(f"{field}.".startswith(f"{one}.") for one in SAME):
                raise JobError(
                    f"{source}: axes.{axis}.{name}: {field} is the same in all jobs; set it in base"
                )
    return points


def label(axis: str, value: Any) -> str:
    """The name of a value in a list: that of a spec, else field=value."""
    if isinstance(value, dict):
        return str(value.get("name", ""))
    return f"{axis.rpartition('.')[2]}={value}"


def expand(file: SuiteFile, axes: Mapping[str, Points], source: str) -> list[Cell]:
    """All cells, each once; raises a JobError for points that there are not, or if none is left."""
    tables = [axes, *(included(entry, axes, source) for entry in file.include)]
    for place, entry in enumerate(file.exclude):
        for axis, names in entry.items():
            selected(axis, names, axes, f"{source}: exclude[{place}]", tables)
    grid = file.tune.grid if file.tune else {}
    for axis, tuned in grid.items():
        selected(axis, list(tuned), axes, f"{source}: tune.grid", tables)
        for point, tried in tuned.items():
            check_tried(tried, f"{source}: tune.grid.{axis}.{point}")
    found: dict[tuple[str, ...], Cell] = {}
    for table in tables:
        for combined in itertools.product(*(table[axis] for axis in axes)):
            chosen = dict(zip(axes, combined, strict=True))
            if any(matches(entry, chosen) for entry in file.exclude):
                continue
            cell = cell_of(chosen, table, grid)
            if found.setdefault(combined, cell).fields != cell.fields:
                raise JobError(
                    f"{source}: include: {' '.join(combined)} is there already, with other fields; give the "
                    "new point another name"
                )
    if not found:
        raise JobError(f"{source}: exclude leaves no job")
    return list(found.values())


def cell_of(
    chosen: Mapping[str, str],
    table: Mapping[str, Points],
    grid: Mapping[str, Mapping[str, Mapping[str, list[Any]]]],
) -> Cell:
    """The cell of some points."""
    fields: Settings = {}
    tried: dict[str, list[Any]] = {}
    for axis, name in chosen.items():
        points = table[axis][name]
        # Also of `sampler` and `sampler.steps` the later one counts.
        fields = {field: value for field, value in fields.items() if field not in points} | points
        tried |= grid.get(axis, {}).get(name, {})
    return Cell(chosen, fields, tried)


def without_effect(cells: Sequence[Cell]) -> list[str]:
    """Fields that an axis sets before another one sets all that they are a part of, each as a sentence."""
    lost: Counter[tuple[str, str]] = Counter()
    for cell in cells:
        for field, later in itertools.combinations(cell.fields, 2):
            lost[field, later] += field.startswith(f"{later}.")
    return [
        f"{field} has no effect in {count} of {len(cells)} jobs: an axis behind sets the whole {whole}; put "
        f"the axis that sets {field} behind it"
        for (field, whole), count in lost.items()
        if count
    ]


def check_tried(tried: Mapping[str, list[Any]], where: str) -> None:
    """Raise a JobError for fields that are not tuned, and for those without values."""
    for field, values in tried.items():
        refuse_varied(field, f"{where}.{field}")
        if any(overlap(field, f"compute.{one}") for one in ACTOR):
            raise JobError(f"{where}.{field}: the jobs of a suite share their actors; set it in base")
        if not values:
            raise JobError(f"{where}.{field}: no values to choose from")


def matches(entry: Mapping[str, str | list[str]], points: Mapping[str, str]) -> bool:
    """Whether an entry of `exclude` means these points."""
    return all(
        points[axis] in ([names] if isinstance(names, str) else names) for axis, names in entry.items()
    )


def included(entry: Mapping[str, Any], axes: Mapping[str, Points], source: str) -> dict[str, Points]:
    """The axes of an entry of `include`: of those it does not name, all points."""
    where = f"{source}: include"
    table = dict(axes)
    for axis, written in entry.items():
        if isinstance(written, dict):
            selected(axis, [], axes, where, [])
            table[axis] = points_of(axis, written, where)
        else:
            names = selected(axis, written, axes, where, [axes])
            table[axis] = {name: axes[axis][name] for name in names}
    return table


def selected(
    axis: str, names: Any, axes: Mapping[str, Points], where: str, tables: Sequence[Mapping[str, Points]]
) -> list[str]:
    """The names of points on an axis, one or several; raises a JobError for what is in none of the tables."""
    if axis not in axes:
        raise JobError(f"{where}: no axis {axis!r}; {closest(axis, axes) or 'there are ' + ', '.join(axes)}")
    listed = [names] if isinstance(names, str) else names
    known = [name for table in tables for name in table[axis]]
    for name in listed if isinstance(listed, list) else [listed]:
        if name not in known:
            there = closest(str(name), known) or f"there are {', '.join(known)}"
            raise JobError(f"{where}: no point {name!r} on {axis}; {there}")
    return list(listed)


def groups(suite: Suite) -> Iterator[tuple[tuple[str, str], list[Cell]]]:
    """Cells by task and method, whose seeds alone differ."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in suite.cells:
        names = suite.place(cell, suite.task), suite.place(cell, suite.method)
        found.setdefault(names, []).append(cell)
    yield from found.items()
