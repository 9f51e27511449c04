"""PnP-Flow and Flower: each against its paper's algorithm, and Flower's draws against their law.

The transcriptions know the flow's own time and velocity, dense matrices, and the noise in the order of use;
the samplers run on a VP prior that predicts ε.
"""

import math
from zlib import crc32

import pytest
import torch
from kit.operators import dense as matrix
from kit.samplers import REQUIRED, relative_error

from kintsugi import operators, samplers
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.paths import RectifiedFlow
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.flower import Flower
from kintsugi.samplers.problem import Problem
from kintsugi.testing import draw, mixture

D = torch.float64
SHAPE, PIXELS, KEYS = (1, 8, 8), 64, ["a", "b"]
STEPS, START, END = 6, 0.95, 0.001
KINDS = {
    "inpaint": {"name": "inpaint", "mask": "random", "keep": 0.3},
    "bicubic": {"name": "bicubic", "factor": 2},
    "gaussian_blur": {"name": "gaussian_blur", "sigma": 1.0, "taps": 5, "threshold": 0.2},
    "valid blur": {"name": "blur", **REQUIRED["blur"], "threshold": 1e-3},
    "hdr": {"name": "hdr"},
}
LINEAR = [kind for kind in KINDS if kind != "hdr"]


def flow_time(t):
    """The t at which (1 − t)/t is the noise over signal of VP at its time t."""
    return 1 / (1 + math.sqrt(math.expm1(0.1 * t + 9.95 * t**2)))


TIMES = torch.linspace(flow_time(START), flow_time(END), STEPS + 1, dtype=D)[:-1].tolist()


class Case:
    """A measurement, the velocity v(x, t), and the noise in the order of use."""

    def __init__(self, kind, sigma_y):
        self.operator = operators.build(KINDS[kind], SHAPE, dtype=D)
        clean = self.operator.forward(0.5 * draw(2, *SHAPE, seed=3))
        self.sigma_y, self.y = sigma_y, clean + sigma_y * draw(*clean.shape, seed=4)
        self.flat_y, self.used = self.y.flatten(1), 0
        self.h = matrix(self.operator.forward, SHAPE) if self.operator.linear else None

    def forward(self, x):
        return self.operator.forward(x.view(-1, *SHAPE)).flatten(1)

    def v(self, x, t):
        times = torch.full((len(x),), t, dtype=D)
        return mixture(RectifiedFlow(), "v")(x.view(-1, *SHAPE), times).flatten(1)

    def noise(self, stream=None):
        self.used += stream is None
        return KeyedNoise(0, KEYS).normal(stream or f"step-{self.used}", SHAPE).double().flatten(1)

    def start(self):
        """What the samplers here start from."""
        t = TIMES[0]
        problem = Problem(self.operator, self.y, KeyedNoise(0, KEYS), self.sigma_y)
        return problem.estimate("pinv", (1 - t) ** 2 / (t**2 + (1 - t) ** 2)).flatten(1)

    def restored(self, **spec):
        sampler = samplers.build({"start": START, **spec})
        found = sampler(mixture(), self.operator, self.y, KeyedNoise(0, KEYS), sigma_y=self.sigma_y)
        return found.image.flatten(1)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("kind", KINDS)
def test_pnp_flow_is_algorithm_3_of_its_paper(kind, sigma_y):
    """In its order: a step towards y, noise, the mean of denoised images. The start is made of y already."""
    draws, lr, alpha = 3, 0.8, 0.4
    case = Case(kind, sigma_y)
    bound = 2.0 if case.h is None else torch.linalg.matrix_norm(case.h, 2).item()
    if kind == "valid blur":
        bound = case.operator.lipschitz  # of the circular blur
    x = z = case.start()
    for n, t in enumerate(TIMES):
        if n > 0:
            leaf = x.clone().requires_grad_()
            misfit = 0.5 * (case.forward(leaf) - case.flat_y).square().sum()
            (gradient,) = torch.autograd.grad(misfit, leaf)
            z = x - lr * (1 - t) ** alpha / bound**2 * gradient
        noisy = [t * z + (1 - t) * case.noise() for _ in range(draws)]
        x = sum(state + (1 - t) * case.v(state, t) for state in noisy) / draws
    found = case.restored(name="pnp_flow", steps=STEPS * draws, draws=draws, lr=lr, alpha=alpha)
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


def test_draws_that_do_not_divide_the_steps_are_refused():
    with pytest.raises(ValueError, match="draws: 5 does not divide the 12 steps"):
        samplers.build({"name": "pnp_flow", "steps": 12})


