"""The files of a pipeline that diffusers saved: in a folder, or downloaded from the hub into its cache."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kintsugi.checkpoint import CheckpointError, State, read, tensors

CONFIGS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
    *(f"{part}/config.json" for part in ("vae", "vqvae", "transformer")),
    *(f"text_encoder{number}/config.json" for number in ("", "_2", "_3")),
)
"""What is read of a pipeline before its weights are."""
STEM = "diffusion_pytorch_model"
MOST_LAYERS, MOST_NUMBER = 256, 1 << 20
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


def find_weights(
    path: str, revision: str | None, variant: str | None, part: str = "unet", stem: str = STEM
) -> list[Path]:
    """The files of a component's weights, downloaded if need be; raises a CheckpointError for none."""
    for middle in [f".{variant}"] if variant else ["", ".*"]:
        for suffix in FORMATS:
            endings = (f"{middle}.{suffix}", f".{suffix}.index{middle}.json", f"{middle}-*.{suffix}")
            files = [f"{place}{stem}{ending}" for place in (f"{part}/", "") for ending in endings]
            if weights := weight_files(locate(path, revision, files), variant, part, stem):
                return weights
    if variant:
        raise CheckpointError(f"variant: {path!r} has no {stem}.{variant}.safetensors (or .bin)")
    raise CheckpointError(f"path: {path!r} has no {stem}.safetensors (or .bin) for its {part}")


def weight_files(folder: Path, variant: str | None, part: str = "unet", stem: str = STEM) -> list[Path]:
    """The files of a component's weights in a folder, sorted, [] without; several variants are an error."""
    own = component(folder, part)
    if variant or (found := weights_of(own, None, stem)):
        return weights_of(own, variant, stem) if variant else found
    variants = sorted({name for file in own.glob(f"{stem}.*") if (name := variant_of(file, stem))})
    if len(variants) > 1:
        raise CheckpointError(f"variant: {str(own)!r} has several; give {' or '.join(variants)}")
    return weights_of(own, variants[0], stem) if variants else []


def weights_of(own: Path, variant: str | None, stem: str = STEM) -> list[Path]:
    """The files of one variant, None for plain ones."""
    middle = f".{variant}" if variant else ""
    for suffix in FORMATS:
        single = own / f"{stem}{middle}.{suffix}"
        if single.is_file():
            return [single]
        index = own / f"{stem}.{suffix}.index{middle}.json"
        if index.is_file():
            names = read_json(index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise CheckpointError(f"path: {str(index)!r} is damaged (weight_map names no files)")
            return sorted({own / Path(name).name for name in names.values()})
    return []


def variant_of(file: Path, stem: str = STEM) -> str | None:
    """The variant in the name of a file of weights, None of plain ones."""
    formats = "|".join(FORMATS)
    found = re.fullmatch(rf"{stem}\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:{formats})", file.name)
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


def check_sizes(file: str, config: Mapping[str, Any], most: Mapping[str, int]) -> None:
    """Raise a CheckpointError for numbers with which a network or table would be built for ever."""
    for name, limit in most.items():
        value = config.get(name, 1)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise misfit(file, name, value, f"a whole number from 1 to {limit} is expected")


def check_bounds(file: str, config: Mapping[str, Any]) -> None:
    """The same of all whole numbers of a network's configuration, by the names of its fields."""
    for name, value in config.items():
        limit = MOST_LAYERS if re.search("layers|num_.*blocks", name) else MOST_NUMBER
        for number in whole_numbers(value):
            if not -limit <= number <= limit:
                raise misfit(file, name, number, f"at most {limit} is expected")


def whole_numbers(value: Any) -> Iterator[int]:
    """Those in a value of JSON, a list of lists included."""
    if isinstance(value, list):
        for entry in value:
            yield from whole_numbers(entry)
    elif isinstance(value, int):
        yield value
