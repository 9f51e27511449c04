"""Networks of EDM (Karras et al. 2022, 2206.00364) and EDM2 (2312.02696), converted to safetensors.

Their release has pickles with code; `edm_convert` makes of one, once, a file of tensors whose metadata says
what the network was made with. Here that is checked and read: the architecture, and by the preconditioning
(table 1) the path and what the output means. All are given as ε, as networks of diffusers are.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, ValidationError
from torch import Tensor, nn
from torch.nn.functional import one_hot

from kintsugi.cache import sha256
from kintsugi.checkpoint import (
    CONVERSION,
    CheckpointError,
    CheckpointPath,
    State,
    adopt,
    difference,
    empty,
    read,
    tensors,
)
from kintsugi.priors.base import Parametrization
from kintsugi.priors.classes import Conditional, Conditioning
from kintsugi.priors.formats.edm2_network import Edm2, Edm2UNet, normalised
from kintsugi.priors.formats.edm_network import METADATA, Adm, AdmUNet, Common, Song, SongUNet
from kintsugi.priors.paths import DDPM, Path, VarianceExploding, VariancePreserving

CLEANEST = 0.002
"""The least σ that networks of EDM are asked for, as in their release; their input has its logarithm."""

Network = Callable[[Tensor, Tensor], Tensor]
"""Scaled images (B, C, H, W) and what stands for the noise (B,) → F (B, C, H, W)."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Training(BaseModel):
    """The preconditioning's arguments, by the names of the release; those of other classes have no effect."""

    sigma_data: Positive = 0.5
    sigma_min: float = 0.02
    sigma_max: float = math.inf
    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    M: Annotated[int, Field(ge=2, le=100_000)] = 1000
    C_1: Positive = 0.001
    C_2: Positive = 0.008
    epsilon_t: float = 1e-5
    use_fp16: bool = False
    logvar_channels: int = 128


@dataclass(frozen=True)
class Convention:
    """How a network was trained: its path, and ε from the bare network at x, t."""

    path: Path
    output: Callable[[Network, Tensor, Tensor], Tensor]


def column(values: Tensor) -> Tensor:
    """(B,) per image → (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def edm_training(training: Training) -> Convention:
    """D = c_skip x + c_out F(c_in x, log σ / 4); ε = (x − D)/σ without the division."""
    data = training.sigma_data

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        length = torch.sqrt(t**2 + data**2)
        inside = network(x / column(length), t.clamp(min=CLEANEST).log() / 4)
        return column(t / length**2) * x - column(data / length) * inside

    return Convention(VarianceExploding(min(training.sigma_max, 80.0)), output)


def vp_training(training: Training) -> Convention:
    """The continuous VP path, on which the scaled state is the path's own, and F = ε."""

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, (training.M - 1) * t)

    return Convention(VariancePreserving(training.beta_min, training.beta_min + training.beta_d), output)


def ve_training(training: Training) -> Convention:
    """D = x + σ F(x, log(σ/2)), for which ε = −F."""

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return -network(x, (0.5 * t.clamp(min=training.sigma_min)).log())

    return Convention(VarianceExploding(min(training.sigma_max, 100.0)), output)


def iddpm_training(training: Training) -> Convention:
    """DDPM's labels with cosine betas of at most 1 − C_1 (equation 162); F = ε, and a variance."""
    steps = torch.arange(training.M + 1, dtype=torch.float64) / training.M
    angles = 0.5 * math.pi * (1 - steps) / (1 + training.C_2)
    alpha_bar = angles.sin() ** 2
    betas = 1 - (alpha_bar[1:] / alpha_bar[:-1]).clamp(min=training.C_1)

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, t)[:, : x.shape[1]]

    return Convention(DDPM(betas=betas), output)


@dataclass(frozen=True)
class Family:
    """A class of the release: how it is trained, and which network it has by default."""

    training: Callable[[Training], Convention]
    network: str
    outputs: int = 1  # times the images' channels


FAMILIES: Mapping[str, Family] = {
    "EDMPrecond": Family(edm_training, "DhariwalUNet"),
    "VPPrecond": Family(vp_training, "SongUNet"),
    "VEPrecond": Family(ve_training, "SongUNet"),
    "iDDPMPrecond": Family(iddpm_training, "DhariwalUNet", 2),
    "Precond": Family(edm_training, "UNet"),
}
NETWORKS: Mapping[str, tuple[type[Common], Callable[[Any], nn.Module]]] = {
    "SongUNet": (Song, SongUNet),
    "DhariwalUNet": (Adm, AdmUNet),
    "UNet": (Edm2, Edm2UNet),
}


