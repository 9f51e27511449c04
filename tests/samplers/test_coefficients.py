"""The integrator's coefficients against closed forms and against scipy's adaptive quadrature."""

from math import exp, log

import numpy as np
import pytest
import scipy.integrate
import torch

from kintsugi import samplers
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.paths import DDPM, RectifiedFlow, VariancePreserving, log_snr
from kintsugi.samplers.coefficients import Drift, composite
from kintsugi.samplers.grids import time_grid
from kintsugi.samplers.guidance import guidance_factor, guidance_strength, match_time
from kintsugi.testing import mixture

D = torch.float64
VP, FLOW, LABELS = VariancePreserving(), RectifiedFlow(), DDPM()
PATHS = {"vp": VP, "ddpm": LABELS, "flow": FLOW}
SINGULAR_VALUES = torch.tensor([0.0, 0.05, 0.4, 1.0], dtype=D)
SHAPE = (1, 4, 4)
T = torch.linspace(0.001, 0.999, 21, dtype=D)


def assert_close(one, other, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(one, dtype=D), torch.as_tensor(other, dtype=D), rtol=tolerance, atol=tolerance
    )


def coefficients(singular_values=SINGULAR_VALUES, sigma_y=0.0, prior=None, **spec):
    sampler = samplers.build({"name": "conjugate", **spec})
    return sampler.coefficients(prior or StandardNormal(), singular_values, sigma_y)


def cumulative(job, log_a, weight):
    """Σ A(t_{k+1}) weight_k over the steps: a step's weights are relative to A at its end."""
    steps = [torch.exp(log_a[k + 1]) * weight(step.advance) for k, step in enumerate(job.steps)]
    return torch.stack(steps).cumsum(0)


# The drift.


def test_drift_of_the_standard_cases():
    """The table of m and n: ε on VP has m = −β/2, n = β/2s; the velocity of a flow is its own drift."""
    m, n = Drift(VP, VP, "eps").unconditional(T)
    assert_close(m, -VP.beta(T) / 2)
    assert_close(n, VP.beta(T) / (2 * VP.s(T)))
    m, n = Drift(FLOW, FLOW, "v").unconditional(T)
    assert_close(m, torch.zeros_like(T))
    assert_close(n, torch.ones_like(T))
    m, n = Drift(FLOW, FLOW, "x0").unconditional(T)
    assert_close(m, -1 / (1 - T))
    assert_close(n, 1 / (1 - T))


@pytest.mark.parametrize("prior_path", PATHS)
@pytest.mark.parametrize("path", PATHS)
def test_the_drift_depends_on_the_distribution_only(path, prior_path):
    """Not on what the network predicts, nor on the path it was trained on."""
    path = PATHS[path]
    t = path.time_of(torch.linspace(-4, 4, 9, dtype=D))
    x = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=D)
    x *= torch.sqrt(path.a(t) ** 2 + path.s(t) ** 2).view(-1, 1, 1, 1)
    native = mixture(path, "x0", SHAPE)(x, t)
    a, s, da, ds = (f(t).view(-1, 1, 1, 1) for f in (path.a, path.s, path.da, path.ds))
    expected = da * native + ds * (x - a * native) / s
    for parametrization in ("eps", "v", "x0"):
        prior = mixture(PATHS[prior_path], parametrization, SHAPE)
        drift = Drift(path, prior.path, parametrization)
        time, scale = match_time(path, prior.path, t)
        u = prior(scale.view(-1, 1, 1, 1) * x, time)
        (p, q), (m, n) = drift.prediction(t), drift.unconditional(t)
        assert_close(p.view(-1, 1, 1, 1) * x + q.view(-1, 1, 1, 1) * u, native, 1e-8)
        moved = m.view(-1, 1, 1, 1) * x + n.view(-1, 1, 1, 1) * u
        assert ((moved - expected).abs() < 1e-8 * (1 + expected.abs().amax((1, 2, 3), keepdim=True))).all()


