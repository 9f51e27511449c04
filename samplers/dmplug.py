"""DMPlug: the noise from which a few steps of DDIM lead to an image that agrees with y."""

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.descent import PATH, Denoiser, Descent, Level, check_divides
from kintsugi.samplers.grids import time_grid
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DMPlug(Descent):
    """DMPlug (Wang et al., NeurIPS 2024, 2405.16749): min ‖y − H(R(z))‖² over z, R a few steps of DDIM.

    By Adam from the start state on, down the mean square, back through all of the `ode_steps` steps. A
    reference end, not a fast method. The result is the last image; that of the released program is the best
    of all by the truth, and its published figures are of that. No early stopping.

    steps: network evaluations, ode_steps for each of Adam's; all but the last of these have as many
    vector-Jacobian products. The true gradient, also of a non-linear operator.
    """

    differentiates: ClassVar[bool] = True
    steps: PositiveInt = 15000
    ode_steps: PositiveInt = 3
    lr: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        check_divides("ode_steps", self.ode_steps, self.steps)

    def times(self) -> Tensor:
        """VP times of the steps of DDIM, (ode_steps,)."""
        return time_grid(PATH, self.grid, self.start, self.end, self.ode_steps)[:-1]

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """The image that the start leads to after the last of Adam's steps."""
        operator, start = problem.operator, problem.start(self.init, levels[0].a, levels[0].s)
        # Adam works on each pixel by itself, so a sample's result does not depend on its batch.
        optimiser = torch.optim.Adam([start], lr=self.lr)
        for _ in range(self.steps // self.ode_steps - 1):
            image, pullback = generated(denoise, start, levels)
            misfit = operator.forward(image) - problem.y
            start.grad = pullback(operator.vjp(image, 2 / misfit[0].numel() * misfit))
            optimiser.step()
        return generated(denoise, start, levels, graph=False)[0]


def generated(
    denoise: Denoiser, start: Tensor, levels: list[Level], graph: bool = True
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The image to which DDIM without noise leads from a start, and v ↦ Jᵀ v with its Jacobian J.

    Args:
        graph: whether that product will be asked for.
    """
    x, steps = start.clone(), []
    for now, later in pairwise(levels):
        # a' x̂₀ + s' ẑ, by x̂₀ and the state.
        kept = later.s / now.s
        told = later.a - kept * now.a
        if graph:
            prediction, pullback = denoise.with_pullback(x, now)
            steps.append((kept, told, pullback))
        else:
            prediction = denoise(x, now)
        x = told * prediction + kept * x

    def back(v: Tensor) -> Tensor:
        for kept, told, pullback in reversed(steps):
            v = kept * v + pullback(told * v)
        return v

    return x, back
