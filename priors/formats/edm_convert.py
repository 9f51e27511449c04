"""Pickles of EDM and EDM2 into safetensors, once: `python -m kintsugi.priors.formats.edm_convert --help`.

Such a pickle holds a network as a tree of objects of `torch_utils.persistence`, each with the source of its
class. Here nothing of a file is called or imported: all it names stands for inert dicts, and what is taken
out are tensors, names of classes, and the arguments that the network was made with (layout: NVlabs/edm,
torch_utils/persistence.py, version 6).
"""

import argparse
import io
import itertools
import json
import math
import pickle
import pickletools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kintsugi.checkpoint import CheckpointError, State
from kintsugi.priors.formats.edm_network import METADATA

DEPTH = 16
"""Modules lie in at most so many others."""
MOST = 10_000
"""So many modules and weights at most, each wherever it is reached; the largest of EDM2 has some hundreds."""
LONGEST = 100
"""Characters of the name of one of them."""
WRITTEN = 100_000
"""Characters of the arguments, as JSON."""
GROUPS = ("_parameters", "_buffers", "_modules")
"""What a module keeps its parts in."""
NUMBERS = ("f8", "f4", "f2", "i8", "i4", "b1")


class Persistent(NamedTuple):
    """An object of `torch_utils.persistence`: the name of its class, and its attributes."""

    kind: str
    state: Mapping[str, Any]


class Encoded(NamedTuple):
    """What older protocols write for bytes; as text, of which many may be made of one in a file."""

    text: str
    encoding: str


class Stored(NamedTuple):
    """A storage as torch.save writes it, not yet read."""

    content: bytes | Encoded


class Cut(NamedTuple):
    """A tensor: elements of a storage."""

    storage: Stored
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Kind(NamedTuple):
    """A type of numpy, by its name; without its byte order, of which only the usual one is read."""

    name: str

    def __setstate__(self, _: Any) -> None:
        pass


