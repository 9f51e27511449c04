"""What the published samplers share: a descent through the noise levels of a path, VP's or the flow's.

Most are a `Stepwise` with a `step`, from the state at one level to the state at the next; the others
say in `descend` how they use the levels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import pydantic.dataclasses
import torch
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.priors.base import Prior, autoencoder_of, evaluations_of
from kintsugi.priors.paths import Path, VariancePreserving, log_snr
from kintsugi.samplers.base import Callback, KeptForOneJob, Restoration, check_fit
from kintsugi.samplers.coefficients import Drift
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.extrapolation import Given, Row, is_finite, last_uses, rows_of
from kintsugi.samplers.grids import Grid, time_grid
from kintsugi.samplers.guidance import match_time
from kintsugi.samplers.noise import Noise
from kintsugi.samplers.problem import Init, Problem, check_project

PATH = VariancePreserving()


@dataclass(frozen=True)
class Level:
    """A noise level: x = a x₀ + s z. The prior sees (scale · x, time), and x̂₀ = p x + q u."""

    a: float
    s: float
    p: float
    q: float
    scale: float
    time: Tensor

    @property
    def sigma(self) -> float:
        """s/a, the noise level of x/a."""
        return self.s / self.a


class Denoiser:
    """A prior as x ↦ x̂₀ = E[x₀ | x], on any path whatever its own; counts what it is asked for."""

    def __init__(self, prior: Prior, callback: Callback | None):
        self.prior, self.callback, self.evaluations = prior, callback, evaluations_of(prior)
        self.forwards: int | Tensor = 0
        self.vjps: int | Tensor = 0
        self.calls = 0

    def __call__(self, x: Tensor, level: Level, each: int | Tensor = 1) -> Tensor:
        """x̂₀ (B, C, H, W). each: how many evaluations this is to be counted as, perhaps of each sample."""
        u = self.prior(x if level.scale == 1 else level.scale * x, level.time.expand(len(x)))
        prediction = level.p * x + level.q * u
        if self.callback is not None:
            self.callback(self.calls, x.detach(), prediction.detach())
        self.calls += 1
        self.forwards = self.forwards + self.evaluations * each
        return prediction

    def with_pullback(
        self, x: Tensor, level: Level, products: int = 1, each: int | Tensor = 1
    ) -> tuple[Tensor, Callable[..., Tensor]]:
        """x̂₀, and v ↦ (∂x̂₀/∂x)ᵀ v, to be called at most `products` times; the last frees the graph.

        each: see above; of a product it is the same, or what is said with v.
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            prediction = self(leaf, level, each)
        left = products

        def pullback(v: Tensor, each: int | Tensor = each) -> Tensor:
            nonlocal left
            left -= 1
            self.vjps = self.vjps + self.evaluations * each
            (gradient,) = torch.autograd.grad(prediction, leaf, v, retain_graph=left > 0)
            return gradient

        return prediction.detach(), pullback


