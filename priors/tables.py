"""Which weights of a checkpoint to sample with, out of the wrappings of training scripts.

A network's table is found by one of its keys, the `mark`, wherever it lies: in dicts (`state_dict`, `ema`)
and behind prefixes (`module.`, `_orig_mod.`, `model.`). The way there is its label, such as
"state_dict.model"; that of a plain file is "". The moving average goes before the trained weights.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kintsugi.checkpoint import CheckpointError, State, difference, tensors

AVERAGE = re.compile(r"(?<![a-z])(ema|swa|averaged?|shadow)(?![a-z])")
DEPTH = 4
"""Tables lie in at most so many dicts."""
TABLES = 16
WHOLE = re.compile(r"((module|_orig_mod)\.)+")
LABEL = 200
"""Characters; longer ways lead to no table."""


@dataclass(frozen=True)
class Found:
    """A table to sample with.

    Attributes:
        left: what lay beside the weights and is no part of them.
        average: whether it is a moving average.
        said: where it was found and what was left out, in words; nothing of a plain file.
    """

    state: State
    left: State
    average: bool
    said: str


@dataclass(frozen=True)
class Table:
    """Where a table lies: names to tensors, or an average without names, in the order of the network."""

    content: Mapping[str, Any] | list[Any]
    average: bool
    others: int  # entries beside it that have another prefix, or none


def find(
    content: Any,
    path: Path,
    mark: str,
    *,
    weights: str | None = None,
    untrained: Collection[str] = (),
    spare: Collection[str] = (),
) -> Found:
    """The weights of a network in what a file holds; `weights` is the label of one table.

    Args:
        mark: a parameter of the network that is trained.
        untrained: names that an average may lack; they are taken from the trained weights.
        spare: names that are left out.

    Raises:
        CheckpointError: there is no table, several of which none is *the* average, or one of other things.
    """
    found = dict(candidates(content, mark))
    if len(found) > TABLES:
        raise CheckpointError(f"path: {str(path)!r} holds more than {TABLES} networks")
    if all(isinstance(table.content, list) for table in found.values()):
        return Found(tensors(content, path), {}, False, "")
    trained = [label for label, table in found.items() if not table.average]
    label = weights if weights is not None else chosen(found, next(unread(content, found), None), path)
    if label not in found:
        listed = ", ".join(map(repr, found))
        raise CheckpointError(f"weights: {str(path)!r} has no table {label!r}; it has {listed}")
    table = found[label]
    whole = tensors(found[trained[0]].content, path) if table.average and len(trained) == 1 else {}
    kept = {key: value for key, value in whole.items() if key in untrained}
    if isinstance(table.content, list):
        names = [key for key in whole if key not in {*untrained, *spare}]
        state = kept | named(table.content, label, whole, names, path)
    else:
        state = kept | tensors(table.content, path)
    left = {key: state.pop(key) for key in spare if key in state}
    said = []
    if label or len(found) > 1:
        said.append(f"{'averaged weights' if table.average else 'weights'} in {label!r}")
    if left:
        said.append(f"without {' and '.join(map(repr, left))}")
    if table.others:
        said.append(f"without {table.others} entries beside it")
    return Found(state, left, table.average, ", ".join(said))


def walk(content: Any) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """All dicts in dicts, with the ways to them; each once, since a pickle may hold itself."""
    seen = set()
    waiting = [("", content)]
    for _ in range(DEPTH):
        inner = []
        for label, value in waiting:
            this = (id(value), is_average(label))  # the same weights may be trained ones and an average
            if isinstance(value, Mapping) and this not in seen and len(label) <= LABEL:
                seen.add(this)
                yield label, value
                inner += [(joined(label, key), item) for key, item in value.items() if isinstance(key, str)]
        waiting = inner


def joined(label: str, name: str) -> str:
    """Both with a point between them; the name alone where there is no label."""
    return f"{label}.{name}" if label else name


def candidates(content: Any, mark: str) -> Iterator[tuple[str, Table]]:
    """The tables that hold the mark, by label, and averages without names (torch_ema's `shadow_params`)."""
    for label, values in walk(content):
        keys = [key for key in values if isinstance(key, str)]
        prefixes = {key.removesuffix(mark) for key in keys if f".{key}".endswith(f".{mark}")}
        if len(prefixes) > TABLES:
            prefixes = set()
        outside = [key for key in keys if not key.startswith(tuple(prefixes)) and not is_counter(values[key])]
        for prefix in prefixes:
            longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            own = {
                key.removeprefix(prefix): values[key]
                for key in keys
                if key.startswith(prefix) and not key.startswith(longer)
            }
            name = joined(label, prefix.removesuffix(".")) if prefix else label
            if WHOLE.fullmatch(prefix):  # it wraps all of a network: what lies outside is unexpected in it
                own |= {key: values[key] for key in outside}
            yield name, Table(own, is_average(name), 0 if WHOLE.fullmatch(prefix) else len(outside))
        if isinstance(shadow := values.get("shadow_params"), list):
            yield label, Table(shadow, True, 0)


def is_counter(value: Any) -> bool:
    """Whether it is one number: how often was averaged, and how fast."""
    return isinstance(value, Tensor) and value.numel() < 2


def is_average(label: str) -> bool:
    """Whether a table is a moving average by its name; `online_model` is what an average is made of."""
    return AVERAGE.search(label.lower()) is not None and "online" not in label.lower()


def unread(content: Any, found: Collection[str]) -> Iterator[str]:
    """What is called an average and holds weights, but no table that was found."""
    for label, values in walk(content):
        for key, value in values.items():
            head = joined(label, key.partition(".")[0]) if isinstance(key, str) else ""
            holds = isinstance(value, (Tensor, Mapping)) and not is_counter(value) and len(value) > 0
            if holds and is_average(head) and not any(f"{name}.".startswith(f"{head}.") for name in found):
                yield head


def chosen(found: Mapping[str, Table], other: str | None, path: Path) -> str:
    """The label of the only average, or without any of the only table; other: an average that is not read.

    Raises:
        CheckpointError: that is not one; the message names `weights`, which decides.
    """
    read = [label for label, table in found.items() if table.average]
    fitting = read or list(found)
    if len(fitting) > 1:
        listed = " or ".join(map(repr, fitting))
        raise CheckpointError(f"weights: {str(path)!r} holds several tables; give {listed}")
    if not read and other is not None:
        raise CheckpointError(
            f"path: {str(path)!r} holds an average {other!r} in a form that is not read, neither "
            f"a table nor 'shadow_params'; weights: {fitting[0]!r} takes the weights as trained"
        )
    return fitting[0]


def named(shadow: list[Any], label: str, trained: State, names: list[str], path: Path) -> State:
    """An average without names, under those of the trained weights."""
    if len(shadow) != len(names):
        raise CheckpointError(f"path: {str(path)!r}: {label!r} has no list 'shadow_params' of {len(names)}")
    state = tensors(dict(zip(names, shadow, strict=True)), path)
    if problem := difference({key: trained[key] for key in names}, state):
        raise CheckpointError(f"path: {str(path)!r}: {label!r} does not fit the trained weights: {problem}")
    return state
