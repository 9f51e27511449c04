"""Pipelines saved by diffusers, from a folder or the hub: on pixels here, on latents by `diffusers_latent`.

On pixels it is a `UNet2DModel` and a scheduler.

The scheduler's configuration says how the network was trained: on which path, with which times, and what
its output means; how diffusers would sample does not matter. Nothing of a repository is executed: its
configurations are JSON, its weights tensors, and the classes are diffusers' own.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Annotated, Any

import torch
from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from kintsugi.cache import checksum
from kintsugi.checkpoint import CheckpointError, adopt, difference, empty
from kintsugi.errors import SpecError
from kintsugi.priors.base import Prediction
from kintsugi.priors.classes import Conditional, Conditioning
from kintsugi.priors.formats.diffusers_files import (
    CONFIGS,
    check_sizes,
    component,
    find_weights,
    is_local,
    locate,
    misfit,
    read_json,
    state,
    variant_of,
    weight_files,
)
from kintsugi.priors.formats.diffusers_latent import LatentDescription, LatentPrior, OfSample, Telling
from kintsugi.priors.formats.diffusers_latent import describe as describe_latent
from kintsugi.priors.formats.diffusers_networks import check_unet
from kintsugi.priors.formats.diffusers_pipeline import is_latent
from kintsugi.priors.formats.diffusers_training import SCHEDULERS, Convention, convention_of, scheduler_of

MOST_LAYERS = 64

Variant = Annotated[str, Field(pattern=r"^[\w-]+$")]


@dataclass(frozen=True)
class Description:
    """A saved pipeline, found to fit by its configurations and the names and shapes of its weights.

    Attributes:
        network: a UNet2DModel without memory for its weights.
        scheduler: one of SCHEDULERS.
        conditioning: what the network is told of classes.
    """

    path: str
    revision: str | None
    variant: str | None
    network: Any
    scheduler: Any
    conditioning: Conditioning

    @property
    def classes(self) -> int | None:
        """Number of classes, with one that stands for none; None where the network has none."""
        classes: int | None = self.network.config.num_class_embeds
        return classes

    @property
    def multiple(self) -> int:
        """What the sides of images must be divisible by."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    @property
    def image_channels(self) -> int:
        """Of the images."""
        channels: int = self.network.config.in_channels
        return channels

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def prediction(self) -> Prediction:
        """What x̂₀ is."""
        return self.convention("cpu").prediction

    def convention(self, device: str | torch.device) -> Convention:
        """How the network was trained, with tables on `device`."""
        return convention_of(self.scheduler, device)

    @cached_property
    def weights(self) -> list[FilePath]:
        """The files of the weights; those of a hub model are downloaded where need be."""
        return find_weights(self.path, self.revision, self.variant)

    @property
    def said(self) -> str:
        """That it is no denoiser, its guidance, and the variant of the weights, in words."""
        variant = variant_of(self.weights[0])
        parts = ["a consistency function"] if self.prediction == "endpoint" else []
        parts += [said] if (said := self.conditioning.said) else []
        parts += [f"weights of variant {variant!r}"] if variant else []
        return ", ".join(parts)

    @cached_property
    def files(self) -> tuple[FilePath, ...]:
        """The weights, and the configurations: they decide what the output means."""
        folder = locate(self.path, self.revision, CONFIGS)
        parts = (("unet", "config.json"), ("scheduler", "scheduler_config.json"))
        return (*self.weights, *(component(folder, part) / name for part, name in parts))

    def load(self, device: str | torch.device) -> "DiffusersPrior":
        """The prior, on a device."""
        return DiffusersPrior(self, device)


