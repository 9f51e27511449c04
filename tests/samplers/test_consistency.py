"""CM4IR and PnP-CM against their equations, on the consistency function of a Gaussian; who takes one.

The transcriptions know dense matrices, ᾱ, and the noise in the order of use.
"""

import math
from itertools import pairwise

import pytest
import torch
from kit.consistency import LEAST, GaussianEndpoint, natural_endpoint
from kit.operators import dense as matrix
from kit.samplers import BY_NETWORK, FEW, REQUIRED

from kintsugi import operators, samplers
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.base import prediction_of
from kintsugi.priors.grouped import Grouped
from kintsugi.priors.paths import VarianceExploding
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers import KeyedNoise, SpecError
from kintsugi.samplers.inversion import there_and_back
from kintsugi.samplers.problem import Problem
from kintsugi.testing import Counting, draw, suited

D = torch.float64
SHAPE, PIXELS, KEYS = (1, 8, 8), 64, ["a", "b"]
TAKERS = {"cm4ir", "pnp_cm", "ddim", "latino"}
KINDS = {
    "inpaint": {"name": "inpaint", "mask": "random", "keep": 0.3},
    "bicubic": {"name": "bicubic", "factor": 2},
    "gaussian_blur": {"name": "gaussian_blur", "sigma": 1.0, "taps": 5, "threshold": 0.2},
    "valid blur": {"name": "blur", **REQUIRED["blur"], "threshold": 1e-3},
}
PRIOR = natural_endpoint(SHAPE)


class Case:
    """A measurement, f(x, σ), H as a matrix, and the noise in the order of use."""

    def __init__(self, kind, sigma_y):
        self.operator = operators.build(KINDS[kind], SHAPE, dtype=D)
        clean = self.operator.forward(0.5 * draw(2, *SHAPE, seed=3))
        self.sigma_y, self.y = sigma_y, clean + sigma_y * draw(*clean.shape, seed=4)
        self.flat_y, self.h, self.used = self.y.flatten(1), matrix(self.operator.forward, SHAPE), 0

    def f(self, x, sigma):
        mean = PRIOR.mean.flatten()
        return mean + (x - mean) @ PRIOR.matrix(sigma)

    def noise(self, stream=None):
        self.used += stream is None
        return KeyedNoise(0, KEYS).normal(stream or f"step-{self.used}", SHAPE).double().flatten(1)

    def start(self, sigma):
        """What a warm start is made of; H⁺y where y has no noise."""
        problem = Problem(self.operator, self.y, KeyedNoise(0, KEYS), self.sigma_y)
        return problem.estimate("pinv", sigma**2 / (1 + sigma**2)).flatten(1)

    def towards(self, x, ridge):
        """x − Hᵀ(HHᵀ + ridge)⁻¹(Hx − y), of the singular values that H keeps."""
        if ridge == 0:
            return self.operator.impose(x.view(-1, *SHAPE), self.y).flatten(1)
        inner = self.h @ self.h.T + ridge * torch.eye(len(self.h), dtype=D)
        return x - torch.linalg.solve(inner, self.h @ x.T - self.flat_y.T).T @ self.h

    def restored(self, **spec):
        found = samplers.build(spec)(PRIOR, self.operator, self.y, KeyedNoise(0, KEYS), sigma_y=self.sigma_y)
        assert (found.forwards, found.vjps) == (spec.get("steps", 4), 0)
        return found.image.flatten(1)

    @property
    def tolerance(self):
        return 1e-7 if self.operator.decomposed else 2e-3  # of its solver


def alpha_bar(t):
    return math.exp(-(0.1 * t + 9.95 * t**2))


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("kind", "sigma_y", "zeta"), [
    ("inpaint", 0.0, 0.0), ("bicubic", 0.0, 0.0), ("gaussian_blur", 0.0, 0.0), ("inpaint", 0.2, 0.0),
    ("bicubic", 0.2, 3.0), ("inpaint", 0.2, 3.0), ("valid blur", 0.2, 3.0),
])  # fmt: skip
def test_cm4ir_is_the_algorithm_of_its_paper(kind, sigma_y, zeta, eta):
    """As in the release: ᾱ grows by 1 + γ up to 0.9999; the Polyak term is minus the predicted noise."""
    case, gamma, mu, delta = Case(kind, sigma_y), 1.2, 0.7, [0.3, 0.0, 0.1, 0.05]
    bars = [alpha_bar(0.3)]
    while len(bars) < 4:
        bars.append(min((1 + gamma) * bars[-1], 0.9999))
    sigmas = [math.sqrt(1 - bar) for bar in bars]
    x = case.start(sigmas[0]) + sigmas[0] * case.noise("start")
    for k, sigma in enumerate(sigmas):
        prediction = case.f(x, (1 + delta[k]) * sigma)
        minus = (prediction - x) / sigma
        if k == 3 and sigma_y > 0:
            x = prediction
            break
        x = prediction + mu * (case.towards(prediction, zeta * sigma_y**2) - prediction)
        if k < 3:
            fresh = case.noise() if eta > 0 else 0.0
            x = x + sigmas[k + 1] * (eta * fresh + math.sqrt(1 - eta**2) * minus)
    found = case.restored(name="cm4ir", start=0.3, gamma=gamma, mu=mu, delta=delta, zeta=zeta, eta=eta)
    torch.testing.assert_close(found, x, rtol=case.tolerance, atol=case.tolerance)


