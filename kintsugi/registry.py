"""Turn a spec, `{"name": ..., parameters...}`, into an object by way of a registry of factories.

Operators, samplers and priors share this: a registry is a dict from a name to a factory,
the factory's signature is the list of parameters, and its type annotations are their checks.
"""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, ValidationError, validate_call

from kintsugi.errors import SpecError

Registry = Mapping[str, Callable[..., Any]]


@dataclass(frozen=True)
class Parameter:
    name: str
    default: Any
    """`inspect.Parameter.empty` when the parameter must be given."""

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def parameters(factory: Callable[..., Any]) -> list[Parameter]:
    """The parameters a spec may set: the keyword-only arguments of the factory."""
    return [
        Parameter(p.name, p.default)
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


def look_up(
    kind: str, registry: Registry, spec: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The factory that `spec` names, and the parameters it sets.

    Raises:
        SpecError: no name, an unknown name or an unknown parameter.
    """
    values = dict(spec)
    name = values.pop("name", None)
    if name is None:
        raise SpecError(f"{kind}.name: missing; choose one of {', '.join(sorted(registry))}")
    if not isinstance(name, str):
        raise SpecError(f"{kind}.name: a name, not {reprlib.repr(name)}")
    if name not in registry:
        raise SpecError(f"{kind}.name: no {kind} {name!r}; choose one of {', '.join(sorted(registry))}")
    factory = registry[name]
    known = [p.name for p in parameters(factory)]
    for field in values:
        if field not in known:
            listed = ", ".join(known) or "none"
            raise SpecError(f"{kind}.{field}: {name!r} has no such parameter; it has: {listed}")
    return factory, values


def construct(kind: str, registry: Registry, spec: Mapping[str, Any], *context: Any) -> Any:
    """Build the entry that `spec` names; `context` is passed to the factory before its parameters.

    Raises:
        SpecError: no name, an unknown name, an unknown parameter, or a value that does not fit.
    """
    factory, values = look_up(kind, registry, spec)
    # A class checks its own fields.
    checked = (
        factory
        if isinstance(factory, type)
        else validate_call(config=ConfigDict(arbitrary_types_allowed=True))(factory)
    )
    try:
        return checked(*context, **values)
    except ValidationError as error:
        problems = [problem(kind, spec["name"], dict(e)) for e in error.errors()]
        raise SpecError("; ".join(problems)) from error
    except SpecError:
        raise
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        raise SpecError(f"{kind} {spec['name']!r}: {error}") from error


def problem(kind: str, name: str, error: dict[str, Any]) -> str:
    """One of pydantic's errors as "kind.field: what is wrong"."""
    if not error["loc"]:
        return f"{kind} {name!r}: {error['ctx']['error']}"
    field = ".".join([kind, *map(str, error["loc"])])
    if error["type"] == "missing_keyword_only_argument":
        return f"{field}: missing; {name!r} needs it"
    return f"{field}: {error['msg']} (got {reprlib.repr(error['input'])})"
