"""Checkpoint files: opened safely, described by their shapes, and refused where they do not fit.

A network is built without memory for its weights (`empty`), from the names and shapes in the file; the
file's tensors then become its parameters (`adopt`). Nothing is initialised and nothing copied, so
loading takes the memory of the weights and no more.
"""

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from operators.registry import SpecError

State = dict[str, Tensor]
N = TypeVar("N", bound=nn.Module)


class CheckpointError(SpecError):
    """A checkpoint that cannot be used; the message names the file and the key, shape or cause."""


def sha256(path: Path) -> str:
    """Checksum of a file, hexadecimal; reads it in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read(path: Path, device: str = "cpu") -> Any:
    """The content of a checkpoint: safetensors, or torch.save's format without any code.

    Tensors stay in the file until they are used, where its format allows (mapped memory); with device
    "meta" only names, types and shapes are read.

    Raises:
        CheckpointError: no such file, damaged, or a pickle with more in it than tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"path: no file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                if device == "meta":
                    return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        # Files older than the zip format of torch 1.6 cannot be mapped.
        return torch.load(path, map_location=device, mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"path: {str(path)!r} holds more than tensors, or is damaged, and is not opened "
            f"({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # whatever the readers make of damaged bytes
        raise CheckpointError(f"path: {str(path)!r} cannot be read as a checkpoint ({error})") from error


def empty(make: Callable[[], N]) -> N:
    """A network whose parameters have shapes but no memory."""
    with torch.device("meta"):
        return make()


def adopt(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Make the tensors of `state` the frozen parameters of an `empty` network, in evaluation mode.

    Raises:
        CheckpointError: keys or shapes differ; the message names the first of them.
    """
    expected = network.state_dict()
    if problem := difference(expected, state):
        raise CheckpointError(f"path: {str(path)!r} does not fit the network: {problem}")
    network.load_state_dict(dict(state), assign=True)
    network.eval().requires_grad_(False)


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first key or shape in which two states differ, in words; None where they agree."""
    for key, tensor in expected.items():
        if key not in found:
            return f"no {key!r} of shape {tuple(tensor.shape)}"
        if found[key].shape != tensor.shape:
            return f"{key!r} has shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
    for key in found:
        if key not in expected:
            return f"unexpected {key!r} of shape {tuple(found[key].shape)}"
    return None
