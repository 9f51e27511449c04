"""Unconditional pipelines saved by diffusers, a `UNet2DModel` and a scheduler, from a folder or the hub.

The scheduler's configuration says how the network was trained: on which path, with which times, and what
its output means; how diffusers would sample does not matter. Nothing of a repository is executed: its
configurations are JSON, its weights tensors, and the classes are diffusers' own.

Diffusion networks are given as ε-prediction, whatever they predict: guidance is absorbed by the conjugate
integrator through p, which is 0 for x̂₀-prediction, and v and EDM's outputs become ε without a division.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kintsugi.priors.base import Parametrization
from kintsugi.priors.checkpoint import (
    CheckpointError,
    State,
    adopt,
    checksum,
    difference,
    empty,
    read,
    tensors,
)
from kintsugi.priors.paths import DDPM, Path, RectifiedFlow, VarianceExploding, VariancePreserving

CHANNELS = 3
CONFIGS = (
    "model_index.json",
    "config.json",
    "scheduler_config.json",
    "unet/config.json",
    "scheduler/scheduler_config.json",
)
MOST_LAYERS, MOST_LABELS = 64, 100_000
STEM = "diffusion_pytorch_model"
FORMATS = ("safetensors", "bin")
"""The formats of weights, in order of preference."""
ATTENTION_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

T = TypeVar("T")
Variant = Annotated[str, Field(pattern=r"^[\w-]+$")]

Network = Callable[[Tensor, Tensor], Tensor]
"""The bare network: images (B, 3, H, W) and the times (B,) it was trained with → (B, 3, H, W)."""


@dataclass(frozen=True)
class Convention:
    """How a network was trained: its path, and the prior's u from the bare network at x, t."""

    path: Path
    parametrization: Parametrization
    output: Callable[[Network, Tensor, Tensor], Tensor]


def labelled(scheduler: Any, device: str | torch.device) -> Convention:
    """Trained with DDPM's labels on any betas, to predict ε, x₀, or v = a ε − s x₀ (2202.00512).

    The conversions are those of DDIMScheduler.step; the schedulers that divide the state by a multiply it
    by a again before the network.
    """
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if scheduler.config.get("use_flow_sigmas") and prediction == "flow_prediction":
        return flow(scheduler, device)
    for setting, expected in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
        if (value := scheduler.config.get(setting, expected)) != expected:
            raise misfit("scheduler_config.json", setting, value, f"with prediction_type {prediction!r}")
    # With rescale_betas_zero_snr the last label is pure noise, where no ε gives x̂₀.
    betas = scheduler.betas[:-1] if (scheduler.betas[-1:] == 1).any() else scheduler.betas
    if len(betas) < 2:
        raise CheckpointError("path: scheduler_config.json has fewer than two betas (num_train_timesteps)")
    if not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError("path: scheduler_config.json has betas outside 0 to 1 (trained_betas)")
    table = DDPM(betas=betas.to(device))

    def levels(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return column(table.a(t.double()), x), column(table.s(t.double()), x)

    def from_epsilon(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, t)

    def from_v(network: Network, x: Tensor, t: Tensor) -> Tensor:
        a, s = levels(x, t)
        return a * network(x, t) + s * x

    def from_sample(network: Network, x: Tensor, t: Tensor) -> Tensor:
        a, s = levels(x, t)
        return (x - a * network(x, t)) / s

    outputs = {"epsilon": from_epsilon, "v_prediction": from_v, "sample": from_sample}
    return Convention(DDPM(betas=betas), "eps", choose(outputs, prediction))


def score_vp(scheduler: Any, device: str | torch.device) -> Convention:
    """Continuous VP: the network predicts ε (ScoreSdeVpScheduler.step_pred) and sees 999 t.

    The factor is not in the scheduler; it is that of score_sde for continuous training (2011.13456).
    """
    config = scheduler.config

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, 999 * t)

    return Convention(VariancePreserving(config.beta_min, config.beta_max), "eps", output)


