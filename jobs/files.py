"""Job files: find one, read it, apply overrides, check it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kintsugi.errors import JobError, redacted
from kintsugi.jobs.values import kinds_at, names, parse_setting, parse_yaml
from kintsugi.pipeline.storage.location import at, in_utf8

if TYPE_CHECKING:
    from kintsugi.pipeline.job import Job
    from kintsugi.pipeline.storage.location import Location

FOLDERS = tuple(Path(__file__).parent / name for name in ("ready", "protocols"))
ALTERNATIVE = re.compile(r"(constrained-|literal\[|list\[|function-|Published$|str$|int$|float$)")
"""How pydantic names the types of which a value may be one, behind the field."""
VARIANT = re.compile(r"(?P<job>.+):(?P<variant>[^:/]+)")
SHOWN = 60  # characters of a value that does not fit


def ready_jobs() -> dict[str, Path]:
    """The job files that ship with Kintsugi, by name: a field that they leave out has its default.

    Those in `protocols` are experiments of the literature, with the prior and metrics of their papers.
    """
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def describe(path: Path) -> str:
    """The first comment line of a job file."""
    first = path.read_text().splitlines()[0]
    return first.lstrip("# ").strip()


def variants_of(path: Path) -> list[str]:
    """The names of a job file's variants."""
    return list(parse_yaml(path.read_text(), str(path), []).get("variants", {}))


def load_job(name: str, overrides: list[str], limit: int | None = None) -> Job:
    """The job in a file, or the ready job of that name, with `key.path=value` overrides applied.

    "NAME:VARIANT" is the job with the fields of one of the `variants` in its file; the variant's name goes
    behind its output, unless it sets that itself.

    Raises:
        JobError: no such file or variant, bad YAML, or a field that does not fit, which the message names.
    """
    values, source = read_values(name, overrides if limit is None else [*overrides, f"data.limit={limit}"])
    return check(values, source)


def read_values(name: str, overrides: list[str]) -> tuple[dict[str, Any], str]:
    """The fields of `load_job` as they are written, and where they were found."""
    from kintsugi.pipeline.job import Job

    path, variant = found(name)
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8: {error}") from None
    except OSError as error:  # no permission
        raise JobError(f"job file: {error}") from error
    values = parse_yaml(text, str(path), [Job])
    if not isinstance(values, dict):
        raise JobError(f"{path}: expected fields such as data: and degradation:, got {type(values).__name__}")
    choose(values, variant, str(path))
    for override in overrides:
        apply(values, override)
    return values, str(path)


def found(name: str) -> tuple[Location | Path, str | None]:
    """The file of a job, and which variant is meant; raises a JobError if there is none."""
    ready = ready_jobs()
    path = located("job file", name)
    try:
        if path.is_file():
            return path, None
    except OSError as error:  # a name that is too long
        raise JobError(f"job file: {error}") from error
    if name in ready:
        return ready[name], None
    if with_variant := VARIANT.fullmatch(name):
        return found(with_variant["job"])[0], with_variant["variant"]
    known = closest(name, ready) or f"there are {', '.join(ready)}"
    raise JobError(f"no job file {name!r}, and no ready job of that name; {known}")


def choose(values: dict[str, Any], variant: str | None, source: str) -> None:
    """Take the variants out of the fields, and set those of the chosen one; raises a JobError."""
    variants = values.pop("variants", {})
    if not (isinstance(variants, dict) and all(isinstance(fields, dict) for fields in variants.values())):
        raise JobError(f"{source}: variants: expected names, each with fields such as {{sampler.steps: 3}}")
    if variant is None:
        return
    if variant not in variants:
        known = closest(variant, variants) or f"there are {', '.join(variants) or 'none'}"
        raise JobError(f"{source}: no variant {variant!r}; {known}")
    fields = variants[variant]
    if "output" in values and "output" not in fields:
        values["output"] = f"{values['output']}-{variant}"
    for path, value in fields.items():
        assign(values, path, value, f"{source}: variants.{variant}.{path}")


def located(what: str, text: str | os.PathLike[str]) -> Location:
    """The location that the argument `what` names; raises a JobError that begins with it."""
    try:
        return at(text)
    except ValueError as error:
        raise JobError(f"{what}: {error}") from error