@pydantic.dataclasses.dataclass(kw_only=True, frozen=True)
class Descent(KeptForOneJob, ABC):
    """Samplers that evaluate the network at noise levels of a path, from noisy to clean.

    Whatever the path, `start` and `end` are VP times, which stand for the noise levels there.

    Attributes:
        path: its states are a x₀ + s z, and `grid` divides its time.
        differentiates: whether it asks for vector-Jacobian products of the network.
        needs_mean: whether x̂₀ must be E[x₀ | x], or may be a consistency function's.
        takes_latents, needs_latents: whether it works with a prior of latents, and whether with no other one.

    Args:
        steps: network evaluations.
        start: VP time of the first: 1 is pure noise, less a warm start.
        end: VP time at which the grid of times ends; the last step goes to clean data. With a prior of
            latents both are as far as its path reaches.
        init: what a warm start starts from: H⁺y, or the linear MMSE estimate.
        project: impose the measurement on the result; noiseless measurements only.
    """

    path: ClassVar[Path] = PATH
    differentiates: ClassVar[bool] = False
    needs_mean: ClassVar[bool] = True
    takes_latents: ClassVar[bool] = False
    needs_latents: ClassVar[bool] = False
    steps: PositiveInt = 100
    start: Annotated[float, Field(gt=0, le=1)] = 1.0
    end: Annotated[float, Field(gt=0, lt=1)] = 0.001
    grid: Grid = "uniform"
    init: Init = "pinv"
    project: bool = False

    @abstractmethod
    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """The restored image, with a prior of latents see `shown`; the last of the levels is clean data."""

    def shown(self, seen: Decoded, result: Tensor) -> Tensor:
        """The image of what `descend` gave with a prior of latents: of its latents."""
        return seen.image(result)

    def times(self) -> Tensor:
        """Times of the network's evaluations on the path, (steps,)."""
        return self.times_within(0.0, 1.0)

    def times_within(self, least: float, most: float) -> Tensor:
        """The same, of VP times from `least` to `most`."""
        span = torch.tensor([min(self.start, most), max(self.end, least)], dtype=torch.float64)
        start, end = match_time(PATH, self.path, span)[0].tolist()
        return time_grid(self.path, self.grid, start, end, self.steps)[:-1]

    def start_level(self) -> float:
        """Noise over signal, s/a, at the start."""
        first = self.times()[0]
        return float(self.path.s(first) / self.path.a(first))

    def times_of(self, prior: Prior) -> Tensor:
        """`times`; with a prior of latents as far as its path reaches, which is often not far."""
        if autoencoder_of(prior) is None:
            return self.times()
        ends = torch.tensor([prior.path.data_time, prior.path.noise_time], dtype=torch.float64)
        return self.times_within(*PATH.time_of(log_snr(prior.path, ends)).tolist())

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> list[Level]:
        """The levels for a job; see `samplers.base.Sampler`."""
        check_fit(self, prior)
        check_project(self.project, sigma_y)
        if self.end >= self.start:
            raise ValueError(f"start, end: {self.start} to {self.end} does not lead from noise to data")
        settings = (like.device, like.dtype)
        return self.remembered(
            "levels", (prior,), settings, lambda: noise_levels(self.path, prior, self.times_of(prior), like)
        )

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        operator: Operator,
        y: Tensor,
        noise: Noise,
        *,
        sigma_y: float | Tensor = 0.0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch; see `samplers.base.Sampler`."""
        levels, denoise = self.prepare(prior, operator, sigma_y, y), Denoiser(prior, callback)
        autoencoder = autoencoder_of(prior)
        seen = operator if autoencoder is None else Decoded(operator, autoencoder)
        image = self.descend(Problem(seen, y, noise, sigma_y), denoise, levels)
        if isinstance(seen, Decoded):
            image = self.shown(seen, image)
        if self.project:
            image = operator.impose(image, y)
        counts = (seen.decodes, seen.encodes, seen.vjps) if isinstance(seen, Decoded) else ()
        return Restoration(image, denoise.forwards, denoise.vjps, *counts)


@pydantic.dataclasses.dataclass(kw_only=True, frozen=True)
class Stepwise(Descent):
    """Samplers that go from one level to the next, each state a' x̂ + noise around a corrected prediction x̂.

    Args:
        extrapolate: β of x̂ᵢ + β (x̂ᵢ − x̂ᵢ₋₁), which takes the place of a corrected prediction x̂ᵢ from the
            second step on: texture for distortion, without a network evaluation. ½ is the weight of
            DPM-Solver++(2M) for equal steps of log-SNR; images with H x = y keep it. Or the coefficients of
            all predictions so far, a row for each step, as `samplers.extrapolation` has them.
    """

    extrapolate: Given = 0.0

    @field_validator("extrapolate", mode="plain")
    @classmethod
    def check_rows(cls, value: Any, info: ValidationInfo) -> Given:
        """β, or a row for each step; raises a ValueError for others."""
        if not (isinstance(value, list) or is_finite(value)):
            raise ValueError("a finite number, or a list with a row of coefficients for each step")
        if "steps" in info.data:
            rows_of(value, info.data["steps"])
        return value

    @cached_property
    def rows(self) -> Sequence[Row]:
        """By step, how its prediction is extrapolated; none where none is."""
        return rows_of(self.extrapolate, self.steps)

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> list[Level]:
        """The levels for a job; raises a ValueError for rows that split what a non-linear operator sees."""
        if not operator.linear and any(row.split for row in self.rows):
            raise ValueError(
                "extrapolate: a non-linear operator has no measured part; give one list for each step"
            )
        return super().prepare(prior, operator, sigma_y, like)

    def descend(self, problem: Problem, denoise: Denoiser, levels: list[Level]) -> Tensor:
        """From the start to clean data, a `step` for each pair of neighbouring levels."""
        x = self.begin(problem, levels[0])
        past: dict[int, Tensor] = {}
        last_used = last_uses(self.rows)
        for i, (now, later) in enumerate(pairwise(levels)):
            x, past[i] = self.step(problem, denoise, x, now, later)
            change = self.rows[i].change(past, problem.operator) if self.rows else None
            x = x if change is None else x + later.a * change
            past = {j: image for j, image in past.items() if last_used.get(j, -1) > i}
        return x

    def begin(self, problem: Problem, level: Level) -> Tensor:
        """The state at the first level."""
        return problem.start(self.init, level.a, level.s)

    @abstractmethod
    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """From the state x at level `now` to the state at level `later`, and the prediction it is made of.

        That is x̂₀ with what y says of it: the state is linear in it, by the factor `later.a`.
        """


def noise_levels(path: Path, prior: Prior, times: Tensor, like: Tensor) -> list[Level]:
    """The levels at times (T,) of a path, and clean data after them."""
    network_times, scales = match_time(path, prior.path, times)
    p, q = Drift(path, prior.path, prior.parametrization).prediction(times)
    if not torch.isfinite(torch.cat([p, q])).all():
        raise ValueError(f"start: infinite coefficients at {times[0].item():g}, pure noise; start later")
    on_device = network_times.to(like)
    rows = torch.stack([path.a(times), path.s(times), p, q, scales], dim=1).tolist()
    noisy = [
        Level(a=a, s=s, p=p, q=q, scale=scale, time=time)
        for (a, s, p, q, scale), time in zip(rows, on_device, strict=True)
    ]
    return [*noisy, Level(a=1.0, s=0.0, p=1.0, q=0.0, scale=1.0, time=on_device[-1])]


def check_divides(field: str, per_level: int, steps: int) -> None:
    """Raise a ValueError if levels of so many evaluations do not make up the steps."""
    if steps % per_level:
        raise ValueError(f"{field}: {per_level} does not divide the {steps} steps")


def noise_in(x: Tensor, prediction: Tensor, level: Level) -> Tensor:
    """ẑ = (x − a x̂₀) / s, the noise that a prediction leaves of the state."""
    return (x - level.a * prediction) / level.s


def renoise(problem: Problem, prediction: Tensor, kept: Tensor, later: Level, fresh: float) -> Tensor:
    """a' x̂₀ + s' (√(1 − η²) ẑ + η z): the state at the next level with a share η of fresh noise.

    DDIM (Song et al., ICLR 2021, 2010.02502, equation 12).
    """
    if later.s == 0:
        return prediction
    x = later.a * prediction + later.s * (1 - fresh**2) ** 0.5 * kept
    return x + later.s * fresh * problem.draw() if fresh > 0 else x


def ancestral(now: Level, later: Level, eta: float) -> float:
    """The share of fresh noise of DDIM's η: at η = 1 that of DDPM's posterior q(x' | x, x₀)."""
    return eta * (1 - min(1.0, (later.sigma / now.sigma) ** 2)) ** 0.5
