"""Learn the coefficients of `samplers.extrapolation` from images whose truth is known.

Greedy, step by step: the row of a step is the solution of a least-squares problem over all images (Zhang et
al., NeurIPS 2025, 2503.10103, with ω = 0), then all go on with the prediction that it makes. Squared error
alone goes to the mean of what y allows, and texture is lost; so a share τ of the truth's is demanded:

    minimise Σ ‖x̃ᵢ − x₀‖²   subject to   Σ ‖B x̃ᵢ‖² ≥ τ Σ ‖B x₀‖²

B takes the DCT coefficients from half of Nyquist's frequency on. What y measures stays what squared error
makes of it, m; the free part F γ, orthogonal to it, has to bring the texture. Both sums are quadratic in γ:
with A = FᵀF, b = Fᵀx₀, G = (B F)ᵀ B F and h = (B F)ᵀ B m the optimum is (A − μ G) γ = b + μ h with one
multiplier μ ≥ 0. As long as A − μ G is positive definite the texture of γ(μ) grows with μ (the secular
equation of the trust region, Moré & Sorensen 1983), so that a search on a line finds the global optimum.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import hypot

import numpy as np
import torch
from torch import Tensor

from kintsugi.numerics import cosines
from kintsugi.samplers.descent import Denoiser, Stepwise
from kintsugi.samplers.extrapolation import Row
from kintsugi.samplers.problem import Problem

RIDGE = 1e-6
"""Of the mean energy of the predictions, on what differs from the identity: predictions that agree up to a
thousandth of an image are no reason to leave it."""
TINY = 1e-12  # of predictions that are all 0
DIGITS = 6  # of the coefficients, behind the point
BISECTIONS = 100


@dataclass
class Lesson:
    """A batch of images to learn from.

    Args:
        truth: (B, C, H, W). begin: tells the prior what it must know of the batch, before each step.

    Attributes:
        state: x at the level that comes next. past, measured: by step so far, the corrected predictions x̂
            and P x̂; of a non-linear operator, whose rows are not split, no P x̂.
    """

    problem: Problem
    truth: Tensor
    denoise: Denoiser
    begin: Callable[[], None] = lambda: None
    state: Tensor = field(init=False)
    past: dict[int, Tensor] = field(init=False, default_factory=dict)
    measured: dict[int, Tensor] = field(init=False, default_factory=dict)

    @property
    def split(self) -> bool:
        """Whether the measured and the free part have coefficients of their own."""
        return self.problem.operator.linear

    def columns(self) -> Tensor:
        """U: the predictions so far, (B, K, C, H, W); split, first all P x̂, then all (1 − P) x̂."""
        whole = list(self.past.values())
        if not self.split:
            return torch.stack(whole, 1)
        measured = list(self.measured.values())
        free = [one - other for one, other in zip(whole, measured, strict=True)]
        return torch.stack([*measured, *free], 1)


@dataclass
class Grams:
    """Inner products, sums over all images in float64.

    Attributes:
        predicted, texture: A and G, (K, K). known: b, (K,).
        truth, true_texture: Σ ‖x₀‖² and Σ ‖B x₀‖². values: how many numbers the images have.
    """

    predicted: np.ndarray
    texture: np.ndarray
    known: np.ndarray
    truth: float
    true_texture: float
    values: int

    def error(self, weights: np.ndarray) -> float:
        """Root mean squared error of U γ, on the [-1, 1] scale."""
        squared = weights @ self.predicted @ weights - 2 * self.known @ weights + self.truth
        return float(max(squared, 0.0) / self.values) ** 0.5

    def share(self, weights: np.ndarray) -> float:
        """Texture of U γ over that of the truth; infinite where this has none."""
        found = float(weights @ self.texture @ weights)
        return found / self.true_texture if self.true_texture > 0 else np.inf


@dataclass(frozen=True)
class Learned:
    """The row of a step, and what it does on the images that it is learned from.

    Attributes:
        error, texture: before and after: root mean squared error on [-1, 1], and the share of the truth's
            texture.
    """

    row: Row
    error: tuple[float, float]
    texture: tuple[float, float]


@torch.no_grad()
def learn(
    sampler: Stepwise, lessons: Sequence[Lesson], tau: float, tell: Callable[[], None] = lambda: None
) -> list[Learned]:
    """The rows of all steps, whatever the sampler's own `extrapolate`; all predictions are kept in memory.

    Args:
        tau: τ, the share of the truth's texture; 0 demands none. Nor does the first step, whose single
            prediction could but be amplified.
        tell: called after every batch of every step.
    """
    for lesson in lessons:
        problem, prior = lesson.problem, lesson.denoise.prior
        levels = sampler.prepare(prior, problem.operator, problem.sigma_y, problem.pinv)
        lesson.state = problem.start(sampler.init, levels[0].a, levels[0].s)
    learned = []
    for i, (now, later) in enumerate(pairwise(levels)):
        parts = []
        for lesson in lessons:
            problem = lesson.problem
            lesson.begin()
            lesson.state, lesson.past[i] = sampler.step(problem, lesson.denoise, lesson.state, now, later)
            if lesson.split:
                lesson.measured[i] = problem.operator.project(lesson.past[i])
            parts += grams(lesson.columns(), lesson.truth)
            tell()
        learned.append(best(total(parts), i, lessons[0].split, tau if i else 0.0))
        for lesson in lessons:
            change = learned[-1].row.change(lesson.past, lesson.problem.operator)
            if change is not None:
                lesson.state = lesson.state + later.a * change
    return learned


def grams(columns: Tensor, truth: Tensor) -> list[Grams]:
    """Of each image: of its predictions (B, K, C, H, W) and the truth (B, C, H, W)."""
    found = []
    for predictions, true in zip(columns, truth, strict=True):
        both = torch.cat([predictions, true[None]]).cpu().double()
        inner, textures = (x.flatten(1) @ x.flatten(1).T for x in (both, texture(both)))
        whole, fine = inner.numpy(), textures.numpy()
        found.append(
            Grams(whole[:-1, :-1], fine[:-1, :-1], whole[:-1, -1], whole[-1, -1], fine[-1, -1], true.numel())
        )
    return found


def total(parts: Sequence[Grams]) -> Grams:
    """Of several images, in their order."""
    return Grams(*(sum(each) for each in zip(*(vars(part).values() for part in parts), strict=True)))


def texture(x: Tensor) -> Tensor:
    """B x: the DCT coefficients of (…, H, W) of ¼ cycle per pixel or more, and 0 for others."""
    height, width = x.shape[-2:]
    rows, columns = (cosines(n).to(x) for n in (height, width))
    fine = [[hypot(i / height, j / width) >= 0.5 for j in range(width)] for i in range(height)]
    return torch.tensor(fine) * (rows @ x @ columns.T)


def best(grams: Grams, i: int, split: bool, tau: float) -> Learned:
    """The row of step i, of rounded coefficients; without a split all of it is the free part."""
    own = (np.arange(i + 1) == i).astype(float)
    first, rest = slice(0, i + 1 if split else 0), slice(-i - 1, None)
    known, predicted, texture = grams.known, grams.predicted, grams.texture
    measured = solve(predicted[first, first], known[first], own) if split else np.zeros(0)
    beside = texture[rest, first] @ measured
    wanted = tau * grams.true_texture - measured @ texture[first, first] @ measured
    left = known[rest] - predicted[rest, first] @ measured
    free = solve(predicted[rest, rest], left, own, Demand(texture[rest, rest], beside, wanted))
    weights, identity = np.concatenate([measured, free]), np.tile(own, 2 if split else 1)
    return Learned(
        Row(tuple(weights[: i + 1].tolist()), tuple(free.tolist())),
        (grams.error(identity), grams.error(weights)),
        (grams.share(identity), grams.share(weights)),
    )


@dataclass(frozen=True)
class Demand:
    """γᵀ G γ + 2 hᵀ γ is to be at least `wanted`."""

    gram: np.ndarray
    beside: np.ndarray
    wanted: float


def solve(gram: np.ndarray, known: np.ndarray, own: np.ndarray, demand: Demand | None = None) -> np.ndarray:
    """γ of least γᵀ A γ − 2 bᵀ γ, with a ridge towards the identity, that meets a demand; rounded, (K,).

    Where no γ meets it, the search ends as near as it came.
    """
    ridge = RIDGE * np.trace(gram) / len(own)
    lower = np.linalg.cholesky(gram + (ridge + TINY) * np.eye(len(own)))
    b = np.linalg.solve(lower, known + (ridge + TINY) * own)
    if demand is None:
        return rounded(np.linalg.solve(lower.T, b))
    # In the coordinates w = Qᵀ Lᵀ γ, in which A = L Lᵀ is the identity and G is diagonal, ν.
    nu, q = np.linalg.eigh(np.linalg.solve(lower, np.linalg.solve(lower, demand.gram).T))
    b, h = q.T @ b, q.T @ np.linalg.solve(lower, demand.beside)

    def at(mu: float) -> np.ndarray:
        return (b + mu * h) / (1 - mu * nu)

    def met(mu: float) -> bool:
        w = at(mu)
        return bool((nu * w**2 + 2 * h * w).sum() >= demand.wanted)

    low = high = 0.0
    if not met(0.0) and nu[-1] > 0:
        high = (1 - 1e-9) / nu[-1]
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if met(middle) else (middle, high)
    return rounded(np.linalg.solve(lower.T, q @ at(high)))


def rounded(weights: np.ndarray) -> np.ndarray:
    """As they are written."""
    return weights.round(DIGITS) + 0.0  # no -0.0
