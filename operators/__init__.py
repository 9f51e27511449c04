"""Degradation operators: y = H x, each with H, Hᵀ, H⁺ and V f(S) Vᵀ.

    operator = operators.build({"name": "bicubic", "factor": 4}, (3, 256, 256))
    y = operator.forward(x)

Images are (B, C, H, W) in [-1, 1].
"""

from collections.abc import Mapping
from typing import Any

import torch

from operators.base import Operator, Separable
from operators.blur import gaussian_blur
from operators.pointwise import Mask, denoise, inpaint
from operators.registry import Registry, SpecError, construct
from operators.resize import average_pool, bicubic

__all__ = ["REGISTRY", "Mask", "Operator", "Separable", "SpecError", "build"]

REGISTRY: Registry = {
    "average_pool": average_pool,
    "bicubic": bicubic,
    "denoise": denoise,
    "gaussian_blur": gaussian_blur,
    "inpaint": inpaint,
}


def build(
    spec: Mapping[str, Any],
    image_shape: tuple[int, int, int],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Operator:
    """The operator that `spec` describes, for images of shape (C, H, W).

    Decompositions are computed in float64 on the CPU and converted once.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    operator: Operator = construct("operator", REGISTRY, spec, tuple(image_shape))
    return operator.to(device, dtype)
