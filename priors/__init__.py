"""Priors: networks that predict noise, velocity or the clean image on a Gaussian path.

prior = priors.load({"name": "natural"})
u = prior(x, t)
"""

from collections.abc import Mapping
from typing import Any

import torch

from operators.registry import Registry, SpecError, construct
from priors.base import Prior
from priors.natural import natural

__all__ = ["REGISTRY", "Prior", "SpecError", "load"]

REGISTRY: Registry = {"natural": natural}


def load(spec: Mapping[str, Any], *, device: str | torch.device = "cpu") -> Prior:
    """The prior that `spec` describes, on `device`, in evaluation mode with frozen weights.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    prior: Prior = construct("prior", REGISTRY, spec, device)
    return prior
