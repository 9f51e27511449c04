"""Pipelines on latents saved by diffusers: a network, an autoencoder, a scheduler and text encoders.

Which pipeline it is, its model_index.json says. As on pixels nothing of a repository is executed, and how
diffusers would sample does not matter. Safety checkers are not loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path as FilePath
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from kintsugi.cache import checksum
from kintsugi.checkpoint import CheckpointError, adopt
from kintsugi.errors import SpecError
from kintsugi.priors.base import Prediction
from kintsugi.priors.classes import Conditional, Conditioning, guided
from kintsugi.priors.formats.diffusers_autoencoder import LatentAutoencoder
from kintsugi.priors.formats.diffusers_files import state, variant_of
from kintsugi.priors.formats.diffusers_networks import LatentNetwork, fill_positions
from kintsugi.priors.formats.diffusers_pipeline import Parts, parts_of
from kintsugi.priors.formats.diffusers_prompts import PARTS, embed, library
from kintsugi.priors.formats.diffusers_training import Convention, convention_of


class OfSample(BaseModel):
    """A prompt of each sample's own, in a file beside it: KEY.txt is the member "txt"."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    member: Annotated[str, Field(pattern=r"^([^/.][^/]*\.)?txt$")]


@dataclass(frozen=True)
class Telling:
    """The fields of a spec about what the network is told.

    Attributes:
        conditioning: of classes, and the scale of classifier-free guidance.
        prompt: for all images, or where that of each is. negative_prompt: what guidance leads away from; None
            for what stands for none.
        guidance: what a distilled network is told; None for what its pipeline tells it.
    """

    conditioning: Conditioning
    prompt: str | OfSample | None = None
    negative_prompt: str | None = None
    guidance: float | None = None

    def check(self, network: LatentNetwork) -> "Telling":
        """The same, filled up; raises a SpecError for a field that the network has no use for."""
        told = self.conditioning
        given = {"prompt": self.prompt, "negative_prompt": self.negative_prompt}
        if network.text is None:
            for field, value in given.items():
                if value is not None:
                    raise SpecError(f"{field}: the network knows no prompts; leave the field out")
            if told.guided and told.null_label is None and network.null is not None:
                told = replace(told, null_label=network.null)
            told.check(network.classes)
        else:
            replace(told, cfg=1.0).check(None)
            if self.negative_prompt is not None and not told.guided:
                raise SpecError("negative_prompt: is for guidance; give cfg, or leave the field out")
        if self.guidance is not None and network.told_guidance is None:
            raise SpecError("guidance: the network is told none; cfg guides it, at twice the cost")
        guidance = network.told_guidance if self.guidance is None else self.guidance
        return replace(self, conditioning=told, guidance=guidance)


@dataclass(frozen=True)
class LatentDescription:
    """A saved pipeline on latents, found to fit by its configurations and the names and shapes of weights.

    Attributes:
        parts: its components.
        network, autoencoder: without memory for their weights.
        telling: what the network is told.
    """

    parts: Parts
    network: LatentNetwork
    autoencoder: LatentAutoencoder
    telling: Telling

    @property
    def classes(self) -> int | None:
        """Number of classes, with one that stands for none; None where the network knows none."""
        return self.network.classes

    @property
    def multiple(self) -> int:
        """What the sides of a job's images must be divisible by."""
        sides = self.autoencoder.factor * self.network.divisor
        return sides // gcd(sides, self.autoencoder.enlarge)

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return 3

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return count(self.network)

    @property
    def prediction(self) -> Prediction:
        """What x̂₀ is."""
        return convention_of(self.parts.scheduler, "cpu").prediction

    @property
    def said(self) -> str:
        """The latents, the guidance and the variant of the weights, in words."""
        encoder = self.autoencoder
        shape = f"latents of {encoder.channels} channels, 1/{encoder.factor} of the sides"
        parts = [f"{shape}, autoencoder of {count(encoder) / 1e6:.1f} M parameters"]
        parts += ["a consistency function"] if self.prediction == "endpoint" else []
        parts += [said] if (said := self.telling.conditioning.said) else []
        parts += [f"told guidance {self.telling.guidance:g}"] if self.telling.guidance is not None else []
        variant = variant_of(self.weights("network")[0])
        return ", ".join([*parts, f"weights of variant {variant!r}"] if variant else parts)

    def weights(self, part: str) -> list[FilePath]:
        """The files of the weights of the network or the autoencoder; downloaded where need be."""
        return self.parts.weights(self.parts.names[part])

    @cached_property
    def files(self) -> tuple[FilePath, ...]:
        """The weights, all configurations, and what reads prompts."""
        encoders = [] if self.network.text is None else self.parts.text_encoders(PARTS[self.network.text])
        read = [file for encoder in encoders if encoder for file in encoder.files]
        return (*self.weights("network"), *self.weights("autoencoder"), *self.parts.configs, *read)

    def load(self, device: str | torch.device) -> "LatentPrior":
        """The prior, on a device."""
        return LatentPrior(self, device)


Conditions = tuple[Tensor | None, ...]
"""What a network that knows prompts is told."""