def score_ve(scheduler: Any, device: str | torch.device) -> Convention:
    """VE: the network gives the score and sees σ, for images in [0, 1] (ScoreSdeVePipeline).

    On [-1, 1] the noise is twice as strong; the conversion is that of KarrasVePipeline, 2206.00364,
    equation 213. Below sigma_min the network is asked for the score at sigma_min.
    """
    config = scheduler.config

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        sigma = t / 2
        return -column(sigma, x) * network((x + 1) / 2, sigma.clamp(min=config.sigma_min))

    return Convention(VarianceExploding(2 * config.sigma_max), "eps", output)


def edm(scheduler: Any, device: str | torch.device) -> Convention:
    """EDM's preconditioning: x̂₀ = c_skip x + c_out F(c_in x, log σ / 4) (EDMEulerScheduler; 2206.00364)."""
    config = scheduler.config
    data = config.sigma_data
    sign = choose({"epsilon": -1.0, "v_prediction": 1.0}, config.prediction_type)

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        norm = torch.sqrt(t**2 + data**2)
        inside = network(column(1 / norm, x) * x, t.log() / 4)
        return column(t / norm**2, x) * x + column(sign * data / norm, x) * inside

    return Convention(VarianceExploding(config.sigma_max), "eps", output)


def flow(scheduler: Any, device: str | torch.device) -> Convention:
    """Flow matching: x = (1 − σ) x₀ + σ z, the network gives z − x₀ and sees σ times the number of steps.

    FlowMatchEulerDiscreteScheduler; shifts of its timesteps move where it samples, not what they mean.
    """
    if scheduler.config.get("invert_sigmas"):
        raise misfit("scheduler_config.json", "invert_sigmas", True, "only σ = 1 at noise is understood")
    steps = scheduler.config.num_train_timesteps

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return -network(x, steps * (1 - t))

    return Convention(RectifiedFlow(), "v", output)


SCHEDULERS: Mapping[str, Callable[[Any, str | torch.device], Convention]] = {
    "DDIMParallelScheduler": labelled,
    "DDIMScheduler": labelled,
    "DDPMParallelScheduler": labelled,
    "DDPMScheduler": labelled,
    "DEISMultistepScheduler": labelled,
    "DPMSolverMultistepScheduler": labelled,
    "DPMSolverSinglestepScheduler": labelled,
    "EDMDPMSolverMultistepScheduler": edm,
    "EDMEulerScheduler": edm,
    "EulerAncestralDiscreteScheduler": labelled,
    "EulerDiscreteScheduler": labelled,
    "FlowMatchEulerDiscreteScheduler": flow,
    "FlowMatchHeunDiscreteScheduler": flow,
    "HeunDiscreteScheduler": labelled,
    "KDPM2AncestralDiscreteScheduler": labelled,
    "KDPM2DiscreteScheduler": labelled,
    "LMSDiscreteScheduler": labelled,
    "PNDMScheduler": labelled,
    "SASolverScheduler": labelled,
    "ScoreSdeVeScheduler": score_ve,
    "ScoreSdeVpScheduler": score_vp,
    "UniPCMultistepScheduler": labelled,
}
"""What each scheduler's configuration says of the training."""


