"""FlowDPS: of every prediction on the flow path, latents that agree with the measurement, and fresh noise."""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.operators import Linear
from kintsugi.priors.paths import Path, RectifiedFlow
from kintsugi.samplers.base import Strength
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in
from kintsugi.samplers.dps import unit
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class FlowDPS(Stepwise):
    """FlowDPS (Kim et al., ICCV 2025, 2503.08136). Products with the decoder's Jacobian, not the network's.

    With σ = 1 − t of the flow: `inner` gradient steps of ‖B (y − H D(z))‖ from the prediction ẑ₀ give latents
    z_y; then (1 − σ') ((1 − σ) ẑ₀ + σ z_y) + σ' (√σ' ẑ + √(1 − σ') ε) is the next state, ẑ the noise that is
    predicted. The norm is a sample's own.

    Args:
        inner: gradient steps at each level. rate: their size.
        back: B, `pinv`, H⁺, as published for super-resolution, or `adjoint`, Hᵀ, as for others.
    """

    path: ClassVar[Path] = RectifiedFlow()
    takes_latents: ClassVar[bool] = True
    needs_latents: ClassVar[bool] = True
    steps: PositiveInt = 28
    inner: NonNegativeInt = 3
    rate: Strength = 30.0
    back: Literal["pinv", "adjoint"] = "pinv"

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The next state, and what it is made of."""
        prediction = denoise(x, now)
        consistent = prediction
        for _ in range(self.inner):
            consistent = consistent - self.rate * self.gradient(problem, consistent)
        corrected = (1 - now.s) * prediction + now.s * consistent
        if later.s == 0:
            return corrected, corrected
        noise = later.s**0.5 * noise_in(x, prediction, now) + (1 - later.s) ** 0.5 * problem.draw()
        return later.a * corrected + later.s * noise, corrected

    def gradient(self, problem: Problem, z: Tensor) -> Tensor:
        """∇ ‖B (y − H D(z))‖ of each sample, (B, c, h, w)."""
        seen, y = problem.operator, problem.y
        assert isinstance(seen, Decoded)
        operator = seen.operator
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            image = seen.image(leaf)
        shown = image.detach()
        missed = operator.forward(shown) - y
        if not isinstance(operator, Linear):
            gradient = operator.vjp(shown, unit(missed))
        elif self.back == "pinv":
            gradient = operator.project(unit(operator.pinv(missed)))  # which is symmetric
        else:
            gradient = operator.adjoint(operator.forward(unit(operator.adjoint(missed))))
        (found,) = torch.autograd.grad(image, leaf, gradient)
        return found
