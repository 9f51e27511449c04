"""Samplers: restore y = H(x₀) + σ_y n with a prior.

    sampler = samplers.build({"name": "conjugate", "steps": 5, "w": 15})
    restored = sampler(prior, operator, y, noise, sigma_y=0.0).image

Parameters that several share: `steps`, network evaluations. `start`, where the sampler begins, in VP
time: 1 is pure noise, 0.4 a warm start (conjugate, pigdm and ddim: in the native time of their path).
`end`, where the grid of times ends. `grid`: uniform in time, in log-SNR, or Karras's. `init`: the warm
start is made of H⁺y (pinv) or of the linear MMSE estimate (lmmse). `project`: impose a noiseless
measurement on the result.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kintsugi.errors import SpecError
from kintsugi.registry import Registry, construct
from kintsugi.samplers.base import Restoration, Sampler
from kintsugi.samplers.cdim import CDIM
from kintsugi.samplers.cm4ir import CM4IR
from kintsugi.samplers.conjugate import Conjugate
from kintsugi.samplers.covariance import Covariance
from kintsugi.samplers.daps import DAPS
from kintsugi.samplers.ddim import DDIM
from kintsugi.samplers.ddnm import DDNM
from kintsugi.samplers.ddrm import DDRM
from kintsugi.samplers.diffpir import DiffPIR
from kintsugi.samplers.dmplug import DMPlug
from kintsugi.samplers.dps import DPS, MCG
from kintsugi.samplers.external import External
from kintsugi.samplers.flowdps import FlowDPS
from kintsugi.samplers.flower import Flower
from kintsugi.samplers.latino import Latino
from kintsugi.samplers.mmps import MMPS
from kintsugi.samplers.noise import KeyedNoise
from kintsugi.samplers.pigdm import DiscretePiGDM, PiGDM
from kintsugi.samplers.pnp_cm import PnPCM
from kintsugi.samplers.pnp_flow import PnPFlow
from kintsugi.samplers.psld import PSLD
from kintsugi.samplers.reddiff import REDdiff
from kintsugi.samplers.sitcom import SITCOM

__all__ = ["REGISTRY", "KeyedNoise", "Restoration", "Sampler", "SpecError", "build"]


BUILTIN: dict[str, Callable[..., Sampler]] = {
    "cdim": CDIM,
    "cm4ir": CM4IR,
    "conjugate": Conjugate,
    "covariance": Covariance,
    "daps": DAPS,
    "ddim": DDIM,
    "ddnm": DDNM,
    "ddrm": DDRM,
    "diffpir": DiffPIR,
    "dmplug": DMPlug,
    "dps": DPS,
    "external": External,
    "flowdps": FlowDPS,
    "flower": Flower,
    "latino": Latino,
    "mcg": MCG,
    "mmps": MMPS,
    "pigdm": PiGDM,
    "pigdm_discrete": DiscretePiGDM,
    "pnp_cm": PnPCM,
    "pnp_flow": PnPFlow,
    "psld": PSLD,
    "reddiff": REDdiff,
    "sitcom": SITCOM,
}
REGISTRY = Registry("sampler", BUILTIN)
FILES = {"covariance": ".json"}
"""Parameters that may name a file, and the suffix by which a value is one."""


def files_of(spec: Any, field: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(field, the spec, its name there) for every file that a sampler's spec names."""
    for parameter, suffix in FILES.items():
        if isinstance(spec, dict) and str(spec.get(parameter)).lower().endswith(suffix):
            yield f"{field}.{parameter}", spec, parameter


def build(spec: Mapping[str, Any]) -> Sampler:
    """The sampler that `spec` describes.

    Raises:
        SpecError: the spec does not fit; the message names the field.
    """
    sampler: Sampler = construct("sampler", REGISTRY, spec)
    return sampler
