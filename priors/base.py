"""What a prior is: a network output u(x, t), the path it was trained on, and what u predicts."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from priors.paths import Path

Parametrization = Literal["eps", "v", "x0"]


class Prior(Protocol):
    """Any object with these three members is a prior."""

    path: Path
    parametrization: Parametrization

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The network output u (B, C, H, W) at x (B, C, H, W) and native times t (B,).

        Differentiable in x: guided samplers need its vector-Jacobian product.
        """
        ...


def data_prediction(path: Path, parametrization: Parametrization, t: Tensor) -> tuple[Tensor, Tensor]:
    """p and q at t such that the prediction of the clean image is x̂₀ = p x + q u."""
    a, s = path.a(t), path.s(t)
    if parametrization == "eps":
        return 1 / a, -s / a
    if parametrization == "v":
        da, ds = path.da(t), path.ds(t)
        wronskian = a * ds - da * s
        return ds / wronskian, -s / wronskian
    return torch.zeros_like(a), torch.ones_like(a)


class Autocast:
    """A prior whose network runs in half precision while the state outside stays in float32."""

    def __init__(self, prior: Prior, dtype: torch.dtype):
        self.prior, self.dtype = prior, dtype
        self.path, self.parametrization = prior.path, prior.parametrization

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            return self.prior(x, t).to(x.dtype)
