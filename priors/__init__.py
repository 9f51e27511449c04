"""Priors: networks that predict noise, velocity or the clean image on a Gaussian path.

prior = priors.load({"name": "natural"})
u = prior(x, t)
"""

from collections.abc import Mapping
from typing import Any

import torch

from operators.registry import Registry, SpecError, construct, look_up
from priors.base import Prior
from priors.natural import natural

__all__ = ["REGISTRY", "Prior", "SpecError", "check", "load"]

REGISTRY: Registry = {"natural": natural}
SIZE_MULTIPLES = {"natural": 8}
"""What the sides of images must be divisible by, for the priors that need it."""


def check(spec: Mapping[str, Any], image_shape: tuple[int, int, int]) -> None:
    """Find what is wrong with a spec without loading anything.

    Raises:
        SpecError: an unknown name or parameter, or images of a shape that the prior does not take.
    """
    look_up("prior", REGISTRY, spec)
    multiple = SIZE_MULTIPLES.get(spec["name"], 1)
    if any(side % multiple for side in image_shape[1:]):
        raise SpecError(f"prior: {spec['name']!r} needs image sides divisible by {multiple} (data.size)")


def load(spec: Mapping[str, Any], *, device: str | torch.device = "cpu") -> Prior:
    """The prior that `spec` describes, on `device`, in evaluation mode with frozen weights.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    prior: Prior = construct("prior", REGISTRY, spec, device)
    return prior