def check(values: dict[str, Any], source: str) -> Job:
    """The job of these fields; raises a JobError that names what does not fit, in `source`."""
    from kintsugi.pipeline.job import Job

    try:
        return Job.model_validate(absolute_files(values))
    except ValidationError as error:
        # A default that waits for another field, which is named itself, says nothing.
        found = [dict(e) for e in error.errors() if e["type"] != "default_factory_not_called"]
        problems = [problem(e) for e in found]
        raise JobError(f"{source}:\n  " + "\n  ".join(problems)) from None


def problem(error: dict[str, Any]) -> str:
    """One validation error as "field: what is wrong"."""
    from kintsugi.pipeline.job import Job

    field = ".".join(str(part) for part in error["loc"] if not ALTERNATIVE.match(str(part)))
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        *group, name = error["loc"]
        there = names(kinds_at(group, [Job]))
        message = f"no such field; {closest(str(name), there) or 'see `kintsugi list fields`'}"
    elif error["type"] not in ("value_error", "missing"):
        # Redacted while it is whole: of a URL that is cut nobody can tell what is secret in it.
        message += f" (got {shorten(redacted(repr(error['input'])))})"
    return f"{field}: {message}" if field else message


def apply(values: dict[str, Any], override: str) -> None:
    """Set one field: "sampler.w=8" sets values["sampler"]["w"] to 8; `parse_setting` reads the value."""
    from kintsugi.pipeline.job import Job

    path, equals, text = override.partition("=")
    where = f"--set {shorten(redacted(repr(override)))}"
    if not equals or not path:
        raise JobError(f"{where}: expected key.path=value, for instance sampler.w=8")
    assign(values, path, parse_setting(text, where, kinds_at(path.split("."), [Job], values)), where)


def assign(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Set the field at a path such as sampler.w; `where` begins the message of the error."""
    from kintsugi.pipeline.job import Job

    *parents, last = path.split(".")
    # A parameter of a prior or sampler that the job leaves out is one of its default.
    if parents and (known := Job.model_fields.get(parents[0])) and isinstance(known.default, dict):
        values.setdefault(parents[0], dict(known.default))
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise JobError(f"{where}: {parent!r} is a value, not a group of fields")
    values[last] = value


def job_of(
    job: str | os.PathLike[str] | Mapping[str, Any] | Job,
    sets: Mapping[str, Any],
    limit: int | None,
    source: str = "job",
) -> Job:
    """The job that is meant, checked, with fields set; raises a JobError that names the bad field."""
    from kintsugi.pipeline.job import Job

    if isinstance(job, Job):
        values = job.model_dump(mode="json")
    elif isinstance(job, Mapping):
        values = plain(job)
    else:
        values, source = read_values(os.fspath(job), [])
    for path, value in sets.items():
        assign(values, path, plain(value), f"sets[{path!r}]")
    if limit is not None:
        assign(values, "data.limit", limit, "limit")
    return check(values, source)


def plain(value: Any) -> Any:
    """A copy with dicts, lists and text for mappings, sequences and paths, as a job file has them."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def closest(name: str, known: Iterable[str]) -> str | None:
    """What was meant by a name that is not known, as a question."""
    found = get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}?" if found else None


def shorten(text: str) -> str:
    """A text of at most `SHOWN` characters."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def absolute_files(values: dict[str, Any]) -> dict[str, Any]:
    """Files that specs name are found from the directory of the command; workers may run in another one."""
    for field, spec, parameter in files_of(values):
        try:
            spec[parameter] = in_utf8(str(absolute(spec[parameter])))
        except ValueError as error:
            raise JobError(f"{field}: {error}") from error
    return values


def files_of(values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(field, the spec it is in, its name there) for every path of a file that specs name."""
    from kintsugi import operators, samplers

    reference = values.get("reference", "truth")
    if isinstance(reference, str) and reference != "truth" and "://" not in reference:
        yield "reference", values, "reference"
    degradation, prior = values.get("degradation"), values.get("prior")
    if isinstance(degradation, dict):
        yield from operators.files_of(degradation.get("operator"), "degradation.operator")
    yield from samplers.files_of(values.get("sampler"), "sampler")
    if isinstance(prior, dict) and isinstance(path := prior.get("path"), str) and "://" not in path:
        hub_id = prior.get("name") == "diffusers" and not absolute(path).exists()
        if not hub_id:
            yield "prior.path", prior, "path"


def absolute(path: str) -> Path:
    """From the root, ~ expanded; unlike pathlib's expansion it leaves the names of unknown users alone."""
    return Path(os.path.expanduser(path)).absolute()
