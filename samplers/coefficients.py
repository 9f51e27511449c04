"""The coefficients of the conjugate integrator, by quadrature, once per job.

Along every singular direction of the operator the guided ODE is

    dx/dt = L x + U u + Y (H⁺y) + C e,    e = Jᵤᵀ G (H⁺y − x̂₀)

    L = m − κ p² g,   U = n − κ p q g,   Y = κ p g,   C = κ q            (2405.17673, generalised)

with x̂₀ = p x + q u, the unconditional drift m x + n u, guidance strength κ and factor g. With
A(t) = exp ∫ (λ − L), x̄ = A x obeys dx̄/dt = λ x̄ + A (U u + Y H⁺y + C e). A step integrates A U, A Y
and A C exactly, with u and e replaced by the polynomial through their last values, and the terms
left outside A (λ x̄, and for the unconditional integrator all of the guidance) by an Adams–Bashforth
rule of the same order, which for order 1 is Euler's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import ceil, log1p, log2
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kintsugi.priors.base import Parametrization, data_prediction
from kintsugi.priors.paths import Path, log_snr
from kintsugi.samplers.guidance import Schedule, guidance_factor, guidance_strength, match_time

Absorb = Literal["conditional", "unconditional"]
NODES = 32
PANEL_GROWTH = 16.0
"""log A may grow by this much over a panel of the quadrature before it is divided."""


@dataclass(frozen=True)
class Drift:
    """The four scalars of the probability-flow ODE for one prior on one path, at times t (T,)."""

    path: Path
    prior_path: Path
    parametrization: Parametrization

    def prediction(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """p, q: x̂₀ = p x + q u, u being the network's output at the rescaled x."""
        time, scale = match_time(self.path, self.prior_path, t)
        p, q = data_prediction(self.prior_path, self.parametrization, time)
        return p * scale, q

    def noise(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of x and of u in ẑ = (x − a x̂₀) / s, what an ε-network would give."""
        a, s = self.path.a(t), self.path.s(t)
        p, q = self.prediction(t)
        return (1 - a * p) / s, -a * q / s

    def unconditional(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """m, n: dx/dt = m x + n u, from dx/dt = ȧ x̂₀ + ṡ ẑ with ẑ = (x − a x̂₀) / s."""
        a, s, da, ds = self.path.a(t), self.path.s(t), self.path.da(t), self.path.ds(t)
        p, q = self.prediction(t)
        signal = da - ds * a / s
        return ds / s + signal * p, signal * q


@dataclass(frozen=True)
class Weights:
    """x ← x_w · x + y_w · H⁺y + Σⱼ (u_w[j] · u_j + e_w[j] · e_j + f_w[j] · f_j), newest j first.

    x, y: (D,); u, e, f: (J, D), D distinct singular values. f collects the terms outside A.
    """

    x: Tensor
    y: Tensor
    u: Tensor
    e: Tensor
    f: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Weights":
        """With a function of the values for D singular values, (…, D), applied to all of them."""
        return Weights(**{name: function(value) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Step:
    """One step: where the network is evaluated, what it means there, and how x moves on.

    Attributes:
        raised: before the step, x ← raised[0] · x + raised[1] · z: noise added by churn.
        network_time, network_scale: the prior sees (network_scale · x, network_time).
        p, q, kappa: scalars at the start of the step; g: (D,) guidance factor.
        variance: r² = s²/(a² + s²) there.
        advance: from this step's x to the next.
        correct: from the previous step's x to this one, by interpolation through both evaluations;
            present where a start-up step of low order would limit the order of the whole.
    """

    raised: tuple[float, float] | None
    network_time: float
    network_scale: float
    p: float
    q: float
    kappa: float
    variance: float
    g: Tensor
    advance: Weights
    correct: Weights | None

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Step":
        """As `Weights.mapped`."""
        return replace(
            self,
            g=function(self.g),
            advance=self.advance.mapped(function),
            correct=self.correct and self.correct.mapped(function),
        )


@dataclass(frozen=True)
class Coefficients:
    """Everything that depends on the job alone: path, schedule, w, λ, σ_y, grid, singular values.

    From step `noise_from` on u is the network's output made ε; there the polynomials start anew, as the
    guidance is another one.

    Attributes:
        times: (steps + 1,) float64. singular_values: (D,) distinct, float64.
    """

    drift: Drift
    schedule: Schedule
    w: float
    lam: float
    absorb: Absorb
    order: int
    sigma_y: float
    times: Tensor
    singular_values: Tensor
    noise_from: int
    churn: float = 0.0

    def drift_of(self, k: int) -> Drift:
        """What step k integrates."""
        return self.drift if k < self.noise_from else replace(self.drift, parametrization="eps")

    @cached_property
    def starts(self) -> Tensor:
        """(steps,) where each step begins: `times`, or with churn a noisier time.

        Karras et al. 2022 (2206.00364, algorithm 2): s/a grows by 1 + min(churn / steps, √2 − 1).
        """
        times = self.times[:-1]
        if self.churn == 0:
            return times
        path = self.drift.path
        raised = path.time_of(log_snr(path, times) - log1p(min(self.churn / len(times), 2**0.5 - 1)))
        # The first state is a warm start at the stated time; churn is for the steps after it.
        return torch.cat([times[:1], raised[1:]])

    def raised(self, k: int) -> tuple[float, float] | None:
        """The scale of x and the standard deviation of the noise that lead to where step k begins."""
        before, after = self.times[k], self.starts[k]
        if before == after:
            return None
        path = self.drift.path
        scale = path.a(after) / path.a(before)
        return scale.item(), torch.sqrt(path.s(after) ** 2 - (scale * path.s(before)) ** 2).item()

    @cached_property
    def steps(self) -> list[Step]:
        """One step for each interval of the grid, in its order."""
        steps: list[Step] = []
        logs = [torch.zeros_like(self.singular_values)]  # log A at the grid times, from the start
        for k in range(len(self.times) - 1):
            t, drift = self.starts[k : k + 1], self.drift_of(k)
            first = self.noise_from if k >= self.noise_from else 0
            used = range(k, max(first - 1, k - self.order), -1)
            history = [(self.starts[j], logs[j] - logs[k]) for j in used]
            log_a, advance = self.integrate(k, history)
            logs.append(logs[k] + log_a)
            correct = None
            if k == first + 1 and self.order == 3:
                both = [(self.times[j], logs[j] - logs[first]) for j in (k, first)]
                _, correct = self.integrate(first, both)
            time, scale = match_time(drift.path, drift.prior_path, t)
            p, q = drift.prediction(t)
            a, s = drift.path.a(t), drift.path.s(t)
            kappa = self.kappa(t)
            scalars = [p, q, kappa] if self.absorb == "unconditional" else [p, q]
            if not torch.isfinite(torch.cat(scalars)).all():
                raise ValueError(f"start: infinite coefficients at {t.item():g}, pure noise; start later")
            steps.append(
                Step(
                    raised=self.raised(k),
                    network_time=time.item(),
                    network_scale=scale.item(),
                    p=p.item(),
                    q=q.item(),
                    kappa=kappa.item(),
                    variance=(s**2 / (a**2 + s**2)).item(),
                    g=self.factor(t)[0],
                    advance=advance,
                    correct=correct,
                )
            )
        return steps

    def kappa(self, t: Tensor) -> Tensor:
        """The strength of the guidance at times t, of t's shape; zero where w is."""
        if self.w == 0:  # avoids 0 · ∞ where the path begins
            return torch.zeros_like(t)
        return guidance_strength(self.drift.path, self.schedule, self.w, t)

    def factor(self, t: Tensor) -> Tensor:
        """The factor of the guidance at times t, one for each singular value."""
        return guidance_factor(self.drift.path, self.singular_values, self.sigma_y, t)

    def guided(self, t: Tensor) -> Tensor:
        """κ g at (T,) times for every singular value, as far as it is absorbed into A: (T, D)."""
        absorbed = 1.0 if self.absorb == "conditional" else 0.0
        return absorbed * self.kappa(t)[:, None] * self.factor(t)

    def growth(self, drift: Drift, t: Tensor) -> Tensor:
        """−L, the rate of log A but for λ, (T, D)."""
        (m, _), (p, _) = drift.unconditional(t), drift.prediction(t)
        return -m[:, None] + (p**2)[:, None] * self.guided(t)

    def panels(self, drift: Drift, start: Tensor, end: Tensor) -> int:
        """Panels of the quadrature over a step: more where A grows so fast that only its end counts."""
        t, dt, _ = quadrature(drift.path, start, end)
        growth = (self.lam * (end - start) + dt @ self.growth(drift, t)).abs().max().item()
        return 1 + max(0, ceil(log2(max(growth, 1.0) / PANEL_GROWTH)))

    def integrate(self, k: int, history: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Weights]:
        """Integrate over [t_k, t_{k+1}] with u, e and f known at the times of `history`.

        Args:
            history: (time, log A at that time relative to t_k), newest first.

        Returns:
            log A(t_{k+1}) relative to t_k, (D,), and the step's weights.
        """
        start, end, drift = self.starts[k], self.times[k + 1], self.drift_of(k)
        t, dt, cumulative = quadrature(drift.path, start, end, self.panels(drift, start, end))
        (_, n), (p, q) = drift.unconditional(t), drift.prediction(t)
        guided, growth = self.guided(t), self.growth(drift, t)
        # λ is constant in t, so its integral is exact whatever the quadrature's variable.
        log_a = self.lam * (t - start)[:, None] + cumulative[:-1] @ growth
        log_end = self.lam * (end - start) + cumulative[-1] @ growth
        # A relative to its value at the end of the step: dividing by A(t_{k+1}) is then done, and
        # the exponentials stay in range.
        weight = dt[:, None] * torch.exp(log_a - log_end)
        times = torch.stack([time for time, _ in history])
        basis = lagrange(times, t)[..., None]  # (J, T, 1)
        e_drift = (self.kappa(t) * q if self.absorb == "conditional" else torch.zeros_like(n))[:, None]
        weights = Weights(
            x=torch.exp(-log_end),
            y=(weight * p[:, None] * guided).sum(0),
            u=(basis * weight * (n[:, None] - (p * q)[:, None] * guided)).sum(1),
            e=(basis * weight * e_drift).sum(1),
            f=torch.stack([torch.exp(log - log_end) for _, log in history])
            * adams(times, start, end)[:, None],
        )
        return log_end, weights


def quadrature(path: Path, start: Tensor, end: Tensor, panels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss–Legendre on [start, end]: nodes t (T,), weights dt (T,), cumulative weights (T + 1, T).

    cumulative[i] @ f(t) integrates f from the start to node i, and to the end for the last row.
    The nodes are spread in log(a/s), in which every coefficient is smooth. Where that is infinite at
    the start they are spread in t, and at the end in √(end − t), since VP coefficients grow like
    t^(-1/2) towards the data.
    """
    x, w, cumulative = composite(panels)
    first, last = log_snr(path, torch.stack([start, end]))
    if torch.isfinite(first) and torch.isfinite(last):
        t = path.time_of(first + (last - first) * x)
        rate = path.da(t) / path.a(t) - path.ds(t) / path.s(t)
        jacobian = (last - first) / rate
    elif torch.isfinite(last):
        t = start + (end - start) * x
        jacobian = (end - start).expand_as(x)
    else:
        t = start + (end - start) * x * (2 - x)
        jacobian = (end - start) * 2 * (1 - x)
    return t, w * jacobian, cumulative * jacobian


@lru_cache
def composite(panels: int) -> tuple[Tensor, Tensor, Tensor]:
    """`legendre(NODES)` on each of the panels [0, ½], [½, ¾], … and the rest up to 1, joined to one rule."""
    x, w, integrals = legendre(NODES)
    edges = torch.cat([1 - 0.5 ** torch.arange(panels), torch.ones(1)]).double()
    lengths = edges.diff()
    weights = torch.outer(lengths, w).flatten()
    cumulative = weights.expand(panels * NODES + 1, -1).tril(-1)
    for i in range(panels):
        own = slice(i * NODES, (i + 1) * NODES)
        cumulative[own, own] = lengths[i] * integrals[:-1]
    return (edges[:-1, None] + torch.outer(lengths, x)).flatten(), weights, cumulative


@lru_cache
def legendre(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [0, 1], and the (n + 1, n) matrix of integrals from 0 to each node and 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    # Interpolate in Legendre polynomials, and integrate those from −1.
    to_series = np.linalg.inv(np.polynomial.legendre.legvander(nodes, n - 1))
    integrals = np.stack(
        [
            np.polynomial.legendre.legval(np.append(nodes, 1.0), np.polynomial.legendre.legint(unit, lbnd=-1))
            for unit in np.eye(n)
        ],
        axis=1,
    )
    matrix = 0.5 * integrals @ to_series
    return torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2), torch.from_numpy(matrix)


def lagrange(times: Tensor, t: Tensor) -> Tensor:
    """The Lagrange polynomials of the points `times` (J,) at t (T,): (J, T)."""
    rows = []
    for j, own in enumerate(times):
        others = torch.cat([times[:j], times[j + 1 :]])
        rows.append(((t[:, None] - others) / (own - others)).prod(1))
    return torch.stack(rows)


def adams(times: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """∫ of each Lagrange polynomial from start to end, (J,): the Adams–Bashforth weights."""
    x, w, _ = legendre(NODES)
    return lagrange(times, start + (end - start) * x) @ w * (end - start)