def test_match_time_keeps_the_log_snr_and_refuses_what_the_prior_never_saw():
    t = torch.tensor([0.3, 0.6, 0.9], dtype=D)
    time, scale = match_time(FLOW, VP, t)
    assert_close(log_snr(VP, time), log_snr(FLOW, t))
    assert_close(scale * FLOW.a(t), VP.a(time))
    with pytest.raises(ValueError, match=r"start, end: .*0\.0001"):
        match_time(FLOW, VP, torch.tensor([0.5, 0.0001], dtype=D))


# Guidance.


def test_guidance_strength_has_the_published_forms():
    beta, a, s = VP.beta(T), VP.a(T), VP.s(T)
    assert_close(guidance_strength(VP, "conjugate", 3.0, T), -0.5 * beta * 3 * a**2)
    assert_close(guidance_strength(VP, "pigdm", 3.0, T), -0.5 * beta * 3)
    assert_close(guidance_strength(VP, "constant", 3.0, T), -0.5 * beta * 3 / s**2)
    assert_close(guidance_strength(FLOW, "conjugate", 3.0, T), 3 * T * (1 - T))
    assert_close(guidance_strength(FLOW, "conjugate", 3.0, torch.zeros(1, dtype=D)), torch.zeros(1))


def test_guidance_factor():
    """On VP r² = s²; without noise it is the indicator of what is measured, and the limit of small noise."""
    variance = (VP.s(T) ** 2)[:, None] * SINGULAR_VALUES**2
    assert_close(guidance_factor(VP, SINGULAR_VALUES, 0.1, T), variance / (variance + 0.01))
    noiseless = guidance_factor(VP, SINGULAR_VALUES, 0.0, T)
    assert torch.equal(noiseless, torch.tensor([0.0, 1, 1, 1], dtype=D).expand(len(T), 4))
    assert_close(guidance_factor(VP, SINGULAR_VALUES, 1e-9, T), noiseless)


# Closed forms.


def test_lambda_is_per_unit_of_the_whole_span():
    """The same λ means the same on labels 0 to 999 as on times 0 to 1."""
    for path, span in ((VP, 1), (LABELS, 999), (FLOW, 1)):
        prior = StandardNormal(path)
        plain, damped = (coefficients(prior=prior, w=0.0, lam=lam, steps=3) for lam in (0.0, -0.6))
        for k, (one, other) in enumerate(zip(plain.steps, damped.steps, strict=True)):
            elapsed = (plain.times[k + 1] - plain.times[k]) / span
            assert_close(torch.log(one.advance.x / other.advance.x), (-0.6 * elapsed).expand(4))


@pytest.mark.parametrize("w", [1.0, 4.0, 15.0])
def test_noiseless_measurement_coefficient(w):
    """From 0 to t it is exp(−w b / 2) − 1 on VP with λ = 0, and A = exp(b / 2 − w b / 2) there."""
    job = coefficients(w=w, steps=9)
    b = VP.integrated_beta(job.times)[:, None]
    log_a = b / 2 - w * b / 2 * (SINGULAR_VALUES > 0)
    closed = torch.exp(-w * b / 2) - 1
    summed = cumulative(job, log_a, lambda weights: weights.y)
    assert_close(summed[:, 1:], (closed[1:] - closed[0]).expand(-1, 3), 1e-12)
    assert_close(summed[:, 0], torch.zeros(9), 1e-12)


def noisy_exponent(b, singular_value, sigma_y):
    """K(b) = ∫ g db on VP, for one singular value (method, section 4)."""
    s, noise = singular_value**2, sigma_y**2
    return b - noise / (s + noise) * log(((s + noise) * exp(b) - s) / noise)


def noisy_log_a(t, singular_value, sigma_y, w, lam):
    b = VP.integrated_beta(torch.tensor(t, dtype=D)).item()
    return lam * t + b / 2 - w * noisy_exponent(b, singular_value, sigma_y) / 2