@dataclass(frozen=True)
class Description:
    """A saved pipeline, found to fit by its configurations and the names and shapes of its weights.

    Attributes:
        network: a UNet2DModel without memory for its weights.
        scheduler: one of SCHEDULERS.
    """

    path: str
    revision: str | None
    variant: str | None
    network: Any
    scheduler: Any

    @property
    def multiple(self) -> int:
        """What the sides of images must be divisible by."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def convention(self, device: str | torch.device) -> Convention:
        """How the network was trained, with tables on `device`."""
        return SCHEDULERS[type(self.scheduler).__name__](self.scheduler, device)

    @cached_property
    def weights(self) -> list[FilePath]:
        """The files of the weights; those of a hub model are downloaded where need be."""
        return find_weights(self.path, self.revision, self.variant)

    @property
    def said(self) -> str:
        """The variant of the weights, in words; nothing of plain ones."""
        variant = variant_of(self.weights[0])
        return f"weights of variant {variant!r}" if variant else ""

    @cached_property
    def files(self) -> tuple[FilePath, ...]:
        """The weights, and the configurations: they decide what the output means."""
        folder = locate(self.path, self.revision, CONFIGS)
        parts = (("unet", "config.json"), ("scheduler", "scheduler_config.json"))
        return (*self.weights, *(component(folder, part) / name for part, name in parts))


class DiffusersPrior:
    """A network of diffusers as a prior for images (B, 3, H, W), H and W divisible by `multiple`.

    Attributes:
        sha256: checksum of the weights and the configurations.
    """

    def __init__(self, description: Description, device: str | torch.device):
        convention = description.convention(device)
        self.path, self.parametrization = convention.path, convention.parametrization
        self.output = convention.output
        weights = description.weights
        self.network: nn.Module = description.network
        adopt(self.network, state(weights), weights[0])
        self.network.to(device)
        self.sha256 = checksum(description.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output(self.evaluate, x, t)

    def evaluate(self, x: Tensor, time: Tensor) -> Tensor:
        """The bare network, less the channels with which it may predict the variance."""
        output: Tensor = self.network(x, time, return_dict=False)[0]
        return output[:, :CHANNELS]


def diffusers_model(
    device: str | torch.device = "cpu",
    *,
    path: str,
    revision: str | None = None,
    variant: Variant | None = None,
) -> DiffusersPrior:
    """Any unconditional `UNet2DModel` pipeline for RGB images saved by diffusers.

    Args:
        path: a folder, or a hub id such as google/ddpm-ema-celebahq-256, downloaded once into the hub's
            cache.
        revision: branch, tag or commit of a hub model.
        variant: of the weights, such as fp16; otherwise the plain ones, or the only variant.

    Raises:
        CheckpointError: it cannot be found, read or used; the message names the file and the field.
    """
    return DiffusersPrior(describe(path=path, revision=revision, variant=variant), device)


def describe(*, path: str, revision: str | None = None, variant: Variant | None = None) -> Description:
    """What a pipeline is, without reading or downloading weights; arguments as for `diffusers_model`.

    Raises:
        CheckpointError: it cannot be found or used; the message names the file and the field.
    """
    from diffusers import UNet2DModel

    folder = locate(path, revision, CONFIGS)
    config, scheduler = components(folder)
    try:
        network = empty(lambda: UNet2DModel.from_config(config))
    except Exception as error:  # whatever the blocks make of settings that do not go together
        raise CheckpointError(f"path: config.json does not make a UNet2DModel ({error})") from error
    check_network(network, scheduler)
    description = Description(path, revision, variant, network, scheduler)
    try:
        description.convention("cpu")
    except CheckpointError:
        raise
    except Exception as error:  # whatever settings of other types lead to
        raise CheckpointError(
            f"path: scheduler_config.json does not say how the network was trained ({error})"
        ) from error
    # Of a hub model what lies in the cache, which may be nothing yet.
    weights = description.weights if is_local(path) else weight_files(folder, variant)
    if weights and (problem := difference(network.state_dict(), state(weights, "meta"))):
        raise CheckpointError(f"path: {str(weights[0])!r} does not fit config.json: {problem}")
    return description


def components(folder: FilePath) -> tuple[dict[str, Any], Any]:
    """The UNet's configuration, and the scheduler.

    Raises:
        CheckpointError: other components than these two, or classes that are not understood.
    """
    # Without an index the folder holds these two, and their configurations name the classes.
    index = listed_components(folder)
    unet = read_json(component(folder, "unet") / "config.json")
    if "_class_name" not in unet and "model_type" in unet:
        raise misfit("config.json", "model_type", unet["model_type"], "a model of transformers, no diffusion")
    config = read_json(component(folder, "scheduler") / "scheduler_config.json")
    check_sizes("config.json", unet, {"layers_per_block": MOST_LAYERS})
    check_sizes("scheduler_config.json", config, {"num_train_timesteps": MOST_LABELS})
    if config.get("predict_epsilon") is False:  # diffusers before 0.9
        config.setdefault("prediction_type", "sample")
    parts: dict[str, Any] = {
        part: ["diffusers", found.get("_class_name")]
        for part, found in (("unet", unet), ("scheduler", config))
    } | index
    understood = {"unet": ["UNet2DModel"], "scheduler": list(SCHEDULERS)}
    for part, found in parts.items():
        if found not in (["diffusers", name] for name in understood[part]):
            fitting = ", ".join(understood[part])
            raise misfit("model_index.json or the configuration", part, found, f"of diffusers, {fitting} fit")
    name = parts["scheduler"][1]
    try:
        return unet, scheduler_class(name).from_config(config)
    except Exception as error:  # whatever a scheduler makes of its settings
        raise CheckpointError(f"path: scheduler_config.json does not make a {name} ({error})") from error


def check_sizes(file: str, config: Mapping[str, Any], most: Mapping[str, int]) -> None:
    """Refuse numbers with which a network or a table would be built for ever.

    Raises:
        CheckpointError: not a whole number from 1 to the most; the message names the field.
    """
    for name, limit in most.items():
        value = config.get(name, 1)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise misfit(file, name, value, f"a whole number from 1 to {limit} is expected")


def listed_components(folder: FilePath) -> dict[str, Any]:
    """The components of a pipeline's index, {} where there is none.

    Raises:
        CheckpointError: others than a unet and a scheduler, such as the transformer or the vae of latents.
    """
    if not (folder / "model_index.json").is_file():
        return {}
    index = read_json(folder / "model_index.json")
    parts = {key: value for key, value in index.items() if key[:1] != "_" and value != [None, None]}
    if others := sorted(parts.keys() - {"unet", "scheduler"}):
        first = next((part for part in others if part == "transformer"), others[0])
        kind = f"it is {index.get('_class_name')!r} with {', '.join(others)}"
        raise misfit(
            "model_index.json", first, parts[first], f"{kind}; only a unet and a scheduler, on pixels, fit"
        )
    return parts


def scheduler_class(name: str) -> Any:
    """The class of diffusers with this name."""
    if name == "ScoreSdeVpScheduler":
        # Elsewhere diffusers offers it only where transformers is installed.
        from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

        return ScoreSdeVpScheduler
    import diffusers.schedulers

    return getattr(diffusers.schedulers, name)


def check_network(network: Any, scheduler: Any) -> None:
    """Refuse networks for other images, with other inputs, or with times that the scheduler does not give.

    Raises:
        CheckpointError: the message names the field of config.json.
    """
    config = network.config
    learned_variance = str(scheduler.config.get("variance_type")).startswith("learned")
    embeddings = ["positional"]
    if SCHEDULERS[type(scheduler).__name__] is score_ve:
        # It takes the logarithm of the time and divides by it: a noise level, never 0 or negative.
        embeddings.append("fourier")
    problems = {
        "in_channels": config.in_channels != CHANNELS and "images must be RGB, 3 channels",
        "out_channels": config.out_channels
        not in ([CHANNELS, 2 * CHANNELS] if learned_variance else [CHANNELS])
        and "3 channels are expected, or 6 with a learned variance_type",
        "num_class_embeds": config.num_class_embeds is not None and "the network must be unconditional",
        "class_embed_type": config.class_embed_type is not None and "the network must be unconditional",
        "time_embedding_type": config.time_embedding_type not in embeddings
        and f"{type(scheduler).__name__} needs {' or '.join(embeddings)}",
        "down_block_types": next(network.buffers(), None) is not None
        and "blocks with fixed filters do not load",
    }
    for field, problem in problems.items():
        if problem:
            raise misfit("config.json", field, config[field], problem)


def misfit(file: str, field: str, value: object, reason: str) -> CheckpointError:
    """The error for a field of a configuration that is not understood; it names file, field and value."""
    return CheckpointError(f"path: {file} has {field} {value!r}; {reason}")


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) per image → (B, 1, 1, 1), of the type of x."""
    return values.to(x.dtype).view(-1, 1, 1, 1)


