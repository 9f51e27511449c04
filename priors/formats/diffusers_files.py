"""The files of a pipeline that diffusers saved: in a folder, or downloaded from the hub into its cache."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kintsugi.checkpoint import CheckpointError, State, read, tensors

CONFIGS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)
STEM = "diffusion_pytorch_model"
FORMATS = ("safetensors", "bin")
"""The formats of weights, in order of preference."""
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def is_local(path: str) -> bool:
    """Whether a path is a folder of this machine, ~ expanded."""
    return Path(path).expanduser().is_dir()


def locate(path: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of a pipeline, in the cache of the hub with `files`; raises a CheckpointError if none."""
    if is_local(path):
        if revision is not None:
            raise CheckpointError(f"revision: {path!r} is a folder; revisions are for models of the hub")
        return Path(path).expanduser()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise CheckpointError(f"path: no folder {path!r}, and no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the network, the hub or its cache
        raise CheckpointError(
            f"path: no folder {path!r}, and the hub does not give it ({type(error).__name__}); without a "
            f"network, first run `hf download {path}` where there is one, or give a folder"
        ) from error


def component(folder: Path, name: str) -> Path:
    """Where a component lies: in a folder of its own, or beside the index, as in the first hub models."""
    own = folder / name
    return own if own.is_dir() else folder


def find_weights(path: str, revision: str | None, variant: str | None) -> list[Path]:
    """The files of the UNet's weights, downloaded if need be; raises a CheckpointError for none."""
    for middle in [f".{variant}"] if variant else ["", ".*"]:
        for suffix in FORMATS:
            endings = (f"{middle}.{suffix}", f".{suffix}.index{middle}.json", f"{middle}-*.{suffix}")
            files = [f"{part}{STEM}{ending}" for part in ("unet/", "") for ending in endings]
            if weights := weight_files(locate(path, revision, files), variant):
                return weights
    if variant:
        raise CheckpointError(f"variant: {path!r} has no {STEM}.{variant}.safetensors (or .bin)")
    raise CheckpointError(f"path: {path!r} has no {STEM}.safetensors (or .bin) for its unet")


def weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of the UNet's weights in a folder, sorted, [] without; several variants are an error."""
    unet = component(folder, "unet")
    if variant or (found := weights_of(unet, None)):
        return weights_of(unet, variant) if variant else found
    variants = sorted({name for file in unet.glob(f"{STEM}.*") if (name := variant_of(file))})
    if len(variants) > 1:
        raise CheckpointError(f"variant: {str(unet)!r} has several; give {' or '.join(variants)}")
    return weights_of(unet, variants[0]) if variants else []


def weights_of(unet: Path, variant: str | None) -> list[Path]:
    """The files of one variant, None for plain ones."""
    middle = f".{variant}" if variant else ""
    for suffix in FORMATS:
        single = unet / f"{STEM}{middle}.{suffix}"
        if single.is_file():
            return [single]
        index = unet / f"{STEM}.{suffix}.index{middle}.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise CheckpointError(f"path: {str(index)!r} is damaged (weight_map names no files)")
            return sorted({unet / Path(name).name for name in names.values()})
    return []


def variant_of(file: Path) -> str | None:
    """The variant in the name of a file of weights, None of plain ones."""
    formats = "|".join(FORMATS)
    found = re.fullmatch(rf"{STEM}\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:{formats})", file.name)
    return found[1] if found else None


def state(weights: Sequence[Path], device: str = "cpu") -> State:
    """The weights in all files, under the names that today's diffusers has for them."""
    return {
        current_name(key): tensor
        for file in weights
        for key, tensor in tensors(read(file, device), file).items()
    }


def current_name(key: str) -> str:
    """Attention layers and the Fourier embedding had other names when the first hub models were saved.

    Source: ModelMixin._fix_state_dict_keys_on_load; GaussianFourierProjection's set_W_to_weight.
    """
    if key == "time_proj.W":
        return "time_proj.weight"
    old = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.(weight|bias)$)")
    return old.sub(lambda match: ATTENTION_NAMES[match[0]], key)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; raises a CheckpointError if there is none."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"path: no {file.name} in {str(file.parent)!r}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"path: {str(file)!r} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"path: {str(file)!r} is damaged (no JSON object)")
    return content


def misfit(file: str, field: str, value: object, reason: str) -> CheckpointError:
    """The error for a field of a configuration that is not understood; it names file, field and value."""
    return CheckpointError(f"path: {file} has {field} {value!r}; {reason}")
