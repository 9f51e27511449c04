"""Samplers: restore y = H x₀ + σ_y n with a prior.

sampler = samplers.build({"name": "conjugate", "steps": 5, "w": 15})
restored = sampler(prior, operator, y, noise, sigma_y=0.0).image
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from operators.registry import Registry, SpecError, construct
from priors.paths import Path, RectifiedFlow, VariancePreserving
from samplers.base import Restoration, Sampler
from samplers.coefficients import Absorb
from samplers.conjugate import Conjugate
from samplers.grids import Grid
from samplers.guidance import Schedule
from samplers.noise import KeyedNoise

__all__ = ["REGISTRY", "KeyedNoise", "Restoration", "Sampler", "SpecError", "build"]

Strength = Annotated[FiniteFloat, Field(ge=0)]
Order = Annotated[int, Field(ge=1, le=3)]
PathName = Literal["prior", "vp", "flow"]
PATHS: dict[PathName, Path | None] = {"prior": None, "vp": VariancePreserving(), "flow": RectifiedFlow()}


def conjugate(
    *,
    steps: PositiveInt = 5,
    w: Strength = 15.0,
    lam: FiniteFloat = 0.0,
    start: FiniteFloat | None = None,
    end: FiniteFloat | None = None,
    absorb: Absorb = "conditional",
    schedule: Schedule = "conjugate",
    order: Order = 1,
    grid: Grid = "uniform",
    jacobian: bool = True,
    path: PathName = "prior",
) -> Conjugate:
    """C-ΠGDM on diffusion paths, C-ΠGFM on flows (Pandey et al., NeurIPS 2024, 2405.17673).

    start and end are native times of the path (VP: 0.4 and 0.001 unless given; other paths: the
    times of the same noise levels). lam is per unit of the path's whole span of time. path: the
    prior's own, or another one by matching the log-SNR.
    """
    return Conjugate(
        steps=steps,
        w=w,
        lam=lam,
        start=start,
        end=end,
        absorb=absorb,
        schedule=schedule,
        order=order,
        grid=grid,
        jacobian=jacobian,
        path=PATHS[path],
    )


def pigdm(
    *,
    steps: PositiveInt = 5,
    w: Strength = 4.0,
    start: FiniteFloat | None = None,
    end: FiniteFloat | None = None,
    grid: Grid = "uniform",
    jacobian: bool = True,
    path: PathName = "prior",
) -> Conjugate:
    """ΠGDM (Song et al., ICLR 2023) as released with 2405.17673: guidance as an Euler term."""
    return conjugate(
        steps=steps,
        w=w,
        start=start,
        end=end,
        absorb="unconditional",
        schedule="pigdm",
        grid=grid,
        jacobian=jacobian,
        path=path,
    )


def ddim(
    *,
    steps: PositiveInt = 5,
    start: FiniteFloat | None = None,
    end: FiniteFloat | None = None,
    grid: Grid = "uniform",
    path: PathName = "prior",
) -> Conjugate:
    """DDIM (Song et al., ICLR 2021): no guidance; the measurement enters by the warm start alone."""
    return conjugate(steps=steps, w=0.0, start=start, end=end, absorb="unconditional", grid=grid, path=path)


REGISTRY: Registry = {"conjugate": conjugate, "ddim": ddim, "pigdm": pigdm}


def build(spec: Mapping[str, Any]) -> Sampler:
    """The sampler that `spec` describes.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    sampler: Sampler = construct("sampler", REGISTRY, spec)
    return sampler
