"""Degradation operators: y = H(x); each linear one with H, Hᵀ, H⁺ and V f(S) Vᵀ.

    operator = operators.build({"name": "bicubic", "factor": 4}, (3, 256, 256))
    y = operator.forward(x)

Images are (B, C, H, W) in [-1, 1].
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from kintsugi.errors import SpecError
from kintsugi.operators import kernels, masks
from kintsugi.operators.base import Linear, Nonlinear, Operator, Separable
from kintsugi.operators.blur import anisotropic_blur, blur, gaussian_blur, gaussian_blur_rediff, uniform_blur
from kintsugi.operators.channels import colorize
from kintsugi.operators.compose import chain
from kintsugi.operators.hadamard import compressed_sensing
from kintsugi.operators.jpeg import jpeg
from kintsugi.operators.module import from_deepinv, of_module
from kintsugi.operators.motion import linear_motion_blur, motion_blur
from kintsugi.operators.nonlinear import hdr, phase_retrieval, quantize
from kintsugi.operators.nonlinear_blur import SUFFIXES as WEIGHTS
from kintsugi.operators.nonlinear_blur import nonlinear_blur
from kintsugi.operators.pointwise import Mask, denoise, inpaint
from kintsugi.operators.resize import average_pool, bicubic, resize
from kintsugi.operators.solved import Solved
from kintsugi.operators.stack import NotStackable, stack
from kintsugi.registry import Registry, construct

__all__ = [
    "REGISTRY",
    "Linear",
    "Mask",
    "Nonlinear",
    "NotStackable",
    "Operator",
    "Separable",
    "Solved",
    "SpecError",
    "build",
    "files_of",
    "from_deepinv",
    "of_module",
    "stack",
]

FILES = {"mask": masks.SUFFIXES, "kernel": kernels.SUFFIXES, "kernels": kernels.SETS, "weights": WEIGHTS}
"""Parameters that may name a file, and the suffixes by which a value is one."""


def compose(
    image_shape: tuple[int, int, int],
    *,
    operators: Annotated[list[dict[str, Any]], Field(min_length=1)],
) -> Operator:
    """Several operators, from first to last, each a spec of its own.

    The whole keeps an exact decomposition, of each operator as it is, its threshold applied. With a
    non-linear operator among them the whole is non-linear. Source: H₂ H₁ and, over channels, M ⊗ K.
    """
    built: list[Operator] = []
    shape = image_shape
    for position, spec in enumerate(operators):
        if spec.get("name") == "compose":
            raise ValueError("operators: a composition within a composition; write one list")
        built.append(construct(f"operator.operators.{position}", REGISTRY, spec, shape))
        shape = built[-1].measurement_shape
    return chain(built, [spec["name"] for spec in operators])


BUILTIN: dict[str, Callable[..., Operator]] = {
    "anisotropic_blur": anisotropic_blur,
    "average_pool": average_pool,
    "bicubic": bicubic,
    "blur": blur,
    "colorize": colorize,
    "compose": compose,
    "compressed_sensing": compressed_sensing,
    "denoise": denoise,
    "gaussian_blur": gaussian_blur,
    "gaussian_blur_rediff": gaussian_blur_rediff,
    "hdr": hdr,
    "inpaint": inpaint,
    "jpeg": jpeg,
    "linear_motion_blur": linear_motion_blur,
    "motion_blur": motion_blur,
    "nonlinear_blur": nonlinear_blur,
    "phase_retrieval": phase_retrieval,
    "quantize": quantize,
    "resize": resize,
    "uniform_blur": uniform_blur,
}
REGISTRY = Registry("operator", BUILTIN)


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


def specs_in(spec: Any, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(field, spec) of a spec and, of `compose`, of all its parts.

    Args:
        spec: perhaps none: it may come from a file that nobody has checked yet.
        field: what the spec is called.
    """
    if not isinstance(spec, dict):
        return
    yield field, spec
    parts = spec.get("operators")
    if spec.get("name") == "compose" and isinstance(parts, list | tuple):
        for number, part in enumerate(parts):
            yield from specs_in(part, f"{field}.operators.{number}")


def files_of(spec: Any, field: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(field, the spec it is in, its name there) for every file that a spec names; as of `specs_in`."""
    for where, one in specs_in(spec, field):
        drawn = [(f"{where}.{key}", value) for key, value in one.items() if "draw" in mapping_of(value)]
        for at, values in [(where, one), *drawn]:
            for parameter, suffixes in FILES.items():
                if str(values.get(parameter)).lower().endswith(suffixes):
                    yield f"{at}.{parameter}", values, parameter


def mapping_of(value: Any) -> dict[str, Any]:
    """The value, where it is a mapping, or an empty one."""
    return value if isinstance(value, dict) else {}
