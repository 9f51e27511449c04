"""The components of a pipeline on latents, as its model_index.json names them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from kintsugi.checkpoint import CheckpointError, difference, empty
from kintsugi.priors.formats.diffusers_autoencoder import AUTOENCODERS
from kintsugi.priors.formats.diffusers_files import (
    CONFIGS,
    STEM,
    check_bounds,
    check_sizes,
    find_weights,
    is_local,
    locate,
    misfit,
    read_json,
    state,
    weight_files,
)
from kintsugi.priors.formats.diffusers_networks import NETWORKS, LatentNetwork
from kintsugi.priors.formats.diffusers_prompts import TOKENIZERS, TextEncoder, check_widths
from kintsugi.priors.formats.diffusers_training import SCHEDULERS, scheduler_of, score_ve

ROLES = {"network": ("unet", "transformer"), "autoencoder": ("vae", "vqvae")}
"""What the components may be called."""
NUMBERS = ("", "_2", "_3")
IDLE = ("safety_checker", "feature_extractor", "image_encoder")
"""Components that change nothing where neither pictures are prompts nor outputs are censored."""
KINDS = {
    "video": "3D|Video|Wan|LTX|Hunyuan|Mochi|Motion|Temporal|Allegro|Cosmos",
    "audio": "Audio|Music|Vocoder",
    "control": "ControlNet|Adapter",
}


@dataclass(frozen=True)
class Parts:
    """A pipeline's components.

    Attributes:
        names: of network and autoencoder, what they are called. classes: of each component, its class.
        configs: all configurations that were read. scheduler: one of SCHEDULERS.
        zeros: whether, without a negative prompt, guidance leads away from zeros.
    """

    path: str
    revision: str | None
    variant: str | None
    names: Mapping[str, str]
    classes: Mapping[str, str]
    configs: Sequence[FilePath]
    scheduler: Any
    zeros: bool

    @property
    def folder(self) -> FilePath:
        """Where the configurations are."""
        return self.configs[0].parent

    def config(self, name: str) -> dict[str, Any]:
        """A component's configuration, within bounds."""
        config = read_json(self.folder / name / "config.json")
        check_bounds(f"{name}/config.json", config)
        if "quantization_config" in config:
            reason = "quantised weights are not read; take the pipeline with those that they were made from"
            raise misfit(f"{name}/config.json", "quantization_config", config["quantization_config"], reason)
        return config

    def empty(self, role: str) -> Any:
        """The network or the autoencoder, without memory for its weights."""
        import diffusers

        name = self.names[role]
        config, kind = self.config(name), self.classes[name]
        if kind == "AutoencoderTiny":
            config.pop("block_out_channels", None)  # which diffusers writes, and then warns of
        if kind == "VQModel":
            # Those saved before diffusers had the field are of LDM, which does not scale what it quantises;
            # today's default is that of Stable Diffusion (CompVis/ldm-celebahq-256, its pull request 5).
            config.setdefault("scaling_factor", 1.0)
        try:
            return empty(lambda: getattr(diffusers, kind).from_config(config))
        except Exception as error:  # whatever the blocks make of settings that do not go together
            raise CheckpointError(f"path: {name}/config.json does not make a {kind} ({error})") from error

    def network(self, factor: int) -> LatentNetwork:
        """The network, `empty`, for latents of 1/factor of the sides of images."""
        name = self.names["network"]
        kind = NETWORKS[self.classes[name]]
        check_sizes(f"{name}/config.json", self.config(name), kind.most)
        return kind(self.empty("network"), factor)

    def weights(self, name: str, stem: str = STEM) -> list[FilePath]:
        """The files of a component's weights, downloaded if need be: of the variant where it has that."""
        try:
            return find_weights(self.path, self.revision, self.variant, name, stem)
        except CheckpointError:
            if not self.variant or name == self.names["network"]:
                raise
            return find_weights(self.path, self.revision, None, name, stem)

    def check_weights(self, role: str, module: Any) -> None:
        """Raise a CheckpointError for weights that do not fit, as far as they are on this machine."""
        name = self.names[role]
        here = is_local(self.path)
        weights = self.weights(name) if here else weight_files(self.folder, self.variant, name)
        if weights and (problem := difference(module.state_dict(), state(weights, "meta"))):
            raise CheckpointError(f"path: {str(weights[0])!r} does not fit config.json: {problem}")

    def check_text(self, expected: Sequence[str], network: LatentNetwork) -> None:
        """Raise a CheckpointError for encoders of prompts that are missing or not those of the network."""
        configs: list[dict[str, Any] | None] = []
        for number, kind in zip(NUMBERS, expected, strict=False):
            name, tokenizer = f"text_encoder{number}", f"tokenizer{number}"
            if kind == "T5EncoderModel" and number == "_3" and name not in self.classes:
                configs.append(None)
                continue
            for part, fitting in ((name, [kind]), (tokenizer, TOKENIZERS)):
                if self.classes.get(part) not in fitting:
                    reason = f"of transformers, {' or '.join(fitting)} fits"
                    raise misfit("model_index.json", part, self.classes.get(part), reason)
            configs.append(self.config(name))
        check_widths(network.text or "", configs, network.sizes())

    def text_encoders(self, expected: Sequence[str]) -> list[TextEncoder | None]:
        """The encoders of prompts, with their files, downloaded if need be."""
        found: list[TextEncoder | None] = []
        for number, kind in zip(NUMBERS, expected, strict=False):
            name, tokenizer = f"text_encoder{number}", f"tokenizer{number}"
            if name not in self.classes:
                found.append(None)
                continue
            folder = locate(self.path, self.revision, [f"{tokenizer}/*"]) / tokenizer
            if not folder.is_dir():
                raise CheckpointError(f"path: no {tokenizer} in {str(folder.parent)!r}")
            weights = self.weights(name, "model")
            found.append(TextEncoder(kind, self.classes[tokenizer], self.config(name), weights, folder))
        return found


