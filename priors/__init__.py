"""Priors: networks that predict noise, velocity or the clean image on a Gaussian path.

prior = priors.load({"name": "natural"})
u = prior(x, t)
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kintsugi.cache import checksum
from kintsugi.checkpoint import check_intact
from kintsugi.errors import SpecError
from kintsugi.priors.base import Described, NetworkPrior, Prior, channels_of
from kintsugi.priors.formats import adm, diffusers_model, edm, lucidrains, rectified_flow, score_sde
from kintsugi.priors.formats.signs import recognised
from kintsugi.priors.grouped import check_channels
from kintsugi.priors.grouped import said as said_of_channels
from kintsugi.priors.natural import describe as describe_natural
from kintsugi.priors.natural import natural
from kintsugi.priors.natural_latent import describe as describe_natural_latent
from kintsugi.priors.natural_latent import natural_latent
from kintsugi.priors.published import PUBLISHED
from kintsugi.priors.speed import drop_idle
from kintsugi.registry import Registry, construct, look_up

__all__ = ["REGISTRY", "Examined", "Format", "Prior", "SpecError", "check", "describe", "examine", "load"]


@dataclass(frozen=True)
class Format:
    """How priors of one format are read.

    Attributes:
        load: of a device and, by keyword, the parameters of a spec, the prior.
        describe: of the same parameters, what it is, read without its weights.
    """

    load: Callable[..., Any]
    describe: Callable[..., Described]


BUILTIN = {
    "natural": Format(natural, describe_natural),
    "natural_latent": Format(natural_latent, describe_natural_latent),
    "adm": Format(adm.adm, adm.describe),
    "edm": Format(edm.edm, edm.describe),
    "rectified_flow": Format(rectified_flow.rectified_flow, rectified_flow.describe),
    "score_sde": Format(score_sde.score_sde, score_sde.describe),
    "lucidrains": Format(lucidrains.lucidrains, lucidrains.describe),
    "diffusers": Format(diffusers_model.diffusers_model, diffusers_model.describe),
}
REGISTRY = Registry("prior", BUILTIN, Format)


@dataclass(frozen=True)
class Examined:
    """What a prior was found to be, before it is loaded."""

    sha256: str
    title: str  # in words: the published file where its checksum is known


def check(spec: Mapping[str, Any]) -> None:
    """Raise a SpecError for an unknown name or parameter; opens no file."""
    look_up("prior", REGISTRY, spec, "load")


def describe(spec: Mapping[str, Any]) -> Described:
    """What a spec's prior is, from its files, without loading any weights; raises as `load`."""
    with named(spec):
        found: Described = construct("prior", REGISTRY, spec, part="describe")
    return found


def examine(
    spec: Mapping[str, Any], image_shape: tuple[int, int, int], found: Described | None = None
) -> Examined:
    """Find what is wrong with a spec and its files without loading any weights.

    Args:
        found: what `describe` says of it, where that is known.

    Raises:
        SpecError: as for `load`, or images of a shape that the prior does not take.
    """
    found = found or describe(spec)
    with named():
        check_channels(found, channels_of(found), image_shape[0])
        if any(side % found.multiple for side in image_shape[1:]):
            raise SpecError(
                f"prior: {spec['name']!r} needs image sides divisible by {found.multiple} (data.size)"
            )
        for file in found.files:
            check_intact(file)
    sha256 = checksum(found.files)
    published = PUBLISHED.get(sha256)
    title = f"{published.name}; licence: {published.licence}" if published else spec["name"]
    title = f"{title}, {found.parameters / 1e6:.1f} M parameters"
    if classes := getattr(found, "classes", None):
        title += f", {classes} classes"
    if said := getattr(found, "said", ""):
        title += f", {said}"
    if said := said_of_channels(channels_of(found), image_shape[0]):
        title += f"; {said}"
    return Examined(sha256, title)


def load(spec: Mapping[str, Any], *, device: str | torch.device = "cpu") -> NetworkPrior:
    """The prior that `spec` describes, on `device`, in evaluation mode with frozen weights.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    with named(spec):
        prior: NetworkPrior = construct("prior", REGISTRY, spec, device, part="load")
    if isinstance(network := getattr(prior, "network", None), nn.Module):  # that of a plug-in may have none
        drop_idle(network)
    return prior


@contextmanager
def named(spec: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Errors name the field of the job: `path: no file` becomes `prior.path: no file`.

    Those of a path say which other format the spec's file is of, where that is known.
    """
    try:
        yield
    except SpecError as error:
        if str(error).startswith("prior"):
            raise
        said = str(error)
        if said.startswith("path:") and spec and (what := recognised(spec.get("path"))):
            said += "" if str(spec["name"]) in what else f"; it is {what}"
        raise SpecError(f"prior.{said}") from error
