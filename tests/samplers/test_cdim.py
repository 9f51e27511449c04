"""CDIM against its paper's algorithm, sample by sample, and what it says of the misfit against draws."""

from itertools import pairwise

import pytest
import scipy.optimize
import torch
from kit.operators import dense

from kintsugi import operators, samplers
from kintsugi.priors.paths import VariancePreserving
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.base import of_each
from kintsugi.samplers.descent import noise_levels
from kintsugi.samplers.problem import Problem
from kintsugi.testing import draw, mixture

D, PATH, SHAPE, KEYS = torch.float64, VariancePreserving(), (1, 8, 8), ["a", "b", "c"]
START, END, STEPS = 0.95, 0.001, 5
TIMES = torch.linspace(START, END, STEPS + 1, dtype=D)[:-1]
OPERATORS = {
    "inpaint": {"name": "inpaint", "mask": "random"},
    "bicubic": {"name": "bicubic", "factor": 2},
    "gaussian_blur": {"name": "gaussian_blur", "sigma": 1.0, "taps": 5},
}


def measured(spec, sigma_y, batch=3):
    operator = operators.build(spec, SHAPE, dtype=D)
    y = operator.forward(0.6 * draw(batch, *SHAPE, seed=3))
    return operator, y + sigma_y * operator.forward(operator.pinv(draw(*y.shape, seed=4)))


def bound(h, y, a, s, sigma, margin):
    """Equations 14 to 16, by traces of matrices; the size of y is H's rank."""
    hh, size, shrunk = h @ h.T, torch.linalg.matrix_rank(h), (a - 1) ** 2
    mean = shrunk * y @ y + s**2 * hh.trace() + (1 - shrunk) * sigma**2 * size
    variance = 2 * (s**4 * (hh @ hh).trace() + 2 * s**2 * sigma**2 * hh.trace() + sigma**4 * size)
    variance += (
        4 * shrunk * (s**2 * (y @ hh @ y - sigma**2 * hh.trace()) + sigma**2 * (y @ y - size * sigma**2))
    )
    return mean + margin * variance**0.5


def step_length(misfit, seen, target):
    """The smallest η > 0 at which a parabola is `target`, by bisection; or that of its lowest point."""

    def distance(eta):
        return (misfit - eta * seen).square().sum().item()

    at = [distance(eta) for eta in (-1.0, 0.0, 1.0)]
    lowest = 0.5 * (at[0] - at[2]) / (at[0] - 2 * at[1] + at[2])
    if lowest <= 0 or distance(lowest) > target:
        return max(lowest, 0.0)
    return scipy.optimize.bisect(lambda eta: distance(eta) - target, 0, lowest, xtol=1e-12 * lowest)


def transcribed(operator, y, key, sigma, projections, margin):
    """Algorithm 1 for one sample: the image, its network evaluations, and of these the products."""
    prior, h = mixture(), dense(operator.forward, SHAPE)
    y, forwards, products = y.flatten(), 0, 0
    z = KeyedNoise(0, [key]).normal("start", SHAPE).double().flatten()
    a, s = PATH.a(TIMES[0]), PATH.s(TIMES[0])
    start = torch.linalg.pinv(h @ h.T + sigma**2 / s**2 * torch.eye(len(h)), rtol=1e-9, hermitian=True)
    x = a * h.T @ start @ y + s * z

    def clean(x, t):
        return (x - PATH.s(t) * prior(x.view(1, *SHAPE), t[None]).flatten()) / PATH.a(t)

    for t, later in pairwise([*TIMES, None]):
        x0, forwards = clean(x, t), forwards + 1
        if later is None:
            return x0.view(SHAPE), forwards, products
        x = PATH.a(later) * x0 + PATH.s(later) * (x - PATH.a(t) * x0) / PATH.s(t)
        target = bound(h, y, PATH.a(later), PATH.s(later), sigma, margin)
        for _ in range(projections):
            if (h @ x - y).square().sum() <= target * (1 + 1e-4):
                break
            leaf = x.clone().requires_grad_()
            (g,) = torch.autograd.grad((h @ clean(leaf, later) - y).square().sum(), leaf)
            forwards, products = forwards + 1, products + 1
            eta = step_length(h @ x - y, h @ g, target.item())
            if eta == 0:
                break
            x = x - eta * g
    raise AssertionError


@pytest.mark.parametrize("margin", [0.1, 4.0])
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("kind", OPERATORS)
def test_it_is_algorithm_1_of_its_paper(kind, sigma_y, margin):
    operator, y = measured(OPERATORS[kind], sigma_y)
    settings = {"steps": STEPS, "start": START, "projections": 6, "margin": margin}
    found = samplers.build({"name": "cdim", **settings})(
        mixture(), operator, y, KeyedNoise(0, KEYS), sigma_y=sigma_y
    )
    for i, key in enumerate(KEYS):
        image, forwards, products = transcribed(operator, y[i], key, sigma_y, 6, margin)
        assert (of_each(found.forwards, 3)[i], of_each(found.vjps, 3)[i]) == (forwards, products)
        torch.testing.assert_close(found.image[i], image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@pytest.mark.parametrize("kind", OPERATORS)
def test_the_bound_is_of_the_misfit_that_noise_leaves(kind, sigma_y):
    """Mean and deviation of ‖y − Hx‖² over draws of x = a x₀ + s z and of y, x₀ the same."""
    operator, count, t = operators.build(OPERATORS[kind], SHAPE, dtype=D), 20000, torch.tensor(0.4, dtype=D)
    image, a, s = 0.6 * draw(1, *SHAPE, seed=3), PATH.a(t), PATH.s(t)
    y = operator.forward(image) + sigma_y * draw(count, *operator.measurement_shape, seed=5)
    y = operator.forward(operator.pinv(y))
    x = a * image + s * draw(count, *SHAPE, seed=6)
    misfits = (operator.forward(x) - y).square().sum((1, 2, 3))
    level, *_ = noise_levels(PATH, mixture(), t[None], y)
    problem = Problem(operator, y, KeyedNoise(0, [""] * count), sigma_y)
    mean, more = (
        samplers.build({"name": "cdim", "margin": margin}).bound(problem, y, level).mean()
        for margin in (0, 1)
    )
    assert misfits.mean() == pytest.approx(mean.item(), rel=0.01)
    assert misfits.std() == pytest.approx((more - mean).item(), rel=0.05)
