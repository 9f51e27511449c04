"""What a job can say: every field with its type, default and description, from the model itself."""

from __future__ import annotations

import builtins
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kintsugi.jobs.values import alternatives, origin

WORDS: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "true or false"}
STORABLE = 2**31
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


@dataclass(frozen=True)
class Described:
    """A field of a job in words: `name` is as in --set."""

    name: str
    type: str
    default: str
    about: str


def fields() -> Iterator[Described]:
    """All fields of a job, in the order of the model."""
    from kintsugi.pipeline.job import Job

    return of_model(Job, "")


def of_model(model: type[BaseModel], prefix: str) -> Iterator[Described]:
    """All fields of a model and of those in it; `prefix` is the path to it, with a point behind."""
    for name, field in model.model_fields.items():
        kinds = alternatives(field.annotation)
        groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if len(groups) < len(kinds):
            type_ = " ".join([in_words(field.annotation), *bounds(field.metadata)])
            yield Described(f"{prefix}{name}", type_, default_of(field), field.description or "")
        for group in groups:
            yield from of_model(group, f"{prefix}{name}.")


def in_words(annotation: Any) -> str:
    """A type as "whole number > 0 or auto"."""
    parts = get_args(annotation)
    match origin(annotation):
        case typing.Annotated:
            return " ".join([in_words(parts[0]), *bounds(parts[1:])])
        case typing.Union | types.UnionType:
            return " or ".join(map(in_words, parts))
        case typing.Literal:
            return " or ".join(map(str, parts))
        case builtins.list:
            return f"list of {in_words(parts[0])}"
        case builtins.dict:
            return "{name: …}" if parts[1] is Any else f"{{…: {in_words(parts[1])}}}"
    if annotation is type(None):
        return "null"
    if issubclass(annotation, BaseModel):
        return f"{{{', '.join(annotation.model_fields)}}}"
    return WORDS[annotation]


def bounds(marks: Sequence[Any]) -> Iterator[str]:
    """The ends of a range, without those that only keep numbers storable."""
    for name, sign in BOUNDS.items():
        for mark in marks:
            if (value := getattr(mark, name, None)) is not None and value < STORABLE:
                yield f"{sign} {value:g}"


def default_of(field: FieldInfo) -> str:
    """A field's default as it is written in a job file, or why there is none."""
    if field.is_required():
        return "must be given"
    if field.default_factory is not None:
        return "by data.kind"
    if isinstance(field.default, str):
        return field.default
    return yaml.safe_dump(field.default, default_flow_style=True, width=1000).removesuffix("...\n").strip()