def choose(outputs: Mapping[str, T], prediction: str) -> T:
    """What stands for a kind of prediction.

    Raises:
        CheckpointError: none does; the message names those that are understood.
    """
    if prediction not in outputs:
        fitting = ", ".join(outputs)
        raise misfit("scheduler_config.json", "prediction_type", prediction, f"{fitting} are understood")
    return outputs[prediction]


# Files.


def is_local(path: str) -> bool:
    """Whether a path is a folder of this machine, ~ expanded."""
    return FilePath(path).expanduser().is_dir()


def locate(path: str, revision: str | None, files: Sequence[str]) -> FilePath:
    """The folder of a pipeline; that of a hub model in the hub's cache, with `files` in it.

    Raises:
        CheckpointError: neither a folder nor a hub model within reach.
    """
    if is_local(path):
        if revision is not None:
            raise CheckpointError(f"revision: {path!r} is a folder; revisions are for models of the hub")
        return FilePath(path).expanduser()
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path):
        raise CheckpointError(f"path: no folder {path!r}, and no hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return FilePath(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the network, the hub or its cache
        raise CheckpointError(
            f"path: no folder {path!r}, and the hub does not give it ({type(error).__name__}); without a "
            f"network, first run `hf download {path}` where there is one, or give a folder"
        ) from error


def component(folder: FilePath, name: str) -> FilePath:
    """Where a component lies: in a folder of its own, or beside the index, as in the first hub models."""
    own = folder / name
    return own if own.is_dir() else folder


def find_weights(path: str, revision: str | None, variant: str | None) -> list[FilePath]:
    """The files of the UNet's weights, downloaded where need be.

    Raises:
        CheckpointError: there are none, or several variants of which none is asked for.
    """
    for middle in [f".{variant}"] if variant else ["", ".*"]:
        for suffix in FORMATS:
            endings = (f"{middle}.{suffix}", f".{suffix}.index{middle}.json", f"{middle}-*.{suffix}")
            files = [f"{part}{STEM}{ending}" for part in ("unet/", "") for ending in endings]
            if weights := weight_files(locate(path, revision, files), variant):
                return weights
    if variant:
        raise CheckpointError(f"variant: {path!r} has no {STEM}.{variant}.safetensors (or .bin)")
    raise CheckpointError(f"path: {path!r} has no {STEM}.safetensors (or .bin) for its unet")


def weight_files(folder: FilePath, variant: str | None) -> list[FilePath]:
    """The files of the UNet's weights in the folder of a pipeline, in order of name; [] where there are none.

    Raises:
        CheckpointError: several variants, of which none is asked for.
    """
    unet = component(folder, "unet")
    if variant or (found := weights_of(unet, None)):
        return weights_of(unet, variant) if variant else found
    variants = sorted({name for file in unet.glob(f"{STEM}.*") if (name := variant_of(file))})
    if len(variants) > 1:
        raise CheckpointError(f"variant: {str(unet)!r} has several; give {' or '.join(variants)}")
    return weights_of(unet, variants[0]) if variants else []


def weights_of(unet: FilePath, variant: str | None) -> list[FilePath]:
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
            return sorted({unet / FilePath(name).name for name in names.values()})
    return []


def variant_of(file: FilePath) -> str | None:
    """The variant in the name of a file of weights, None of plain ones."""
    formats = "|".join(FORMATS)
    found = re.fullmatch(rf"{STEM}\.([\w-]+?)(?:-\d+-of-\d+)?\.(?:{formats})", file.name)
    return found[1] if found else None


def state(weights: Sequence[FilePath], device: str = "cpu") -> State:
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


def read_json(file: FilePath) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no such file, or damaged.
    """
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"path: no {file.name} in {str(file.parent)!r}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"path: {str(file)!r} is damaged ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"path: {str(file)!r} is damaged (no JSON object)")
    return content
