"""SITCOM: at every level Adam on the network's input, until its prediction agrees with y."""

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Strength
from kintsugi.samplers.descent import PATH, Denoiser, Descent, Level, check_divides
from kintsugi.samplers.grids import time_grid
from kintsugi.samplers.problem import Problem

SPARE = 0.001
"""Added to σ_y, as released: how far from y, per value, is near enough."""


@dataclass(kw_only=True, frozen=True)
class SITCOM(Descent):
    """Step-wise triple-consistent sampling (Alkhouri et al., ICML 2025, 2410.04479, algorithm 1).

    At each of steps / adam_steps levels Adam moves the input v, from the state x on, down
    ‖y − H(x̂₀(v))‖² + λ ‖x − v‖² as long as the first term is more than (σ_y + 0.001)² a value of y; x̂₀(v)
    with fresh noise is the next state. A reference end, not a fast method. The result is the last prediction;
    that of the released program is the best of all by the truth, and its published figures are of that.

    steps: network evaluations at most, each but the last of a level with a vector-Jacobian product; a sample
    that agrees with y earlier needs fewer, and it is counted so. The true gradient, also of a non-linear H.
    """

    differentiates: ClassVar[bool] = True
    steps: PositiveInt = 400
    adam_steps: PositiveInt = 20
    lr: PositiveFloat = 0.01
    lam: Strength = 0.0

    def __post_init__(self) -> None:
        check_divides("adam_steps", self.adam_steps, self.steps)

    def times(self) -> Tensor:
        """VP times of the levels, (steps / adam_steps,)."""
        return time_grid(PATH, self.grid, self.start, self.end, self.steps // self.adam_steps)[:-1]

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """Per level: an input whose prediction agrees with y, and noise of the next level on that."""
        x = problem.start(self.init, levels[0].a, levels[0].s)
        for now, later in pairwise(levels):
            prediction = self.consistent(problem, denoise, x, now)
            if later.s > 0:
                x = later.a * prediction + later.s * problem.draw()
        return prediction

    def consistent(self, problem: Problem, denoise: Denoiser, x: Tensor, level: Level) -> Tensor:
        """x̂₀(v) of the first input v of each sample that agrees with y, or of the last one."""
        operator, target = problem.operator, (problem.sigma_y + SPARE) ** 2 * problem.y[0].numel()
        v, kept = x.clone(), torch.zeros_like(x)
        # Adam works on each pixel by itself, so a sample's result does not depend on its batch.
        optimiser = torch.optim.Adam([v], lr=self.lr)
        wanted = torch.ones(len(x), 1, 1, 1, dtype=torch.bool, device=x.device)
        for left in reversed(range(self.adam_steps)):
            each = wanted.flatten().long()
            if left == 0:
                return torch.where(wanted, denoise(v, level, each), kept)
            prediction, pullback = denoise.with_pullback(v.clone(), level, each=each)
            misfit = operator.forward(prediction) - problem.y
            kept = torch.where(wanted, prediction, kept)
            wanted = wanted & (misfit.square().sum((1, 2, 3), keepdim=True) >= target)
            if not wanted.any():
                break
            gradient = pullback(operator.vjp(prediction, misfit), wanted.flatten().long())
            v.grad = 2 * gradient + 2 * self.lam * (v - x)
            optimiser.step()
        return kept
