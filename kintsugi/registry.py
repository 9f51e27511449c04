"""Turn a spec, `{"name": ..., parameters...}`, into an object by way of a registry of factories.

Operators, samplers, priors and metrics share this: a registry is a dict from a name to a factory,
the factory's signature is the list of parameters, and its type annotations are their checks.
What other packages offer is found by entry points, and imported when a spec names it.
"""

import inspect
import os
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError, validate_call

from kintsugi.errors import SpecError

T = TypeVar("T")


@dataclass(frozen=True)
class Parameter:
    """A parameter that a spec may set."""

    name: str
    default: Any
    """`inspect.Parameter.empty` when the parameter must be given."""

    @property
    def required(self) -> bool:
        """Whether a spec must set it."""
        return self.default is inspect.Parameter.empty


def parameters(factory: Callable[..., Any]) -> list[Parameter]:
    """The parameters a spec may set: the keyword-only arguments of the factory."""
    return [
        Parameter(p.name, p.default)
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]


class Registry(Mapping[str, T]):
    """What is built in, by name; a plug-in is found, and its package imported, when its name is asked for.

    Iteration gives what is built in. A built-in name is never a plug-in's.

    Args:
        kind: "sampler" has the entry points of the group "kintsugi.samplers".
        of: the type of which an entry must be, or several. field: of a job, that names an entry.

    Attributes:
        loaded: the plug-ins that were asked for, as Python keeps their modules.
    """

    def __init__(self, kind: str, builtin: dict[str, T], of: Any = Callable, field: str | None = None):
        self.kind, self.builtin, self.of, self.field = kind, builtin, of, field or f"{kind}.name"
        self.loaded: dict[str, T] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.builtin)

    def __len__(self) -> int:
        return len(self.builtin)

    def __getitem__(self, name: str) -> T:
        if name in self.builtin:
            return self.builtin[name]
        if name not in self.loaded:
            self.loaded[name] = self.load(name)
        return self.loaded[name]

    def load(self, name: str) -> T:
        """Import a plug-in; raises a KeyError if there is none, a SpecError if it cannot be used."""
        if (plugin := self.plugin(name)) is None:
            raise KeyError(name)
        title = f"{self.field}: the plug-in {name!r} of {package(plugin)}"
        try:
            entry: T = plugin.load()
        except (Exception, SystemExit) as error:  # the code of others
            raise SpecError(f"{title} cannot be imported: {type(error).__name__}: {error}") from error
        if not isinstance(entry, self.of):
            kinds = self.of if isinstance(self.of, tuple) else (self.of,)
            wanted = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise SpecError(f"{title} is no {wanted}: {plugin.value}")
        return entry

    def plugins(self) -> list[EntryPoint]:
        """What other packages offer, by name, also under built-in names; nothing is imported."""
        folders = tuple((folder, changed(folder)) for folder in sys.path)
        return sorted(installed(f"kintsugi.{self.kind}s", folders), key=lambda plugin: plugin.name)

    def plugin(self, name: str) -> EntryPoint | None:
        """The plug-in of this name, not imported, if any; raises a SpecError if there are several."""
        found = [] if name in self.builtin else [one for one in self.plugins() if one.name == name]
        if len(found) > 1:
            packages = ", ".join(map(package, found))
            raise SpecError(f"{self.field}: {name!r} is in {packages}; uninstall all but one")
        return found[0] if found else None

    def packages(self, spec: Mapping[str, Any], field: str) -> dict[str, str]:
        """The package, as pip takes it, of the plug-in that a good spec, or an empty one, names; by field."""
        plugin = self.plugin(spec.get("name", ""))
        return {} if plugin is None else {field: package(plugin)}


@lru_cache(maxsize=16)
def installed(group: str, folders: tuple[tuple[str, int], ...]) -> EntryPoints:
    """What packages in the folders of sys.path, which changed at these times, offer to a group.

    Reading them takes milliseconds, and a run asks for many names that are no plug-in's.
    """
    return entry_points(group=group)


def changed(folder: str) -> int:
    """When a folder has changed, in ns; 0 where there is none."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0


def package(plugin: EntryPoint) -> str:
    """The distribution of a plug-in and its version, as pip takes them: "mine==1.0"."""
    return f"{plugin.dist.name}=={plugin.dist.version}" if plugin.dist else "an unknown package"


def choices(registry: Mapping[str, Any]) -> str:
    """The names that a spec may give, of plug-ins too."""
    plugins = registry.plugins() if isinstance(registry, Registry) else []
    return ", ".join(sorted({*registry, *(plugin.name for plugin in plugins)}))


def look_up(
    kind: str, registry: Mapping[str, Any], spec: Mapping[str, Any], part: str | None = None
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The factory that `spec` names, and the parameters it sets.

    Args:
        part: which factory of an entry that has several.

    Raises:
        SpecError: no name, an unknown name or an unknown parameter, or a plug-in that cannot be used.
    """
    values = dict(spec)
    name = values.pop("name", None)
    if name is None:
        raise SpecError(f"{kind}.name: missing; choose one of {choices(registry)}")
    if not isinstance(name, str):
        raise SpecError(f"{kind}.name: a name, not {reprlib.repr(name)}")
    if (entry := registry.get(name)) is None:
        raise SpecError(f"{kind}.name: no {kind} {name!r}; choose one of {choices(registry)}")
    factory = entry if part is None else getattr(entry, part)
    known = [p.name for p in parameters(factory)]
    for field in values:
        if field not in known:
            listed = ", ".join(known) or "none"
            raise SpecError(f"{kind}.{field}: {name!r} has no such parameter; it has: {listed}")
    return factory, values


def construct(
    kind: str,
    registry: Mapping[str, Any],
    spec: Mapping[str, Any],
    *context: Any,
    part: str | None = None,
) -> Any:
    """Build the entry that `spec` names; `context` is passed to the factory before its parameters.

    Raises:
        SpecError: as for `look_up`, or a value that does not fit.
    """
    factory, values = look_up(kind, registry, spec, part)
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
    return f"{field}: {error['msg'].removeprefix('Value error, ')} (got {reprlib.repr(error['input'])})"