def test_cm4ir_with_fresh_noise_alone_is_ddnm_with_a_consistency_function():
    """η = 1, δ = 0, μ = 1: predictions with the measurement in them, renoised, at DDNM's levels σ."""
    case = Case("inpaint", 0.0)
    sampler = samplers.build({"name": "cm4ir", "eta": 1.0, "steps": 3})
    first, second, third = sampler.sigmas().tolist()
    x = case.operator.pinv(case.y).flatten(1) + first * case.noise("start")
    for later in (second, third, 0.0):
        x = case.towards(case.f(x, first), 0.0)
        x, first = (x + later * case.noise() if later else x), later
    torch.testing.assert_close(case.restored(name="cm4ir", eta=1.0, steps=3), x)


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize(("kind", "sigma_y"), [
    ("inpaint", 0.0), ("bicubic", 0.0), ("bicubic", 0.2), ("inpaint", 0.2), ("valid blur", 0.2),
])  # fmt: skip
def test_pnp_cm_is_admm_with_nesterovs_momentum(kind, sigma_y, momentum):
    case, rho = Case(kind, sigma_y), 3.0
    high, low = (math.sqrt(1 / alpha_bar(t) - 1) for t in (0.3, 0.001))
    sigmas = [(high ** (1 / 7) + i / 4 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(4)]
    z = case.start(sigmas[0])
    u, z_hat, u_hat, weight = torch.zeros_like(z), z, torch.zeros_like(z), 1.0
    for k, sigma in enumerate(sigmas):
        x = case.f(z_hat - u_hat + sigma * case.noise("start" if k == 0 else None), sigma)
        # The gradient of ‖y − Hz‖²/σ_y² + ρ ‖z − (x + u)‖² is 0.
        z_new = case.towards(x + u_hat, rho * sigma_y**2)
        u_new = u_hat + x - z_new
        grown = (1 + math.sqrt(1 + 4 * weight**2)) / 2
        share = (weight - 1) / grown if momentum else 0.0
        z_hat, u_hat, weight = z_new + share * (z_new - z), u_new + share * (u_new - u), grown
        z, u = z_new, u_new
    found = case.restored(name="pnp_cm", start=0.3, rho=rho, momentum=momentum)
    torch.testing.assert_close(found, z, rtol=case.tolerance, atol=case.tolerance)


def test_one_step_of_ddim_to_clean_data_is_the_consistency_function():
    """The closed form is where the ODE ends: many small steps of the posterior mean lead there."""
    variances = torch.linspace(0.05, 2, PIXELS, dtype=D)
    mean = torch.zeros(SHAPE, dtype=D)
    endpoint = GaussianEndpoint(mean, torch.diag(variances))
    x, levels = draw(2, *SHAPE), torch.logspace(math.log10(3.0), math.log10(LEAST), 2001, dtype=D)
    along = x.flatten(1)
    for now, later in pairwise(levels.tolist()):
        middle = along * (1 + (later - now) / 2 * now / (variances + now**2))
        half = (now + later) / 2
        along = along + (later - now) * half * middle / (variances + half**2)
    torch.testing.assert_close(endpoint(x, levels[:1].expand(2)).flatten(1), along, rtol=1e-5, atol=1e-5)
    operator = operators.build({"name": "denoise"}, SHAPE, dtype=D)
    sampler = samplers.build({"name": "ddim", "start": 3.0, "end": LEAST, "steps": 1})
    seen = []
    found = sampler(endpoint, operator, x, torch.zeros_like(x), callback=lambda *of: seen.append(of[2])).image
    torch.testing.assert_close(seen[0].flatten(1), along, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, seen[0] + LEAST / 3 * (x - seen[0]))


@pytest.mark.parametrize("name", BY_NETWORK)
def test_a_consistency_function_is_taken_where_it_has_a_meaning_and_refused_elsewhere(name):
    operator = operators.build(KINDS["bicubic"], SHAPE, dtype=D)
    y = operator.forward(0.5 * draw(2, *SHAPE))
    sampler = samplers.build({"name": name, "steps": 4, **FEW.get(name, {})})
    counted = Counting(PRIOR)
    prior = suited(counted, sampler, operator)
    if name in TAKERS:
        image = sampler(prior, operator, y, KeyedNoise(0, KEYS)).image
        assert torch.isfinite(image).all()
        assert counted.forwards == 8
        return
    for call in (
        lambda: sampler.prepare(prior, operator, 0.0, y),
        lambda: sampler(prior, operator, y, KeyedNoise(0, KEYS)),
    ):
        with pytest.raises(ValueError, match=r"^name: \w+ needs E\[x₀ \| x\], .* consistency function"):
            call()
    assert counted.forwards == 0


def test_what_a_prior_predicts_is_known_through_what_is_around_it():
    assert prediction_of(PRIOR) == prediction_of(Tiled(PRIOR, 8, 1, 2)) == "endpoint"
    assert prediction_of(Counting(Grouped(PRIOR, 1))) == "endpoint"
    assert prediction_of(Counting(StandardNormal(VarianceExploding()))) == "mean"


def test_there_and_back_needs_a_denoiser():
    with pytest.raises(ValueError, match=r"^prior_error needs E"):
        there_and_back(PRIOR, draw(1, *SHAPE))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "cm4ir", "delta": [0.1, 0.2]}, "delta: 2 numbers for 4 steps"),
        ({"name": "cm4ir", "delta": -1.0}, "delta"),
        ({"name": "cm4ir", "end": 0.1}, "end"),
        ({"name": "pnp_cm", "rho": 0}, "rho"),
    ],
)
def test_settings_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(SpecError, match=message):
        samplers.build(spec)


def test_the_level_of_the_start_is_that_of_the_noise_and_not_what_the_network_is_told():
    sampler = samplers.build({"name": "cm4ir", "delta": 0.5})
    assert sampler.start_level() == pytest.approx(math.sqrt(1 - alpha_bar(0.25)))
    assert sampler.times()[0] == pytest.approx(1.5 * sampler.start_level())
