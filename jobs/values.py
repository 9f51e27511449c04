"""What is written in job files, and after `--set`, in the types that the fields of a job have.

Job files are YAML 1.2 with its core schema: 010 is ten, 1e-3 a number, `no` a word. What stands where the
job expects text is its text, whatever else it could be read as.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from kintsugi.errors import JobError

Kinds = list[Any]
"""The types of which a value may be one; a registry stands for a spec. Nothing is known if there are none.

`object` is the type of a parameter that nothing built in has: such a value is what YAML says.
"""

CORE = "tag:yaml.org,2002:"
SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789", lambda text: whole(text)),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
}
"""YAML 1.2, chapter 10.3.2: how a plain value of each type looks, how it begins, and what it means."""
DIGITS = 4000  # of a whole number; Python reads few more


def whole(text: str) -> int:
    """A whole number, also 0o17 and 0xff; raises a ValueError if it is too long."""
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    if len(text) > DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text, base)


class Plain(yaml.SafeLoader):
    """YAML without aliases, of which a few lines may stand for gigabytes, and without fields given twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML's, without aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """As PyYAML's, without fields given twice."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(
                    None, None, "a list or group as the name of a field", key.start_mark
                )
            if key.value in seen:
                what = f"{key.value!r} is there twice"
                raise yaml.composer.ComposerError(None, None, what, key.start_mark)
            seen.add(key.value)
        return node


for _name, (_pattern, _first, _) in SCALARS.items():
    Plain.add_implicit_resolver(
        CORE + _name, re.compile(rf"(?:{_pattern})\Z"), [*_first, *([""] if _name == "null" else [])]
    )


def parse_yaml(text: str, source: str, kinds: Kinds) -> Any:
    """The value of these types that a text in YAML stands for.

    Raises:
        JobError: it is no YAML, or has what is not read: aliases, fields given twice, tags of other types.
    """
    try:
        node = yaml.compose(text, Plain)
        return None if node is None else value_of(node, kinds)
    except yaml.YAMLError as error:
        raise JobError(f"{source}: not valid YAML: {error}") from None
    except RecursionError:
        raise JobError(f"{source}: not valid YAML: nested too deep") from None
    except ValueError as error:  # of !!int x and of 5,000 digits
        raise JobError(f"{source}: not valid YAML: a value that is none of its type: {error}") from None


def value_of(node: yaml.Node, kinds: Kinds) -> Any:
    """The value of these types that a node stands for; raises YAMLErrors and ValueErrors."""
    tag = node.tag.removeprefix(CORE)
    match node:
        case yaml.ScalarNode() if tag == "str" or tag in SCALARS:
            text: str = node.value
            if tag == "str" or (tag != "null" and str in kinds) or text in words(kinds):
                return text
            return SCALARS[tag][2](text)
        case yaml.SequenceNode() if tag == "seq":
            parts = [value_of(part, elements(kinds)) for part in node.value]
            written = f"[{','.join(map(str, parts))}]"  # a range, such as [0,1]
            return written if written in words(kinds) else parts
        case yaml.MappingNode() if tag == "map":
            return {key.value: value_of(value, members(kinds, key.value)) for key, value in node.value}
    raise yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not read", node.start_mark)


def parse_setting(text: str, source: str, kinds: Kinds) -> Any:
    """What a text on the command line stands for.

    Where text is expected it is the text, but for quotes around all of it, and for a list in brackets, or
    a group with a `name` in braces, where the field takes one, too; and null, where it may have none. Else
    it is YAML.

    Raises:
        JobError: as `parse_yaml`.
    """
    if text == "null" and type(None) in kinds:
        return None
    if text in words(kinds) or not kinds:  # of fields that there are none of, checking tells
        return text
    if str not in kinds:
        try:
            return parse_yaml(text, source, kinds)
        except JobError:
            if object in kinds:  # perhaps no parameter at all, which checking tells
                return text
            raise
    try:
        node = yaml.compose(text, Plain)
    except (yaml.YAMLError, RecursionError):
        return text
    if node is None or node.start_mark.index or node.end_mark.index < len(text):
        return text
    match node:
        case yaml.ScalarNode():
            meant = node.style in ("'", '"')
        case yaml.SequenceNode():
            meant = bool(node.flow_style) and any(origin(kind) is list for kind in kinds)
        case _:
            meant = bool(members(kinds, "name")) and any(key.value == "name" for key, _ in node.value)
    return parse_yaml(text, source, kinds) if meant else text