@dataclass(frozen=True)
class Description:
    """A converted file, found to fit what it says of itself.

    Attributes:
        network: without memory for its weights.
    """

    file: FilePath
    family: Family
    training: Training
    settings: Common
    network: nn.Module
    conditioning: Conditioning

    @property
    def classes(self) -> int | None:
        """Number of classes, None where the network has none."""
        return self.settings.label_dim or None

    @property
    def multiple(self) -> int:
        """What the sides of images must be divisible by."""
        return 2 ** (len(self.settings.channel_mult) - 1)

    @property
    def image_channels(self) -> int:
        """Of the images."""
        return self.settings.img_channels

    @property
    def parameters(self) -> int:
        """How many the network has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def files(self) -> tuple[FilePath]:
        """The converted file alone."""
        return (self.file,)

    @property
    def said(self) -> str:
        """The architecture, and the guidance, in words."""
        return ", ".join(filter(None, (type(self.network).__name__, self.conditioning.said)))


class EdmPrior(Conditional):
    """A network of EDM or EDM2 for images (B, C, H, W) whose sides are divisible by `multiple`.

    Weights are float32, whatever the file has.
    """

    parametrization: Parametrization = "eps"

    def __init__(self, description: Description, state: State, device: str | torch.device):
        super().__init__(description.classes, description.conditioning)
        convention = description.family.training(description.training)
        self.path, self.output = convention.path, convention.output
        self.network = description.network
        adopt(self.network, state, description.file)
        self.network.to(device)
        self.sha256 = sha256(description.file)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output(self.evaluate, x, t)

    def evaluate(self, x: Tensor, noise: Tensor) -> Tensor:
        """The bare network, guided; guidance of its outputs is guidance of ε, which is affine in them."""

        def network(classes: Tensor | None) -> Tensor:
            if classes is None or self.classes is None:
                return self.network(x, noise)
            # The number behind the last class stands for none: zeros.
            told = one_hot(classes, self.classes + 1)[:, :-1].to(x.dtype)
            return self.network(x, noise, told)

        return self.conditioned(network, x)


def edm(
    device: str | torch.device = "cpu",
    *,
    path: CheckpointPath,
    label: NonNegativeInt | None = None,
    cfg: FiniteFloat = 1.0,
) -> EdmPrior:
    """A network of EDM or EDM2 on pixels, from its pickle by a conversion that runs nothing in it.

    The conversion, once: python -m kintsugi.priors.formats.edm_convert IN.pkl OUT.safetensors

    Args:
        path: the converted file.
        label: one class for all images, for class-conditional networks.
        cfg: the scale of classifier-free guidance, by a second evaluation without a class, of networks whose
            classes were left out in training (label_dropout); 1: none.

    Raises:
        CheckpointError: the file is damaged, not converted or not such a network; the message says which.
        SpecError: a label that the network does not know, or guidance of one that always saw a class.
    """
    description, state = opened(path, label, cfg)
    return EdmPrior(description, state, device)


def describe(
    *, path: CheckpointPath, label: NonNegativeInt | None = None, cfg: FiniteFloat = 1.0
) -> Description:
    """What a converted file is, without reading its weights; arguments and errors as for `edm`."""
    return opened(path, label, cfg, "meta")[0]


def opened(path: FilePath, label: int | None, cfg: float, device: str = "cpu") -> tuple[Description, State]:
    """What a converted file is, and the weights of its network."""
    state = tensors(read(path, device), path)
    kind, settings, encoder = about(path)
    if kind not in FAMILIES:
        raise CheckpointError(
            f"path: {str(path)!r} is of a class {kind!r}; one of {', '.join(FAMILIES)} fits"
        )
    if encoder is not None and encoder != "StandardRGBEncoder":
        raise CheckpointError(
            f"path: {str(path)!r} is a latent network of EDM2, behind {encoder!r}; only those on pixels fit"
        )
    family = FAMILIES[kind]
    training, network_settings, network = made(settings, family, path)
    unused = ("resample_filter", "map_augment.weight")
    state = {
        key.removeprefix("model.").removeprefix("unet."): value
        for key, value in state.items()
        if not key.endswith(unused) and key != "u"
    }
    if isinstance(network_settings, Edm2):
        state = normalised(state)
    if problem := difference(network.state_dict(), state):
        raise CheckpointError(f"path: {str(path)!r} is not the network that its metadata says: {problem}")
    conditioning = Conditioning(label, cfg, none=getattr(network_settings, "label_dropout", 0) > 0)
    conditioning.check(network_settings.label_dim or None)
    return Description(path, family, training, network_settings, network, conditioning), state


def about(path: FilePath) -> tuple[str, dict[str, Any], str | None]:
    """The class, arguments and encoder in a converted file's metadata; raises a CheckpointError without."""
    from safetensors import safe_open

    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    try:
        found = json.loads(metadata[METADATA])
        kind, settings, encoder = found["class"], dict(found["settings"]), found["encoder"]
        if not isinstance(kind, str) or not isinstance(encoder, (str, type(None))):
            raise TypeError("class and encoder are names")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"path: {str(path)!r} does not say what its network was made with; convert the pickle: "
            f"{CONVERSION}"
        ) from error
    return kind, settings, encoder


def made(settings: Mapping[str, Any], family: Family, path: FilePath) -> tuple[Training, Common, nn.Module]:
    """What the arguments of a class make, without memory for weights; raises a CheckpointError if nothing."""
    ours = Training.model_fields
    name = settings.get("model_type", family.network)
    if not isinstance(name, str) or name not in NETWORKS:
        said = repr(name) if isinstance(name, str) else "no name"
        raise CheckpointError(
            f"path: the metadata of {str(path)!r}: model_type: {said}; one of {', '.join(NETWORKS)} fits"
        )
    model, build = NETWORKS[name]
    given = {key: value for key, value in settings.items() if key not in ours and key != "model_type"}
    try:
        training = Training(**{key: value for key, value in settings.items() if key in ours})
        made_with = model(**given)
        if family.outputs > 1:
            made_with = model(**given | {"out_channels": family.outputs * made_with.img_channels})
        return training, made_with, empty(lambda: build(made_with))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"path: the metadata of {str(path)!r}: {field}: {first['msg']}") from error
    except (ValueError, RuntimeError, TypeError) as error:  # widths that its norms or heads cannot divide
        raise CheckpointError(f"path: the metadata of {str(path)!r} makes no network: {error}") from error
