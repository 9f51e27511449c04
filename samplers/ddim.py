"""DDIM: the conjugate integrator without guidance."""

from dataclasses import field
from typing import ClassVar

from pydantic import FiniteFloat, NonNegativeInt
from pydantic.dataclasses import dataclass

from kintsugi.samplers.base import Strength
from kintsugi.samplers.coefficients import Absorb
from kintsugi.samplers.conjugate import Conjugate
from kintsugi.samplers.guidance import Schedule


@dataclass(kw_only=True, frozen=True)
class DDIM(Conjugate):
    """DDIM (Song et al., ICLR 2021): no guidance; the measurement enters by the warm start alone.

    `conjugate` with w: 0. Takes consistency functions, too: each step begins anew from where the last led.
    """

    needs_mean: ClassVar[bool] = False
    w: Strength = field(default=0.0, init=False)
    lam: FiniteFloat = field(default=0.0, init=False)
    absorb: Absorb = field(default="unconditional", init=False)
    schedule: Schedule = field(default="conjugate", init=False)
    order: int = field(default=1, init=False)
    jacobian: bool = field(default=True, init=False)
    vjp_steps: NonNegativeInt | None = field(default=None, init=False)
    churn: Strength = field(default=0.0, init=False)