class DiffusersPrior(Conditional):
    """A network of diffusers as a prior for images (B, C, H, W), H and W divisible by `multiple`.

    Attributes:
        sha256: checksum of the weights and the configurations.
    """

    def __init__(self, description: Description, device: str | torch.device):
        super().__init__(description.classes, description.conditioning)
        convention = description.convention(device)
        self.path, self.parametrization = convention.path, convention.parametrization
        self.prediction, self.output = convention.prediction, convention.output
        weights = description.weights
        self.network: nn.Module = description.network
        adopt(self.network, state(weights), weights[0])
        self.network.to(device)
        self.sha256 = checksum(description.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output(self.evaluate, x, t)

    def evaluate(self, x: Tensor, time: Tensor) -> Tensor:
        """The bare network, guided, less the channels with which it may predict the variance.

        Guidance of the bare outputs is guidance of u, which is affine in them.
        """

        def network(classes: Tensor | None) -> Tensor:
            output: Tensor = self.network(x, time, classes, return_dict=False)[0]
            return output[:, : x.shape[1]]

        return self.conditioned(network, x)


def diffusers_model(
    device: str | torch.device = "cpu",
    *,
    path: str,
    revision: str | None = None,
    variant: Variant | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    prompt: str | OfSample | None = None,
    negative_prompt: str | None = None,
    guidance: FiniteFloat | None = None,
    enlarge: PositiveInt = 1,
) -> DiffusersPrior | LatentPrior:
    """A pipeline saved by diffusers: a `UNet2DModel` on pixels, of any number of channels, or one on latents.

    Args:
        path: a folder, or a hub id such as google/ddpm-ema-celebahq-256, downloaded once into the hub's
            cache.
        revision: branch, tag or commit of a hub model.
        variant: of the weights, such as fp16; otherwise the plain ones, or the only variant.
        label: one class for all images, for class-conditional networks.
        cfg: the scale of classifier-free guidance, by a second evaluation with the class null_label, or with
            the negative prompt; 1: none.
        null_label: the class that stands for none, of networks that were trained with one.
        prompt: for all images, of networks that know prompts; none is "". Or {member: txt}: of each its own,
            in KEY.txt.
        negative_prompt: what cfg leads away from; none is what the pipeline has for none.
        guidance: what a distilled network (LCM, FLUX.1 dev) is told; none is 8.5 for LCM and 3.5 for FLUX.1.
        enlarge: of latents: how many times as large as the job's images the network's images are.

    Raises:
        CheckpointError: it cannot be found, read or used; the message names the file and the field.
        SpecError: a field that the network has no use for, a label that it does not know, or guidance without
            a class that stands for none.
    """
    return describe(
        path=path, revision=revision, variant=variant, label=label, cfg=cfg, null_label=null_label,
        prompt=prompt, negative_prompt=negative_prompt, guidance=guidance, enlarge=enlarge,
    ).load(device)  # fmt: skip


def describe(
    *,
    path: str,
    revision: str | None = None,
    variant: Variant | None = None,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
    null_label: NonNegativeInt | None = None,
    prompt: str | OfSample | None = None,
    negative_prompt: str | None = None,
    guidance: FiniteFloat | None = None,
    enlarge: PositiveInt = 1,
) -> Description | LatentDescription:
    """What a pipeline is, without reading or downloading weights; arguments as for `diffusers_model`.

    Raises:
        CheckpointError: it cannot be found or used; the message names the file and the field.
        SpecError: as for `diffusers_model`.
    """
    conditioning = Conditioning(label, cfg, null_label)
    if is_latent(locate(path, revision, CONFIGS)):
        telling = Telling(conditioning, prompt, negative_prompt, guidance)
        return describe_latent(path, revision, variant, telling, enlarge)
    latent = {"prompt": prompt, "negative_prompt": negative_prompt, "guidance": guidance}
    for field, value in (latent | {"enlarge": None if enlarge == 1 else enlarge}).items():
        if value is not None:
            raise SpecError(f"{field}: is for pipelines on latents; leave the field out")
    return describe_pixels(path, revision, variant, conditioning)


def describe_pixels(
    path: str, revision: str | None, variant: str | None, conditioning: Conditioning
) -> Description:
    """What a pipeline on pixels is; raises as `describe`."""
    from diffusers import UNet2DModel

    folder = locate(path, revision, CONFIGS)
    config, scheduler = components(folder)
    try:
        network = empty(lambda: UNet2DModel.from_config(config))
    except Exception as error:  # whatever the blocks make of settings that do not go together
        raise CheckpointError(f"path: config.json does not make a UNet2DModel ({error})") from error
    check_unet(network, scheduler)
    description = Description(path, revision, variant, network, scheduler, conditioning)
    conditioning.check(description.classes)
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
    if not index and unet.get("_class_name") != "UNet2DModel":
        reason = "a part of a pipeline; give the folder of the whole, with its model_index.json"
        raise misfit("config.json", "_class_name", unet.get("_class_name"), reason)
    config = read_json(component(folder, "scheduler") / "scheduler_config.json")
    check_sizes("config.json", unet, {"layers_per_block": MOST_LAYERS})
    parts: dict[str, Any] = {
        part: ["diffusers", found.get("_class_name")]
        for part, found in (("unet", unet), ("scheduler", config))
    } | index
    understood = {"unet": ["UNet2DModel"], "scheduler": sorted(SCHEDULERS)}
    for part, found in parts.items():
        if found not in (["diffusers", name] for name in understood[part]):
            fitting = ", ".join(understood[part])
            raise misfit("model_index.json or the configuration", part, found, f"of diffusers, {fitting} fit")
    return unet, scheduler_of(config, parts["scheduler"][1])


def listed_components(folder: FilePath) -> dict[str, Any]:
    """The components of a pipeline's index, {} without one; raises a CheckpointError for any others."""
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
