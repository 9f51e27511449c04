"""Pipelines on latents saved by diffusers: a network, an autoencoder, a scheduler and text encoders.

Which pipeline it is, its model_index.json says. As on pixels nothing of a repository is executed, and how
diffusers would sample does not matter. Safety checkers are not loaded.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path as FilePath
from typing import Any

import torch
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
from kintsugi.priors.formats.diffusers_prompts import PARTS, embed
from kintsugi.priors.formats.diffusers_training import Convention, convention_of


@dataclass(frozen=True)
class Telling:
    """The fields of a spec about what the network is told.

    Attributes:
        conditioning: of classes, and the scale of classifier-free guidance.
        prompt: for all images. negative_prompt: what guidance leads away from; None for what stands for none.
        guidance: what a distilled network is told; None for what its pipeline tells it.
    """

    conditioning: Conditioning
    prompt: str | None = None
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


class LatentPrior(Conditional):
    """A network of diffusers as a prior for latents (B, C, h, w) of its autoencoder.

    Attributes:
        autoencoder: an `Autoencoder`, on the same device, in float32.
        told: of a network that knows prompts, what it is told, (1, …) each. null: where it is guided, what
            the negative prompt tells it.
        sha256: checksum of all files.
    """

    def __init__(self, description: LatentDescription, device: str | torch.device):
        telling = description.telling
        super().__init__(description.classes, telling.conditioning)
        convention: Convention = convention_of(description.parts.scheduler, device)
        self.path, self.parametrization = convention.path, convention.parametrization
        self.prediction, self.output = convention.prediction, convention.output
        self.told, self.null = told(description, device)
        self.network: nn.Module = with_weights(description.network, description.weights("network"), device)
        self.autoencoder = with_weights(description.autoencoder, description.weights("autoencoder"), device)
        self.sha256 = checksum(description.files)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output(self.evaluate, x, t)

    def evaluate(self, x: Tensor, time: Tensor) -> Tensor:
        """The bare network, guided: of the bare outputs it is guidance of u, which is affine in them."""
        if self.told is None:
            return self.conditioned(
                lambda classes: self.network(x, time, *([] if classes is None else [classes])), x
            )

        def network(conditions: tuple[Tensor | None, ...]) -> Tensor:
            # Of the batch's size, as a compiled network fills up what has an entry for each sample.
            each = (c if c is None else c.expand(len(x), *c.shape[1:]) for c in conditions)
            output: Tensor = self.network(x, time, *each)
            return output

        output = network(self.told)
        return output if self.null is None else guided(output, network(self.null), self.conditioning.cfg)


def with_weights(network: Any, weights: list[FilePath], device: str | torch.device) -> Any:
    """A network of which `module` is `empty`, with its weights, on a device."""
    # On the device before they become float32: a machine's memory may not hold what a GPU's does.
    adopt(network.module, state(weights, str(device)), weights[0])
    fill_positions(network.module)
    return network.eval().to(device)


Conditions = tuple[Tensor | None, ...]


def told(
    description: LatentDescription, device: str | torch.device
) -> tuple[Conditions | None, Conditions | None]:
    """What a network that knows prompts is told, and, where it is guided, what without; None of others."""
    telling, network = description.telling, description.network
    if network.text is None:
        return None, None
    encoders = description.parts.text_encoders(PARTS[network.text])
    width = network.sizes()["text"]

    def conditions(prompt: str, gain: float = 1.0) -> Conditions:
        found = embed(network.text or "", encoders, prompt, width, device)
        given = [gain * found["text"], gain * found["pooled"] if "pooled" in found else None]
        if telling.guidance is not None:
            given.append(torch.tensor([telling.guidance]))
        while given[-1] is None:
            given.pop()
        return tuple(one if one is None else one.to(device) for one in given)

    with_prompt = conditions(telling.prompt or "")
    if not telling.conditioning.guided:
        return with_prompt, None
    # Of SDXL, as its pipeline; the others have no such setting.
    zeros = telling.negative_prompt is None and network.text == "clip_pair" and description.parts.zeros
    return with_prompt, conditions(telling.negative_prompt or "", 0.0 if zeros else 1.0)


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