def split(text: str) -> list[str]:
    """The parts between commas that are in no quotes, braces or brackets."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        elif character == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += character
    return [part.strip() for part in parts]


def kinds_at(path: Iterable[str | int], kinds: Kinds, value: Any = None) -> Kinds:
    """The types of the field at a path below a value of these types.

    Args:
        value: it, as far as it is written; where its specs name plug-ins, theirs are the parameters.
    """
    for part in path:
        own = [each for kind in kinds for each in plugin_parameters(kind, value).get(str(part), [])]
        kinds = own or (elements(kinds) if isinstance(part, int) else members(kinds, part))
        value = value.get(part) if isinstance(value, dict) else None
    return kinds


def plugin_parameters(kind: Any, spec: Any) -> Mapping[str, Kinds]:
    """The types of the parameters of the plug-in that a spec names; none of what is built in or not found."""
    name = spec.get("name") if isinstance(spec, dict) else None
    if isinstance(kind, Mapping) and isinstance(name, str) and name not in list(kind):
        with suppress(Exception):  # the code of others; checking the job tells what is wrong
            return parameters_of({name: kind[name]})
    return {}


def origin(kind: Any) -> Any:
    """list of list[str]; None of a plain type."""
    return get_origin(kind)


def alternatives(annotation: Any) -> Kinds:
    """The types of which a value that is annotated so may be one."""
    if origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin(annotation) in (Union, types.UnionType):
        return [kind for each in get_args(annotation) for kind in alternatives(each)]
    return [annotation]


def words(kinds: Kinds) -> list[Any]:
    """The texts that a value may be one of."""
    return [word for kind in kinds if origin(kind) is Literal for word in get_args(kind)]


def elements(kinds: Kinds) -> Kinds:
    """The types of the elements of a list."""
    return [
        one
        for kind in kinds
        if origin(kind) in (list, tuple)
        for each in get_args(kind)
        for one in alternatives(each)
    ]


def members(kinds: Kinds, name: str) -> Kinds:
    """The types of the field of this name, `object` of a parameter that nothing built in has."""
    unknown = [object]
    return [
        one
        for kind in kinds
        for one in fields_of(kind).get(name, unknown if isinstance(kind, Mapping) else [])
    ]


def names(kinds: Kinds) -> list[str]:
    """The fields that there are."""
    return [name for kind in kinds for name in fields_of(kind)]


def fields_of(kind: Any) -> Mapping[str, Kinds]:
    """The fields of a model, or the parameters of all that a registry holds."""
    if isinstance(kind, Mapping):
        return parameters_of(kind)
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return {}
    registries = specs()
    return {
        name: [registries.get(name, k) if origin(k) is dict else k for k in alternatives(field.annotation)]
        for name, field in kind.model_fields.items()
    }


def parameters_of(registry: Mapping[str, Any]) -> Mapping[str, Kinds]:
    """The types of all parameters that a registry's factories have, by name."""
    from kintsugi.priors import Format
    from kintsugi.registry import parameters

    found: dict[str, Kinds] = {"name": [str]}
    for entry in registry.values():
        factory = entry.load if isinstance(entry, Format) else entry
        signature = inspect.signature(factory, eval_str=True).parameters
        for parameter in parameters(factory):
            known = found.setdefault(parameter.name, [])
            known += alternatives(signature[parameter.name].annotation)
    return found


def specs() -> Mapping[str, Any]:
    """The registries by the fields whose specs they build."""
    from kintsugi import operators, priors, samplers

    return {"operator": operators.REGISTRY, "prior": priors.REGISTRY, "sampler": samplers.REGISTRY}