def is_latent(folder: FilePath) -> bool:
    """Whether a folder's index names what pipelines on pixels do not have."""
    index = listed(folder)
    others = index.keys() & {*ROLES["autoencoder"], "movq", "transformer", "text_encoder", "controlnet"}
    return bool(others) or index.get("unet") == ["diffusers", "UNet2DConditionModel"]


def listed(folder: FilePath) -> dict[str, Any]:
    """The components in an index, {} without one."""
    file = folder / "model_index.json"
    index = read_json(file) if file.is_file() else {}
    return {
        name: value
        for name, value in index.items()
        if name[:1] != "_" and isinstance(value, list) and value != [None, None]
    }


def parts_of(path: str, revision: str | None, variant: str | None) -> Parts:
    """The components of a pipeline on latents.

    Raises:
        CheckpointError: it has others, or lacks one; the message names the component, its class and the fix.
    """
    folder = locate(path, revision, CONFIGS)
    index = listed(folder)
    names = {role: next((name for name in called if name in index), None) for role, called in ROLES.items()}
    network, autoencoder = names["network"], names["autoencoder"]
    if network is None:
        raise misfit("model_index.json", "unet or transformer", None, f"{' or '.join(NETWORKS)} is expected")
    check_class(network, index[network], tuple(NETWORKS))
    texts = [f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in NUMBERS]
    if others := sorted(index.keys() - {network, autoencoder, "scheduler", *texts, *IDLE}):
        reason = f"{kind_of(index[others[0]])}; a pipeline without it fits"
        raise misfit("model_index.json", others[0], index[others[0]], reason)
    if autoencoder is None:
        reason = f"a {index[network][1]} on pixels is not read; {', '.join(AUTOENCODERS)} are understood"
        raise misfit("model_index.json", "vae", None, reason)
    check_class(autoencoder, index[autoencoder], AUTOENCODERS)
    # On [0, 1], as of pixels, latents are not.
    fitting = tuple(sorted(name for name, convention in SCHEDULERS.items() if convention is not score_ve))
    check_class("scheduler", index.get("scheduler"), fitting)
    classes = {name: str((value or [None])[-1]) for name, value in index.items()}
    scheduler = folder / "scheduler" / "scheduler_config.json"
    encoders = [name for name in texts[:3] if name in index]
    settings = read_json(folder / "model_index.json")
    if settings.get("requires_aesthetics_score"):
        reason = "it is SDXL's refiner, trained on the end of the path only; the base fits"
        raise misfit("model_index.json", "requires_aesthetics_score", True, reason)
    return Parts(
        path,
        revision,
        variant,
        {"network": network, "autoencoder": autoencoder},
        classes,
        [
            folder / "model_index.json",
            scheduler,
            *(folder / name / "config.json" for name in (network, autoencoder, *encoders)),
        ],
        scheduler_of(read_json(scheduler), classes["scheduler"]),
        settings.get("force_zeros_for_empty_prompt") is not False,
    )


def check_class(name: str, found: Any, fitting: Sequence[str]) -> None:
    """Raise a CheckpointError for a component of another class."""
    if found not in (["diffusers", one] for one in fitting):
        raise misfit("model_index.json", name, found, f"{kind_of(found)}; {', '.join(fitting)} are read")


def kind_of(found: Any) -> str:
    """What a component is for, by its class."""
    name = str(found[-1]) if isinstance(found, list) and found else ""
    kinds = [kind for kind, pattern in KINDS.items() if re.search(pattern, name)]
    return f"it is for {kinds[0]}" if kinds else "it is not understood"
