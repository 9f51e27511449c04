"""Samplers: restore y = H(x₀) + σ_y n with a prior.

    sampler = samplers.build({"name": "conjugate", "steps": 5, "w": 15})
    restored = sampler(prior, operator, y, noise, sigma_y=0.0).image

Parameters that several share: `steps`, network evaluations. `start`, where the sampler begins, in VP
time: 1 is pure noise, 0.4 a warm start (conjugate, pigdm and ddim: in the native time of their path).
`end`, where the grid of times ends. `grid`: uniform in time, in log-SNR, or Karras's. `init`: the warm
start is made of H⁺y (pinv) or of the linear MMSE estimate (lmmse). `project`: impose a noiseless
measurement on the result.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import FiniteFloat, PositiveInt

from kintsugi.errors import SpecError
from kintsugi.registry import Registry, construct
from kintsugi.samplers.base import Restoration, Sampler, Strength
from kintsugi.samplers.conjugate import Conjugate
from kintsugi.samplers.daps import DAPS
from kintsugi.samplers.ddnm import DDNM
from kintsugi.samplers.ddrm import DDRM
from kintsugi.samplers.diffpir import DiffPIR
from kintsugi.samplers.dps import DPS, MCG
from kintsugi.samplers.grids import Grid, PathName
from kintsugi.samplers.noise import KeyedNoise
from kintsugi.samplers.pigdm import DiscretePiGDM
from kintsugi.samplers.problem import Init
from kintsugi.samplers.reddiff import REDdiff

__all__ = ["REGISTRY", "KeyedNoise", "Restoration", "Sampler", "SpecError", "build"]


def pigdm(
    *,
    steps: PositiveInt = 5,
    w: Strength = 4.0,
    start: FiniteFloat | None = None,
    end: FiniteFloat | None = None,
    grid: Grid = "uniform",
    jacobian: bool = True,
    path: PathName = "prior",
    init: Init = "pinv",
    project: bool = False,
    churn: Strength = 0.0,
) -> Conjugate:
    """ΠGDM (Song et al., ICLR 2023) as released with 2405.17673, ΠGFM on flows: guidance as an Euler term.

    `conjugate` with absorb: unconditional and schedule: pigdm.
    """
    return Conjugate(
        steps=steps,
        w=w,
        start=start,
        end=end,
        absorb="unconditional",
        schedule="pigdm",
        grid=grid,
        jacobian=jacobian,
        path=path,
        init=init,
        project=project,
        churn=churn,
    )


def ddim(
    *,
    steps: PositiveInt = 5,
    start: FiniteFloat | None = None,
    end: FiniteFloat | None = None,
    grid: Grid = "uniform",
    path: PathName = "prior",
    init: Init = "pinv",
    project: bool = False,
) -> Conjugate:
    """DDIM (Song et al., ICLR 2021): no guidance; the measurement enters by the warm start alone.

    `conjugate` with w: 0.
    """
    return Conjugate(
        steps=steps,
        w=0.0,
        start=start,
        end=end,
        absorb="unconditional",
        grid=grid,
        path=path,
        init=init,
        project=project,
    )


BUILTIN: dict[str, Callable[..., Sampler]] = {
    "conjugate": Conjugate,
    "daps": DAPS,
    "ddim": ddim,
    "ddnm": DDNM,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "dps": DPS,
    "mcg": MCG,
    "pigdm": pigdm,
    "pigdm_discrete": DiscretePiGDM,
    "reddiff": REDdiff,
}
REGISTRY = Registry("sampler", BUILTIN)


def build(spec: Mapping[str, Any]) -> Sampler:
    """The sampler that `spec` describes.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    sampler: Sampler = construct("sampler", REGISTRY, spec)
    return sampler
