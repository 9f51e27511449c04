"""Files of weights: opened safely, and refused where they do not fit the network.

A network is built without memory for its weights (`empty`), from the names and shapes in the file; the
file's tensors then become its parameters (`adopt`). Nothing is initialised and nothing copied, so
loading takes the memory of the weights and no more.
"""

import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from kintsugi.cache import remembered
from kintsugi.errors import SpecError

# With ~ expanded, here so that all who are given the path agree on it; pathlib's raises for unknown users.
CheckpointPath = Annotated[Path, AfterValidator(lambda path: Path(os.path.expanduser(path)))]
State = dict[str, Tensor]
N = TypeVar("N", bound=nn.Module)

OTHERS = {
    b"version https://": "a pointer of Git LFS and not the file itself; `git lfs pull` fetches that",
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes; only weights of PyTorch are read",
    b"GGUF": "a GGUF file; only weights in safetensors or torch.save's format are read",
}
"""What files that are no checkpoints begin with, and are."""
PERSISTENCE = "torch_utils.persistence"
"""The module in which EDM and StyleGAN pickle a network with its source code."""
CONVERSION = "python -m kintsugi.priors.formats.edm_convert IN.pkl OUT.safetensors"


class CheckpointError(SpecError):
    """A checkpoint that cannot be used; the message names the file and the key, shape or cause."""


def check_intact(path: Path) -> None:
    """Find bytes that were lost or changed: torch does not look at the checksums in its zip files.

    That a file is intact is `remembered`.

    Raises:
        CheckpointError: damaged; the message names the record.
    """

    def intact(file: BufferedReader) -> str:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                try:
                    damaged = archive.testzip()
                except zipfile.BadZipFile as error:
                    damaged = str(error)
            if damaged is not None:
                raise CheckpointError(f"path: {str(path)!r} is damaged: wrong checksum of {damaged!r}")
        return "intact"

    remembered(path, "intact", intact)


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
        refuse_others(path)
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:  # no mapping: it has `keys`, and is not iterable
                return {key: file.get_tensor(key).to(device) for key in file.keys()}  # noqa: SIM118
        # Files older than the zip format of torch 1.6 cannot be mapped.
        if zipped := zipfile.is_zipfile(path):
            check_stored(path)
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused in the end
            return torch.load(path, map_location=device, mmap=zipped, weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message advises to switch its protection off.
        code = re.search(r"GLOBAL (\S+)", str(error))
        if name := code[1] if code else pickled_code(path):
            edm, todo = "", "save the state dict alone"
            if name.startswith(PERSISTENCE):
                edm = " (a network of EDM or StyleGAN, with its source)"
                todo = f"of EDM, convert it once: {CONVERSION}"
            raise CheckpointError(
                f"path: {str(path)!r} is a pickle that refers to {name!r}{edm}, and only tensors are read, "
                f"never code: {todo}"
            ) from error
        problem = f"is damaged or no checkpoint: it begins with {beginning(path)!r}"
        raise CheckpointError(f"path: {str(path)!r} {problem}") from error
    except Exception as error:  # whatever the readers make of damaged bytes
        cause = str(error).partition(". ")[0] or type(error).__name__
        raise CheckpointError(f"path: {str(path)!r} cannot be read as a checkpoint: {cause}") from error


def check_stored(path: Path) -> None:
    """Refuse a zip that unpacks to more than it is: torch stores its records as they are, and would unpack.

    Raises:
        CheckpointError: a record is compressed, or several lie in the same bytes.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"path: {str(path)!r} is no file of torch.save: {record.filename!r} is compressed"
            )
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(f"path: {str(path)!r} is damaged: its records claim more bytes than it has")


def refuse_others(path: Path) -> None:
    """Raise a CheckpointError that calls by name what is taken for a checkpoint and is none."""
    begins = beginning(path)
    for magic, what in OTHERS.items():
        if begins.startswith(magic):
            raise CheckpointError(f"path: {str(path)!r} is {what}")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            raise CheckpointError(
                f"path: {str(path)!r} is a TorchScript archive, which is code; save the state dict instead"
            )


def pickled_code(path: Path) -> str | None:
    """The first class or function that a bare pickle refers to, found without running it."""
    with path.open("rb") as file:
        start = file.read(1 << 20)
    strings: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(start):
            if operation.name in ("GLOBAL", "INST"):
                return str(argument).replace(" ", ".")
            if operation.name == "STACK_GLOBAL" and len(strings) > 1:
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    except Exception:  # whatever follows is no pickle, or lies beyond what was read
        return None
    return None


def beginning(path: Path) -> bytes:
    """The first 16 bytes of a file, or fewer where it has fewer."""
    with path.open("rb") as file:
        return file.read(16)


def tensors(content: Any, path: Path) -> State:
    """The content of a file as a state dict; raises a CheckpointError if it holds something else."""
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"path: {str(path)!r} holds no state dict but {type(content).__name__!r}")
    size = path.stat().st_size
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"path: {str(path)!r} holds no plain state dict: {key!r} is {type(value).__name__!r}"
            )
        if value.numel() * value.element_size() > size:  # one number repeated a trillion times
            raise CheckpointError(
                f"path: {str(path)!r} is damaged: {key!r} has shape {tuple(value.shape)}, more than the file"
            )
    return {str(key): value.detach() for key, value in content.items()}


def empty(make: Callable[[], N]) -> N:
    """A network whose parameters have shapes but no memory."""
    with torch.device("meta"):
        return make()


def adopt(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Make the tensors of `state` the frozen parameters of an `empty` network, in evaluation mode.

    Networks run in float32: weights that the file keeps in another floating type are converted, and
    only those are copied.

    Raises:
        CheckpointError: keys, types or shapes differ, or a value is not finite; the message names the first.
    """
    if problem := difference(network.state_dict(), state):
        raise CheckpointError(f"path: {str(path)!r} does not fit the network: {problem}")
    weights = {key: tensor.float() for key, tensor in state.items()}
    for key, tensor in weights.items():
        # The extremes of a tensor with NaN are NaN; finding them takes no memory, unlike isfinite.
        if not torch.stack(tensor.aminmax()).isfinite().all():
            raise CheckpointError(f"path: {str(path)!r} is damaged: {key!r} holds NaN or infinity")
    network.load_state_dict(weights, assign=True)
    network.eval().requires_grad_(False)


def difference(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """The first key, shape or type in which a state is not the expected one, in words; None where it is."""
    for key, tensor in expected.items():
        if key not in found:
            return f"no {key!r} of shape {tuple(tensor.shape)}"
        if found[key].shape != tensor.shape:
            return f"{key!r} has shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        if not found[key].is_floating_point():
            return f"{key!r} is of type {found[key].dtype}, expected a floating type"
    for key in found:
        if key not in expected:
            return f"unexpected {key!r} of shape {tuple(found[key].shape)}"
    return None