class LatentPrior(Conditional):
    """A network of diffusers as a prior for latents (B, C, h, w) of its autoencoder.

    Attributes:
        autoencoder: an `Autoencoder`, on the same device.
        reader: of a network that knows prompts. told: what it is told, of all images (1, …) each, or of the
            prompts that were set. null: where it is guided, what the negative prompt tells it.
        sha256: checksum of all files.
    """

    def __init__(self, description: LatentDescription, device: str | torch.device):
        telling = description.telling
        super().__init__(description.classes, telling.conditioning)
        convention: Convention = convention_of(description.parts.scheduler, device)
        self.path, self.parametrization = convention.path, convention.parametrization
        self.prediction, self.output = convention.prediction, convention.output
        self.reader = None if description.network.text is None else Reader(description, device)
        self.told: Conditions = ()
        self.null: Conditions | None = None
        self.prompted = isinstance(telling.prompt, OfSample)
        if self.reader is not None:
            if self.prompted:
                library()
            # Where each image has its own, that of none shows before the first that the encoders load.
            self.told = self.reader([telling.prompt if isinstance(telling.prompt, str) else ""])
            if telling.conditioning.guided:
                self.null = self.reader.without(telling.negative_prompt)
        self.network: nn.Module = with_weights(description.network, description.weights("network"), device)
        self.autoencoder = with_weights(description.autoencoder, description.weights("autoencoder"), device)
        self.sha256 = checksum(description.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output(self.evaluate, x, t)

    def evaluate(self, x: Tensor, time: Tensor) -> Tensor:
        """The bare network, guided: of the bare outputs it is guidance of u, which is affine in them."""
        if self.reader is None:
            return self.conditioned(
                lambda classes: self.network(x, time, *([] if classes is None else [classes])), x
            )

        def network(conditions: tuple[Tensor | None, ...]) -> Tensor:
            # Of the batch's size, as a compiled network fills up what has an entry for each sample.
            each = (c if c is None else c.expand(len(x), *c.shape[1:]) for c in conditions)
            output: Tensor = self.network(x, time, *each)
            return output

        output = network(self.told_of(x))
        return output if self.null is None else guided(output, network(self.null), self.conditioning.cfg)

    def told_of(self, x: Tensor) -> Conditions:
        """What it is told of latents x; raises a SpecError if each has a prompt and those were not set."""
        if not self.prompted:
            return self.told
        places = self.classes_of(x)
        if places is None:
            raise SpecError("prompt: each image has its own, and none was given")
        return tuple(c if c is None else c[places] for c in self.told)

    def set_prompts(self, prompts: Sequence[str]) -> None:
        """The prompts of a batch, of which `labels` then say which is whose; raises as `embed`."""
        assert self.reader is not None
        self.told, self.classes = self.reader(prompts, keeps=False), len(prompts)


def with_weights(network: Any, weights: list[FilePath], device: str | torch.device) -> Any:
    """A network of which `module` is `empty`, with its weights, on a device."""
    # On the device before they become float32: a machine's memory may not hold what a GPU's does.
    adopt(network.module, state(weights, str(device)), weights[0])
    fill_positions(network.module)
    return network.eval().to(device)


class Reader:
    """What a network that knows prompts is told of them."""

    def __init__(self, description: LatentDescription, device: str | torch.device):
        network = description.network
        assert network.text is not None
        self.how, self.width, self.device = network.text, network.sizes()["text"], device
        self.encoders = description.parts.text_encoders(PARTS[network.text])
        self.guidance = description.telling.guidance
        # Of SDXL, as its pipeline; the others have no such setting.
        self.zeros = network.text == "clip_pair" and description.parts.zeros

    def __call__(self, prompts: Sequence[str], gain: float = 1.0, keeps: bool = True) -> Conditions:
        """Of each prompt, times `gain`, and the guidance, (B, …) each; keeps: see `embed`."""
        found = embed(self.how, self.encoders, prompts, self.width, self.device, keeps)

        def stacked(name: str) -> Tensor | None:
            parts = [gain * one[name] for one in found if name in one]
            return torch.cat(parts).to(self.device) if parts else None

        told = [stacked("text"), stacked("pooled")]
        if self.guidance is not None:
            told.append(torch.full((len(prompts),), self.guidance, device=self.device))
        return tuple(told if told[-1] is not None else told[:-1])

    def without(self, negative: str | None) -> Conditions:
        """Of what guidance leads away from, (1, …) each."""
        return self([negative or ""], 0.0 if negative is None and self.zeros else 1.0)


def describe(
    path: str, revision: str | None, variant: str | None, telling: Telling, enlarge: int = 1
) -> LatentDescription:
    """What a pipeline on latents is, without reading or downloading weights.

    Args:
        enlarge: see `Autoencoder`.

    Raises:
        CheckpointError: it cannot be found or used; the message names the file and the field.
        SpecError: a field that the network has no use for.
    """
    parts = parts_of(path, revision, variant)
    try:
        autoencoder = LatentAutoencoder(parts.empty("autoencoder"), enlarge)
        network = parts.network(autoencoder.factor)
        network.check(parts.scheduler, autoencoder.channels)
        if network.text is not None:
            parts.check_text(PARTS[network.text], network)
    except SpecError:
        raise
    except Exception as error:  # whatever settings of other types lead to
        raise CheckpointError(f"path: the configurations are no pipeline's ({error})") from error
    for part, module in (("network", network.module), ("autoencoder", autoencoder.module)):
        parts.check_weights(part, module)
    return LatentDescription(parts, network, autoencoder, telling.check(network))


def count(network: nn.Module) -> int:
    """How many parameters it has."""
    return sum(parameter.numel() for parameter in network.parameters())
