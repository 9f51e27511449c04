"""DAPS: samples of x₀ given y at every level, noise levels decoupled by renoising in full."""

from itertools import pairwise

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.numerics import smaller
from kintsugi.operators import Nonlinear, Solved
from kintsugi.samplers.descent import PATH, Denoiser, Descent, Level, check_divides, noise_in, renoise
from kintsugi.samplers.grids import Grid, time_grid
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class DAPS(Descent):
    """Decoupled annealing posterior sampling (Zhang et al., CVPR 2025, 2407.01521, algorithm 1).

    At each of steps / ode_steps levels: x̂₀ by `ode_steps` Euler steps of the probability-flow ODE; then
    x₀ by `langevin_steps` of Langevin dynamics from x̂₀ towards N(x̂₀, σ²) given y, with the true gradient;
    then noise of the next level. For an operator with a decomposition the Langevin steps are one draw from
    their law.

    lr: Langevin's step, decreasing to a hundredth of itself; never beyond the stable one. beta_y: the
    standard deviation of y in the dynamics, whatever that of its noise, as in the release: with the true one
    of a noisier y so few steps of this size hardly see it. The last x₀ is without noise. No vector-Jacobian
    products.
    """

    steps: PositiveInt = 1000
    grid: Grid = "karras"
    ode_steps: PositiveInt = 5
    langevin_steps: PositiveInt = 100
    lr: PositiveFloat = 1e-4
    beta_y: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        check_divides("ode_steps", self.ode_steps, self.steps)

    def times(self) -> Tensor:
        """Each level's time followed by the times of its ODE's further steps, (steps,)."""
        outer = time_grid(PATH, self.grid, self.start, self.end, self.steps // self.ode_steps)[:-1]
        inner = [time_grid(PATH, self.grid, t.item(), self.end, self.ode_steps)[:-1] for t in outer]
        return torch.cat(inner)

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """Per annealed level: an ODE to clean data, Langevin steps towards y, noise of the next."""
        first, clean = levels[0], levels[-1]
        x = problem.start(self.init, first.a, first.s)
        for k in range(0, self.steps, self.ode_steps):
            now, later = levels[k], levels[k + self.ode_steps]
            prediction = x
            # The ODE to clean data, by Euler steps, which are DDIM's without noise.
            for level, following in pairwise([*levels[k : k + self.ode_steps], clean]):
                predicted = denoise(prediction, level)
                kept = noise_in(prediction, predicted, level)
                prediction = renoise(problem, predicted, kept, following, 0.0)
            lr = self.lr * (1 - 0.99 * k / self.steps)
            x = self.langevin(problem, prediction, now.sigma**2, lr, noise=later is not clean)
            if later is not clean:
                x = later.a * x + later.s * problem.draw()
        return x

    def langevin(
        self, problem: Problem, prediction: Tensor, variance: float, lr: float, noise: bool
    ) -> Tensor:
        """x₀ after Langevin dynamics from the prediction towards N(prediction, variance) given y."""
        operator, y_variance = problem.operator, self.beta_y**2
        if isinstance(operator, Nonlinear | Solved):
            rate = smaller(lr, 1 / (1 / variance + operator.lipschitz**2 / y_variance))
            x = prediction
            for _ in range(self.langevin_steps):
                misfit = operator.forward(x) - problem.y
                x = x - rate * ((x - prediction) / variance + operator.vjp(x, misfit) / y_variance)
                if noise:
                    x = x + (2 * rate) ** 0.5 * problem.draw()
            return x
        # Per direction x ← x − rate · curvature (x − mean) + √(2 rate) z: a Gaussian after any number.
        squared = operator.singular_values**2
        curvature = 1 / variance + squared / y_variance
        rates = (1 / curvature).clamp_max(lr)
        shrink = rates * curvature
        kept = (1 - shrink) ** self.langevin_steps
        pull = squared / y_variance / curvature * (problem.known - operator.to_spectral(prediction))
        x = prediction + operator.from_spectral((1 - kept) * pull)
        if not noise:
            return x
        free = torch.as_tensor(min(lr, variance), dtype=torch.float64)
        z, inside = problem.draw(), langevin_deviation(rates, shrink, self.langevin_steps)
        unseen = langevin_deviation(free, free / variance, self.langevin_steps).to(z)
        return x + unseen * z + operator.from_spectral((inside - unseen) * operator.to_spectral(z))


def langevin_deviation(rate: Tensor, shrink: Tensor, steps: int) -> Tensor:
    """The standard deviation of Σⱼ (1 − shrink)ʲ √(2 rate) zⱼ over `steps` terms.

    `shrink` is at most 1 and may be far below the rounding of 1, as it is at pure noise.
    """
    decayed = -torch.expm1(2 * steps * torch.log1p(-shrink))
    return (2 * rate * decayed / (shrink * (2 - shrink))).sqrt()