class Inert(dict[Any, Any]):
    """An instance of whatever a pickle names: it keeps items and what a module has, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            # No more, as many objects may have the same large state.
            self.update({group: state[group] for group in GROUPS if group in state})

    def append(self, _: Any) -> None:
        """Nothing."""

    extend = add = append


def persistent(meta: Mapping[str, Any]) -> Persistent:
    """Without its source."""
    kind, state = meta["class_name"], meta["state"]
    if not isinstance(kind, str) or not isinstance(state, Mapping):
        raise pickle.UnpicklingError("an object without the name of its class, or without attributes")
    return Persistent(kind, state)


def cut(storage: Stored, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Cut:
    """A tensor as it is written."""
    return Cut(storage, offset, shape, strides)


def raw(content: bytes | Encoded) -> bytes:
    """The bytes."""
    return content.text.encode("latin1") if isinstance(content, Encoded) else content


def number(kind: Kind, content: bytes | Encoded) -> int | float | bool:
    """A number of numpy."""
    if kind.name not in NUMBERS:
        raise pickle.UnpicklingError(f"a number of type {kind.name!r}")
    return np.frombuffer(raw(content), kind.name, 1)[0].item()


UNDERSTOOD: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": persistent,
    "torch.storage._load_from_bytes": Stored,
    "torch._utils._rebuild_tensor_v2": cut,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "numpy.core.multiarray.scalar": number,
    "numpy._core.multiarray.scalar": number,
    "numpy.dtype": lambda name, *_: Kind(str(name)),
    "_codecs.encode": Encoded,
}


class Reader(pickle.Unpickler):
    """An unpickler to which every name in a file is `Inert`, but for those `UNDERSTOOD`."""

    def find_class(self, module: str, name: str) -> Any:
        """Made anew each time, so that a file which sets attributes of what it names sets nothing of ours."""
        function = UNDERSTOOD.get(f"{module}.{name}")
        return type("Named", (Inert,), {}) if function is None else lambda *values: function(*values)


class Network(NamedTuple):
    """What a pickle says of its network.

    Attributes:
        kind: the class. settings: the arguments it was made with.
        encoder: the class of what images go through before; None where the file names none.
    """

    kind: str
    settings: dict[str, Any]
    encoder: str | None
    state: State


def read(path: Path) -> Network:
    """The network in a pickle of EDM or EDM2: its averaged weights.

    Raises:
        CheckpointError: no such file, or one that holds no such network.
    """
    if not path.is_file():
        raise CheckpointError(f"no file {str(path)!r}")
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            check_sizes(data)
            content = Reader(data).load()
    except Exception as error:  # whatever damaged bytes lead to
        raise CheckpointError(
            f"{str(path)!r} is no pickle of EDM: {error or type(error).__name__}"
        ) from error
    held = content if isinstance(content, dict) else {}
    network = held.get("ema", content)
    if not isinstance(network, Persistent):
        raise CheckpointError(f"{str(path)!r} holds no network of EDM under 'ema'")
    state, encoder = network.state, held.get("encoder")
    try:
        positional = dict(
            zip(("img_resolution", "img_channels", "label_dim"), state.get("_init_args") or (), strict=False)
        )
        settings = plain(positional | dict(state.get("_init_kwargs") or {}))
        found = dict(weights(network, itertools.count()))
        if sum(math.prod(value.shape) for value in found.values()) > path.stat().st_size:
            raise ValueError("its weights are more than the file")
        tensors = {name: tensor(value) for name, value in found.items()}
    except Exception as error:  # of a damaged storage whatever torch makes of it
        raise CheckpointError(f"{str(path)!r} is damaged: {error}") from error
    return Network(network.kind, settings, encoder.kind if isinstance(encoder, Persistent) else None, tensors)


def check_sizes(data: Any) -> None:
    """Look for what makes unpickling take more memory than a file has bytes, and go back to its beginning.

    Raises:
        ValueError: a length that is beyond the end, or a place in the memory of objects that none has.
    """
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        stores = operation.name in ("PUT", "BINPUT", "LONG_BINPUT")
        if stores and isinstance(argument, int) and not 0 <= argument <= number:
            raise ValueError(f"object {argument} of {number}")
    data.seek(0)


def plain(value: Any) -> Any:
    """Arguments as JSON has them; raises a TypeError for anything else, a ValueError for too much."""

    def refuse(other: Any) -> None:
        raise TypeError(f"an argument of type {type(other).__name__!r}")

    written = ""
    # Part by part: what a pickle holds once may be in many places, and be more than all memory.
    for part in json.JSONEncoder(default=refuse).iterencode(value):
        written += part
        if len(written) > WRITTEN:
            raise ValueError(f"its arguments are more than {WRITTEN} characters")
    return json.loads(written)


def named(group: Any, visits: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """What a module has under names, but for None; raises a ValueError where `visits` become too many."""
    for name, value in (group or {}).items():
        if next(visits) >= MOST:
            raise ValueError(f"more than {MOST} modules and weights")
        if not isinstance(name, str) or len(name) > LONGEST:
            raise ValueError(f"a module or weight without a name of at most {LONGEST} characters")
        if value is not None:
            yield name, value


def weights(module: Any, visits: Iterator[int], depth: int = 0) -> Iterator[tuple[str, Cut]]:
    """Parameters and buffers of a module and of those within, by their names in a state dict."""
    state = module.state if isinstance(module, Persistent) else module
    if not isinstance(state, Mapping) or depth > DEPTH:
        raise TypeError("a module that is none")
    for group in GROUPS[:2]:
        for name, value in named(state.get(group), visits):
            if not isinstance(value, Cut) or not isinstance(value.storage, Stored):
                raise TypeError(f"a weight of type {type(value).__name__!r}")
            yield name, value
    for name, inner in named(state.get("_modules"), visits):
        yield from ((f"{name}.{key}", value) for key, value in weights(inner, visits, depth + 1))


def tensor(value: Cut) -> Tensor:
    """A tensor by itself; raises a ValueError or RuntimeError for one that lies outside of its storage."""
    # In a pickle torch writes storages in its older format; a zip could be compressed.
    content = raw(value.storage.content)
    if content.startswith(b"PK"):
        raise ValueError("a storage that is a zip")
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    flat = torch.tensor([], dtype=storage.dtype).set_(storage)
    if math.prod(value.shape) > flat.numel():
        raise ValueError(f"a weight of shape {value.shape} in {flat.numel()} numbers")
    return flat.as_strided(value.shape, value.strides, value.offset).clone(
        memory_format=torch.contiguous_format
    )


def convert(source: Path, target: Path) -> Network:
    """Write the network of a pickle as safetensors; raises a CheckpointError as `read`, or an OSError."""
    from safetensors.torch import save_file

    network = read(source)
    about = {"class": network.kind, "settings": network.settings, "encoder": network.encoder}
    save_file(network.state, target, {METADATA: json.dumps(about)})
    return network


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: `edm_convert IN.pkl OUT.safetensors`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m kintsugi.priors.formats.edm_convert",
        description="The network in a pickle of EDM or EDM2 as safetensors, for `prior: {name: edm}`. "
        "Nothing in the pickle is executed.",
    )
    parser.add_argument("source", type=Path, help="such as edm-ffhq-64x64-uncond-vp.pkl")
    parser.add_argument("target", type=Path, help="what to write, such as edm-ffhq.safetensors")
    given = parser.parse_args(arguments)
    if given.target.suffix != ".safetensors":
        parser.error("the target's name must end with .safetensors")
    try:
        network = convert(given.source, given.target)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    count = sum(value.numel() for value in network.state.values())
    print(f"{given.target}: {network.kind} of {count / 1e6:.1f} M numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