@pytest.mark.parametrize("kind", LINEAR)
def test_flower_is_algorithm_1_of_its_paper(kind):
    """With γ = 0: argmin ‖y − Hx‖²/σ² + ‖x − x̂₁‖²/r², then (t + δ) μ + (1 − t − δ) z."""
    case = Case(kind, 0.2)
    t = TIMES[0]
    x = t * case.start() + (1 - t) * case.noise("start")
    for t, later in zip(TIMES, [*TIMES[1:], 1.0], strict=True):
        prediction, r = x + (1 - t) * case.v(x, t), (1 - t) / math.sqrt(t**2 + (1 - t) ** 2)
        system = case.h.T @ case.h / 0.2**2 + torch.eye(PIXELS, dtype=D) / r**2
        known = case.flat_y @ case.h / 0.2**2 + prediction / r**2
        x = later * torch.linalg.solve(system, known.T).T
        if later < 1:
            x = x + (1 - later) * case.noise()
    found = case.restored(name="flower", steps=STEPS)
    tolerance = 1e-7 if case.operator.decomposed else 1e-4  # of its solver
    torch.testing.assert_close(found, x, rtol=tolerance, atol=tolerance)


class Given(KeyedNoise):
    """Rows of an identity matrix: those of the image's draw, then those of the measurement's."""

    def __init__(self, sizes):
        super().__init__(0, [""] * sum(sizes))
        self.parts = list(torch.eye(sum(sizes), dtype=D).split(sizes, dim=1))

    def normal(self, stream, shape):
        return self.parts.pop(0).reshape(-1, *shape)


@pytest.mark.parametrize("variance", [0.9, 0.02])
@pytest.mark.parametrize(
    ("kind", "sigma_y"), [*((kind, 0.2) for kind in LINEAR), ("inpaint", 0.0), ("gaussian_blur", 0.0)]
)
def test_flowers_draw_has_the_covariance_of_the_posterior(kind, sigma_y, variance):
    """r² I − r² Hᵀ (r² H Hᵀ + σ²)⁻¹ H r² around the mean; the draw is affine in its noise."""
    case = Case(kind, sigma_y)
    sizes = [PIXELS] if case.operator.decomposed else [PIXELS, case.flat_y.shape[1]]
    y = case.y[:1].expand(sum(sizes), -1, -1, -1)
    prediction = draw(1, *SHAPE, seed=9).expand(sum(sizes), -1, -1, -1)
    problem = Problem(case.operator, y, Given(sizes), sigma_y)
    mean = Flower().refine(problem, prediction, variance).flatten(1)
    drawn = Flower(gamma=1.0).refine(problem, prediction, variance).flatten(1)
    root = (drawn - mean).T
    inner = variance * case.h @ case.h.T + sigma_y**2 * torch.eye(len(case.h), dtype=D)
    gain = variance * case.h.T @ torch.linalg.pinv(inner, rtol=1e-9, hermitian=True)
    covariance = variance * (torch.eye(PIXELS, dtype=D) - gain @ case.h)
    tolerance = 1e-9 if case.operator.decomposed else 1e-4
    assert (root @ root.T - covariance).abs().max() < tolerance * variance
    shift = (case.flat_y[0] - case.h @ prediction[0].flatten()) @ gain.T
    torch.testing.assert_close(mean[0] - prediction[0].flatten(), shift, rtol=0, atol=tolerance)
    half = Problem(case.operator, y, Given(sizes), sigma_y)
    drawn = Flower(gamma=0.5).refine(half, prediction, variance).flatten(1)
    torch.testing.assert_close((drawn - mean).T, 0.5 * root, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["inpaint", "gaussian_blur"])
def test_flower_samples_the_posterior_of_a_white_prior(kind):
    """Of N(0, I) r² is the error's variance exactly: with γ = 1 every state is a draw given y."""
    sigma_y, samples = 0.3, 2000
    case = Case(kind, sigma_y)
    y = case.y[:1].expand(samples, -1, -1, -1)

    class Fast(KeyedNoise):
        def normal(self, stream, shape):
            generator = torch.Generator().manual_seed(crc32(stream.encode()))
            return torch.randn(samples, *shape, generator=generator)

    sampler = samplers.build({"name": "flower", "gamma": 1.0, "steps": 12})
    image = sampler(StandardNormal(), case.operator, y, Fast(0, [""] * samples), sigma_y=sigma_y).image
    covariance = torch.linalg.inv(torch.eye(PIXELS, dtype=D) + case.h.T @ case.h / sigma_y**2)
    mean = covariance @ case.h.T @ case.flat_y[0] / sigma_y**2
    values, vectors = torch.linalg.eigh(covariance)
    scores = (image.flatten(1).double() - mean) @ vectors / values.sqrt()
    # Of 64 means and variances of normal numbers, five standard deviations.
    assert scores.mean(0).abs().max() < 5 / samples**0.5
    assert (scores.square().mean(0) - 1).abs().max() < 5 * (2 / samples) ** 0.5
    sample_covariance = torch.cov(image.flatten(1).double().T)
    assert relative_error(sample_covariance, covariance) < 1.5 * (PIXELS / samples) ** 0.5