@pytest.mark.parametrize("w", [1.0, 15.0, 30.0])
@pytest.mark.parametrize("sigma_y", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("lam", [0.0, -0.6])
def test_noisy_conjugation_is_exact(w, sigma_y, lam):
    """A = exp(λ t + b / 2 − w K / 2); with λ = 0 the measurement coefficient is that of e^{−w K / 2}."""
    job = coefficients(w=w, lam=lam, sigma_y=sigma_y, steps=6)
    values = SINGULAR_VALUES.tolist()
    log_a = torch.tensor(
        [[noisy_log_a(t, v, sigma_y, w, lam) for v in values] for t in job.times.tolist()], dtype=D
    )
    for k, step in enumerate(job.steps):
        assert_close(-torch.log(step.advance.x), log_a[k + 1] - log_a[k], 1e-10)
    if lam == 0:
        b = VP.integrated_beta(job.times).tolist()
        closed = torch.tensor(
            [[exp(-w * noisy_exponent(bt, v, sigma_y) / 2) for v in values] for bt in b], dtype=D
        )
        assert_close(cumulative(job, log_a, lambda weights: weights.y), closed[1:] - closed[0], 1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_weight_against_adaptive_quadrature(order):
    """∫ A U ℓⱼ, ∫ A C ℓⱼ and A(tⱼ) ∫ ℓⱼ over a step, ℓⱼ the Lagrange polynomials of the last times."""
    w, lam, sigma_y, value = 4.0, -0.3, 0.2, 0.4
    job = coefficients(torch.tensor([value], dtype=D), sigma_y, w=w, lam=lam, order=order, steps=5)
    times = job.times.tolist()

    def log_a(t):
        return noisy_log_a(t, value, sigma_y, w, lam)

    def drift_u(t):
        b, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
        a, s = exp(-b / 2), (-np.expm1(-b)) ** 0.5
        g = value**2 * s**2 / (value**2 * s**2 + sigma_y**2)
        kappa = -0.5 * beta * w * a**2
        return beta / (2 * s) + kappa * s / a**2 * g

    def drift_e(t):
        b, beta = 0.1 * t + 9.95 * t**2, 0.1 + 19.9 * t
        a, s = exp(-b / 2), (-np.expm1(-b)) ** 0.5
        return 0.5 * beta * w * a * s

    def integral(f, k):
        return scipy.integrate.quad(f, times[k], times[k + 1], epsabs=1e-13, epsrel=1e-11)[0]

    for k in (2, 4):
        weights = job.steps[k].advance
        nodes = times[k - order + 1 : k + 1][::-1]
        assert len(weights.u) == order
        for j, own in enumerate(nodes):

            def basis(t, own=own, nodes=nodes):
                return np.prod([(t - other) / (own - other) for other in nodes if other != own])

            def kernel(t, k=k):
                return exp(log_a(t) - log_a(times[k + 1]))

            for ours, drift in ((weights.u, drift_u), (weights.e, drift_e)):
                expected = integral(lambda t, f=drift: kernel(t) * f(t) * basis(t), k)
                assert_close(ours[j, 0], expected, 1e-9)
            assert_close(weights.f[j, 0], kernel(own) * integral(basis, k), 1e-9)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("start", [0.4, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("schedule", ["constant", "pigdm", "conjugate"])
def test_an_image_that_agrees_with_the_measurement_is_left_alone(schedule, steps, start, sigma_y):
    """Guidance pulls x = a x₀ + s ε with H⁺y = x₀ nowhere: every step carries it along its own path.

    From t = 1 log A grows by up to 10⁵ in a step, so this also proves the quadrature in that regime.
    """
    job = coefficients(SINGULAR_VALUES[1:], sigma_y, w=15.0, schedule=schedule, steps=steps, start=start)
    a, s = VP.a(job.times), VP.s(job.times)
    for k, step in enumerate(job.steps):
        assert_close(step.advance.x * a[k] + step.advance.y, a[k + 1].expand(3), 1e-7)
        assert_close(step.advance.x * s[k] + step.advance.u[0], s[k + 1].expand(3), 1e-7)


def test_the_unconditional_integrator_leaves_all_guidance_outside():
    """Its A is that of w = 0, and guidance enters by f alone."""
    job = coefficients(w=4.0, steps=5, absorb="unconditional", schedule="pigdm")
    plain = coefficients(w=0.0, steps=5)
    for guided, unguided in zip(job.steps, plain.steps, strict=True):
        assert_close(guided.advance.x, unguided.advance.x, 1e-12)
        assert_close(guided.advance.u, unguided.advance.u, 1e-12)
        assert not guided.advance.y.any()
        assert not guided.advance.e.any()
    steps = job.times.diff()
    for k, step in enumerate(job.steps):
        assert_close(step.kappa, guidance_strength(VP, "pigdm", 4.0, job.times[k : k + 1])[0])
        assert_close(step.advance.f[0], step.advance.x * steps[k], 1e-12)


@pytest.mark.parametrize("panels", [1, 2, 14])
def test_quadrature_integrates_polynomials_up_to_every_node(panels):
    nodes, weights, integrals = composite(panels)
    ends = torch.cat([nodes, torch.ones(1, dtype=D)])
    for degree in (0, 1, 7, 20):
        assert_close(integrals @ nodes**degree, ends ** (degree + 1) / (degree + 1), 1e-12)
    assert_close(weights, integrals[-1], 1e-12)


def test_coefficients_are_finite_at_the_ends_of_a_flow_and_refused_where_they_cannot_be():
    flow = StandardNormal(FLOW, "v")
    for path in ("prior", "flow"):
        for absorb in ("conditional", "unconditional"):
            job = coefficients(prior=flow, start=0.0, end=1.0, absorb=absorb, path=path)
            for step in job.steps:
                assert all(torch.isfinite(weight).all() for weight in vars(step.advance).values())
    with pytest.raises(ValueError, match="start: infinite coefficients"):
        _ = coefficients(prior=flow, start=0.0, absorb="unconditional", schedule="pigdm").steps
    with pytest.raises(ValueError, match="start: infinite coefficients"):
        _ = coefficients(prior=StandardNormal(FLOW, "eps"), start=0.0).steps
    with pytest.raises(ValueError, match="end: the coefficients diverge"):
        coefficients(prior=StandardNormal(FLOW, "x0"), end=1.0)


# Grids.


SPANS = {"vp": (0.4, 0.001), "ddpm": (400.0, 3.0), "flow": (0.1, 0.99)}


@pytest.mark.parametrize("grid", ["uniform", "logsnr", "karras"])
@pytest.mark.parametrize("path", SPANS)
def test_grids_meet_their_ends_and_are_monotone(path, grid):
    start, end = SPANS[path]
    for steps in (1, 2, 7):
        times = time_grid(PATHS[path], grid, start, end, steps)
        assert times.dtype == D
        assert (len(times), times[0].item(), times[-1].item()) == (steps + 1, start, end)
        assert (times.diff() * (end - start) > 0).all()


@pytest.mark.parametrize("path", SPANS)
def test_grids_are_spaced_as_their_names_say(path):
    start, end = SPANS[path]
    uniform, logsnr, karras = (
        time_grid(PATHS[path], g, start, end, 6) for g in ("uniform", "logsnr", "karras")
    )
    assert_close(uniform, np.linspace(start, end, 7))
    levels = log_snr(PATHS[path], logsnr)
    assert_close(levels, torch.linspace(levels[0].item(), levels[-1].item(), 7, dtype=D))
    sigma = torch.exp(-log_snr(PATHS[path], karras))
    fraction = torch.arange(7, dtype=D) / 6
    root = sigma[0] ** (1 / 7) + fraction * (sigma[-1] ** (1 / 7) - sigma[0] ** (1 / 7))
    assert_close(sigma, root**7)


@pytest.mark.parametrize("grid", ["logsnr", "karras"])
def test_grids_in_the_noise_level_refuse_infinite_ends(grid):
    with pytest.raises(ValueError, match="grid"):
        time_grid(VP, grid, 0.4, 0.0, 5)
    with pytest.raises(ValueError, match="grid"):
        time_grid(FLOW, grid, 0.0, 0.9, 5)
