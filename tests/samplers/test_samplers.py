"""The samplers against reference trajectories, exact posteriors and their stated orders."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import torch
from kit.samplers import REQUIRED, relative_error

from kintsugi import operators, samplers
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.paths import DDPM, RectifiedFlow, VariancePreserving
from kintsugi.samplers import KeyedNoise, SpecError
from kintsugi.testing import Counting, check_sampler, check_samples, draw, mixture

D = torch.float64
VP, FLOW, LABELS = VariancePreserving(), RectifiedFlow(), DDPM()
GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "conjugate.npz"))
CASES = sorted({key.rsplit("|", 1)[0] for key in GOLDEN if "|" in key})
SHAPE = (1, 8, 8)


def build(name="conjugate", **parameters):
    return samplers.build({"name": name, **parameters})


def bicubic(shape=SHAPE, dtype=D):
    return operators.build({"name": "bicubic", "factor": 2}, shape, dtype=dtype)


def restore(sampler, prior=None, operator=None, y=None, noise=None, sigma_y=0.0, **options):
    """A restoration of two images by default."""
    operator = operator or bicubic()
    y = operator.forward(0.6 * draw(2, *operator.image_shape)) if y is None else y
    noise = draw(len(y), *operator.image_shape, seed=2) if noise is None else noise
    return sampler(prior or mixture(), operator, y, noise, sigma_y=sigma_y, **options)


# Golden trajectories.


class GoldenPrior:
    """The network of golden/README.md."""

    path, parametrization = VP, "eps"

    def __call__(self, x, t):
        return (
            0.9 * x
            + 0.05 * torch.sin(2 * torch.roll(x, 1, dims=-1))
            + 0.03 * torch.cos(3 * torch.roll(x, 2, dims=-2))
        )


def golden(case, field):
    return torch.from_numpy(GOLDEN[f"{case}|{field}"])


def golden_sampler(case):
    method, _, w, lam, steps, start, _ = case.split("|")
    spec = {"w": float(w[1:]), "lam": float(lam[3:]), "steps": int(steps[3:]), "start": 1 - float(start[5:])}
    if method == "pgdm":
        spec |= {"absorb": "unconditional", "schedule": "pigdm"}
    return build(**spec, end=0.001)


@pytest.mark.parametrize("case", CASES)
def test_golden_trajectories(case):
    mask = torch.from_numpy(GOLDEN["mask"])
    spec = {"name": "inpaint", "mask": mask} if "|mask|" in case else {"name": "bicubic"}
    operator = operators.build(spec, (3, 32, 32), dtype=D)
    y = operator.forward(torch.from_numpy(GOLDEN["x_true"]).double())
    torch.testing.assert_close(y.flatten(1).float(), golden(case, "y"), rtol=0, atol=1e-5)
    trajectory = []
    restored = restore(
        golden_sampler(case),
        GoldenPrior(),
        operator,
        y,
        torch.from_numpy(GOLDEN["noise"]).double(),
        callback=lambda k, x, x0: trajectory.append((k, x, x0)),
    )
    assert [k for k, _, _ in trajectory] == list(range(restored.forwards))
    tolerance = 2e-3 if case.startswith("cpgdm") else 1e-4
    assert relative_error(trajectory[0][1], golden(case, "init")) < 1e-5
    assert relative_error(trajectory[-1][2], golden(case, "x0hat")) < tolerance
    # The authors' code returns the state at the end.
    end = VP.a(torch.tensor(0.001, dtype=D))
    assert relative_error(end * restored.image, golden(case, "final")) < tolerance


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("cpgdm")])
def test_golden_coefficients(case):
    """phi_* accumulate A(t_{k+1}) times our weights; their P part adds to the identity part in the range."""
    sampler = golden_sampler(case)
    job = sampler.coefficients(GoldenPrior(), torch.tensor([0.0, 1.0], dtype=D), 0.0)
    b = VP.integrated_beta(job.times)[:, None]
    a = torch.exp(sampler.lam * job.times[:, None] + b / 2 - sampler.w * b / 2 * torch.tensor([0.0, 1.0]))
    weights = [step.advance for step in job.steps]
    ours = {
        "phi_y": torch.stack([w.y[1] for w in weights]) * a[1:, 1],
        "phi_s": torch.stack([w.u[0] for w in weights]) * a[1:],
        "phi_j": torch.stack([w.e[0] for w in weights]) * a[1:],
    }
    for name, increments in ours.items():
        reference = golden(case, name)
        if reference.ndim == 2:
            reference = torch.stack([reference[:, 0], reference.sum(1)], dim=1)
        total = increments.cumsum(0)
        expected = reference[1:] - reference[0]
        assert (total - expected).abs().max() < 2e-5 * expected.abs().max(), name


# No guidance: DDIM.


@pytest.mark.parametrize("path", [VP, LABELS], ids=["vp", "ddpm"])
@pytest.mark.parametrize("end", [None, 0.0])
@pytest.mark.parametrize(
    "sampler", [{"name": "ddim"}, {"w": 0.0}, {"w": 0.0, "absorb": "unconditional"}], ids=str
)
def test_without_guidance_it_is_textbook_ddim(path, end, sampler):
    prior, operator = mixture(path), bicubic()
    y, z = operator.forward(draw(2, *SHAPE)), draw(2, *SHAPE, seed=2)
    sampler = build(**sampler, steps=6, end=end)
    times = sampler.coefficients(prior, torch.ones(1, dtype=D), 0.0).times
    alpha_bar = path.a(times) ** 2
    x = alpha_bar[0].sqrt() * operator.pinv(y) + (1 - alpha_bar[0]).sqrt() * z
    for k in range(6):
        eps = prior(x, times[k].expand(2))
        x0 = (x - (1 - alpha_bar[k]).sqrt() * eps) / alpha_bar[k].sqrt()
        x = alpha_bar[k + 1].sqrt() * x0 + (1 - alpha_bar[k + 1]).sqrt() * eps
    restored = restore(sampler, prior, operator, y, z)
    torch.testing.assert_close(restored.image, x / alpha_bar[-1].sqrt(), rtol=1e-9, atol=1e-9)
    assert (restored.forwards, restored.vjps) == (6, 0)


def damped_pinv(operator, y, sigma_y, a, s):
    """G H⁺y at the noise level of a and s: the image that a start is made of."""
    r2 = s**2 / (a**2 + s**2)

    def damping(singular_values):
        signal = singular_values**2 * r2
        return torch.where(singular_values > 0, signal / (signal + sigma_y**2), 0)

    return operator.spectral_map(damping, operator.pinv(y))


def test_without_guidance_the_noise_level_of_the_measurement_enters_by_the_start_alone():
    operator, t = bicubic(), torch.tensor(0.4, dtype=D)
    y = operator.forward(0.6 * draw(2, *SHAPE))
    noisy = restore(build("ddim"), operator=operator, y=y, sigma_y=0.3).image
    damped = operator.forward(damped_pinv(operator, y, 0.3, VP.a(t), VP.s(t)))
    torch.testing.assert_close(noisy, restore(build("ddim"), operator=operator, y=damped).image)


# Convergence.


@pytest.fixture(scope="module", params=[(0.0, -0.5), (0.1, 0.0)], ids=str)
def limit(request):
    """(σ_y, λ, the limit of a finely resolved guided trajectory)."""
    sigma_y, lam = request.param
    sampler = build(steps=256, order=3, lam=lam, w=3.0, start=0.6, end=0.05)
    return sigma_y, lam, restore(sampler, sigma_y=sigma_y).image


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("absorb", ["conditional", "unconditional"])
def test_both_integrators_converge_to_one_trajectory_at_their_order(limit, absorb, order):
    sigma_y, lam, expected = limit
    errors = [
        relative_error(
            restore(
                build(steps=steps, order=order, absorb=absorb, lam=lam, w=3.0, start=0.6, end=0.05),
                sigma_y=sigma_y,
            ).image,
            expected,
        )
        for steps in (32, 64)
    ]
    assert errors[1] < {1: 2e-2, 2: 2e-3, 3: 2e-4}[order]
    assert order - 0.25 < np.log2(errors[0] / errors[1]) < order + 0.5


def test_without_the_jacobian_both_integrators_still_agree():
    limits = [
        restore(build(steps=100, order=3, absorb=absorb, jacobian=False, w=3.0, end=0.05)).image
        for absorb in ("conditional", "unconditional")
    ]
    assert relative_error(*limits) < 1e-4
    assert relative_error(limits[0], restore(build(steps=100, order=3, w=3.0, end=0.05)).image) > 1e-2


@pytest.mark.parametrize(
    "parameters",
    [{"w": 15.0}, {"name": "pigdm", "w": 4.0}, {"order": 3, "steps": 7}, {"path": "flow", "end": 0.98}],
    ids=str,
)
@pytest.mark.parametrize("path", [VP, FLOW, LABELS], ids=["vp", "flow", "ddpm"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_without_the_jacobian_what_a_network_predicts_does_not_matter(parameters, path, sigma_y):
    sampler = build(**parameters, jacobian=False)
    results, predictions = [], []
    for parametrization in ("eps", "v", "x0"):
        prior = mixture(path, parametrization)
        seen = []
        found = restore(sampler, prior, sigma_y=sigma_y, callback=lambda k, x, x0, seen=seen: seen.append(x0))
        assert found.vjps == 0
        results.append(found.image)
        predictions.append(torch.stack(seen))
    for one, prediction in zip(results[1:], predictions[1:], strict=True):
        torch.testing.assert_close(one, results[0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(prediction, predictions[0], rtol=1e-8, atol=1e-8)
    unguided = restore(
        build(**{**parameters, "w": 0.0}, jacobian=False), mixture(path, "eps"), sigma_y=sigma_y
    )
    assert relative_error(results[0], unguided.image) > 0.05


@pytest.mark.parametrize("parametrization", ["eps", "v", "x0"])
def test_guidance_without_the_jacobian_has_its_closed_form(parametrization):
    """For x₀ ~ N(0, I) on VP, with h = H⁺y: dx/db = ½ w (e^{-b} x − e^{-b/2} h) where H sees, else 0."""
    operator, w = bicubic(), 3.0
    y, z = operator.forward(0.6 * draw(1, *SHAPE)), draw(1, *SHAPE, seed=2)
    h, (start, end) = operator.pinv(y), torch.tensor([0.4, 0.05], dtype=D)
    sampler = build(steps=100, order=3, w=w, jacobian=False, start=0.4, end=0.05)
    found = restore(sampler, StandardNormal(VP, parametrization), operator, y, z).image
    b0, b1 = VP.integrated_beta(start).item(), VP.integrated_beta(end).item()
    scale = np.exp(w / 2 * (np.exp(-b0) - np.exp(-b1)))
    pull = scipy.integrate.quad(
        lambda b: -w / 2 * np.exp(-b / 2 + w / 2 * (np.exp(-b) - np.exp(-b1))), b0, b1, epsabs=1e-12
    )[0]
    x = VP.a(start) * h + VP.s(start) * z
    seen = scale * operator.spectral_map(lambda s: (s > 0).to(s), x) + pull * h
    expected = (seen + x - operator.spectral_map(lambda s: (s > 0).to(s), x)) / VP.a(end)
    assert relative_error(found, expected) < 1e-5


def test_from_pure_noise_of_a_flow_the_jacobian_is_needed():
    """There ε says nothing of the image; the velocity does, and is used with the Jacobian."""
    assert torch.isfinite(restore(build(start=0.0), mixture(FLOW, "v")).image).all()
    with pytest.raises(ValueError, match="start: infinite coefficients"):
        restore(build(start=0.0, jacobian=False), mixture(FLOW, "v"))
    assert torch.isfinite(restore(build(start=0.0, vjp_steps=1), mixture(FLOW, "v")).image).all()


SETTINGS = pytest.mark.parametrize(
    ("parameters", "sigma_y"),
    [({}, 0.0), ({"order": 3}, 0.1), ({"name": "pigdm", "w": 4.0}, 0.1), ({"churn": 1.0}, 0.0)],
    ids=str,
)


@SETTINGS
@pytest.mark.parametrize("parametrization", ["eps", "v"])
def test_the_derivative_in_all_steps_or_none_is_the_jacobian_or_none(parameters, sigma_y, parametrization):
    def found(**more):
        y, prior = bicubic().forward(draw(2, *SHAPE)), mixture(VP, parametrization)
        noise = KeyedNoise(0, ["a", "b"])
        return restore(build(steps=4, **parameters, **more), prior, bicubic(), y, noise, sigma_y=sigma_y)

    for more, same, vjps in (
        ({"vjp_steps": 4}, {}, 4),
        ({"vjp_steps": 7}, {"jacobian": True}, 4),
        ({"vjp_steps": 0}, {"jacobian": False}, 0),
        ({"vjp_steps": 0, "jacobian": False}, {"jacobian": False}, 0),
    ):
        assert torch.equal(found(**more).image, found(**same).image)
        assert found(**more).vjps == vjps


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("parametrization", ["eps", "v"])
@pytest.mark.parametrize("name", ["conjugate", "pigdm"])
def test_after_the_steps_with_a_derivative_it_goes_on_as_one_without(name, parametrization, order):
    """With higher order too: what it extrapolates is another function from there on."""
    if name == "pigdm" and order > 1:
        pytest.skip("of order 1 alone")
    more = {"order": order} if order > 1 else {}
    prior, operator, y = Counting(mixture(VP, parametrization)), bicubic(), bicubic().forward(draw(2, *SHAPE))
    first, whole = build(name, steps=7, vjp_steps=3, **more), build(name, steps=7, **more)
    states, expected = [], []
    restore(whole, prior, operator, y, callback=lambda k, x, x0: expected.append(x))
    restored = restore(first, prior, operator, y, callback=lambda k, x, x0: states.append(x))
    assert prior.recorded[-7:] == [True] * 3 + [False] * 4
    assert restored.vjps == 3
    same = [torch.equal(*pair) for pair in zip(states, expected, strict=True)]
    assert same == [True] * 4 + [False] * 3
    time = whole.coefficients(prior, torch.ones(1, dtype=D), 0.0).times[3]
    noise = (states[3] - VP.a(time) * operator.pinv(y)) / VP.s(time)
    rest = build(name, steps=4, start=time.item(), jacobian=False, **more)
    assert relative_error(restored.image, restore(rest, prior, operator, y, noise).image) < 1e-10


def test_no_steps_with_a_derivative_are_left_without_the_jacobian():
    with pytest.raises(ValueError, match=r"vjp_steps: .* not 2; leave one out"):
        build(vjp_steps=2, jacobian=False)


# The exact posterior of a Gaussian.

POSTERIOR = {
    "vp-eps-conditional": (VP, "eps", {"steps": 150, "order": 3}, 1.5e-2, 1e-3),
    "vp-eps-conditional-euler": (VP, "eps", {"steps": 200}, 1e-1, 3e-2),
    "vp-eps-unconditional": (VP, "eps", {"steps": 100, "order": 3, "absorb": "unconditional"}, 1e-3, 1e-3),
    "vp-x0-conditional": (VP, "x0", {"steps": 100, "order": 3, "grid": "logsnr"}, 1e-3, 1e-3),
    "ddpm-x0-conditional": (LABELS, "x0", {"steps": 60, "order": 3, "grid": "logsnr"}, 1e-3, 1e-3),
    "flow-v-conditional": (FLOW, "v", {"steps": 150, "order": 3}, 3e-3, 5e-3),
}
"""Path, network output, sampler, tolerance of the mean (relative) and of the covariance (absolute)."""


@pytest.mark.slow
@pytest.mark.parametrize(("degradation", "sigma_y"), [("bicubic", 0.0), ("blur", 0.1)])
@pytest.mark.parametrize("setting", POSTERIOR)
def test_samples_from_pure_noise_have_the_exact_gaussian_posterior(setting, degradation, sigma_y):
    """x₀ ~ N(0, I), w = 1, constant schedule: the result is affine in the start noise.

    The unit vectors give its matrix. The mean is pushed through from the posterior's own at the start:
    on VP that is not quite pure noise (a = 0.0066), so that the warm start a G H⁺y would show.
    """
    path, parametrization, parameters, mean_tolerance, covariance_tolerance = POSTERIOR[setting]
    shape, n = (1, 6, 8), 48
    identity = torch.eye(n, dtype=D)
    operator = bicubic(shape)
    if degradation == "blur":
        spec = {"name": "gaussian_blur", "sigma": 1.0, "taps": 9}
        operator = operators.build(spec, shape, dtype=D)
    h = operator.forward(identity.view(n, *shape)).flatten(1).T
    y = operator.forward(draw(1, *shape)) + sigma_y * draw(1, *operator.measurement_shape, seed=1)
    inverse = torch.linalg.pinv(h, rtol=1e-9)
    if sigma_y == 0:
        covariance, mean = identity - inverse @ h, inverse @ y.flatten()
    else:
        covariance = torch.linalg.inv(identity + h.T @ h / sigma_y**2)
        mean = covariance @ h.T @ y.flatten() / sigma_y**2

    sampler = build(w=1.0, schedule="constant", start=path.noise_time, **parameters)
    prior = StandardNormal(path, parametrization)
    times = sampler.coefficients(prior, torch.ones(1, dtype=D), sigma_y).times
    a, s = path.a(times), path.s(times)
    start = a[0] / s[0] * (mean - damped_pinv(operator, y, sigma_y, a[0], s[0]).flatten())
    noise = torch.cat([start[None], start + identity]).view(-1, *shape)
    outputs = restore(sampler, prior, operator, y.expand(n + 1, -1, -1, -1), noise, sigma_y).image.flatten(1)
    matrix = (outputs[1:] - outputs[0]).T
    difference = matrix @ matrix.T - (covariance + (s[-1] / a[-1]) ** 2 * identity)
    assert relative_error(outputs[0], mean) < mean_tolerance
    assert torch.linalg.matrix_norm(difference, 2) < covariance_tolerance


# Paths and parametrisations.

LEVELS = torch.tensor([-0.5, 1.0], dtype=D)
"""log(a/s) where the trajectories of this section begin and end."""


def rescaled(path, parametrization, steps, sampler_path="prior"):
    """The end of a trajectory between two noise levels, whatever path it was followed on."""
    own = {"prior": path, "vp": VP, "flow": FLOW}[sampler_path]
    start, end = own.time_of(LEVELS).tolist()
    sampler = build(steps=steps, order=3, w=2.0, schedule="pigdm", start=start, end=end, path=sampler_path)
    return restore(sampler, mixture(path, parametrization)).image


@pytest.fixture(scope="module")
def on_diffusion():
    return rescaled(VP, "eps", steps=128)


@pytest.mark.parametrize(
    ("path", "parametrization", "sampler_path"),
    [
        (VP, "v", "prior"),
        (VP, "x0", "prior"),
        (LABELS, "eps", "prior"),
        (LABELS, "v", "prior"),
        (LABELS, "x0", "prior"),
        (FLOW, "eps", "prior"),
        (FLOW, "v", "prior"),
        (FLOW, "x0", "prior"),
        (VP, "eps", "flow"),
        (LABELS, "eps", "flow"),
        (FLOW, "v", "vp"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_limit_depends_on_the_distribution_alone(on_diffusion, path, parametrization, sampler_path):
    """Not on the path, nor on what the network predicts (schedules in r² alone, such as pigdm)."""
    assert relative_error(rescaled(path, parametrization, 48, sampler_path), on_diffusion) < 2e-3


@pytest.mark.parametrize("path", [VP, LABELS], ids=["vp", "ddpm"])
def test_an_eps_network_of_a_diffusion_serves_the_flow_exactly(path):
    native = restore(build(w=5.0), mixture(FLOW, "eps")).image
    moved = restore(build(w=5.0, path="flow"), mixture(path, "eps")).image
    torch.testing.assert_close(moved, native, rtol=1e-12, atol=1e-12)


def test_default_times_are_the_same_noise_levels_on_every_path():
    expected = VP.a(torch.tensor([0.4, 0.001], dtype=D)) / VP.s(torch.tensor([0.4, 0.001], dtype=D))
    for path in (VP, LABELS, FLOW):
        times = build().coefficients(mixture(path), torch.ones(1, dtype=D), 0.0).times[[0, -1]]
        torch.testing.assert_close(path.a(times) / path.s(times), expected, rtol=1e-9, atol=0)


def test_presets_are_settings_of_the_one_integrator():
    plain = build(absorb="unconditional", schedule="pigdm", w=3.0, steps=4)
    assert torch.equal(restore(build("pigdm", w=3.0, steps=4)).image, restore(plain).image)


# What holds for every job.


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize(
    ("parameters", "vjps_per_step"),
    [({}, 1), ({"absorb": "unconditional"}, 1), ({"jacobian": False}, 0), ({"w": 0.0}, 0)],
    ids=str,
)
def test_evaluations_are_counted_honestly(parameters, vjps_per_step, order, steps):
    prior = Counting(mixture())
    restored = restore(build(steps=steps, order=order, **parameters), prior)
    assert (restored.forwards, restored.vjps) == (steps, steps * vjps_per_step)
    assert (prior.forwards, prior.vjps) == (2 * restored.forwards, 2 * restored.vjps)
    assert prior.recorded == [vjps_per_step > 0] * steps
    assert not restored.image.requires_grad


@pytest.mark.parametrize("parameters", [{"vjp_steps": 2}, {"churn": 1.0}, {"schedule": "pigdm"}], ids=str)
def test_other_settings_have_the_properties_of_every_sampler(parameters):
    """Nothing depends on the batch or the job before, and evaluations are counted: see kintsugi.testing."""
    check_sampler({"name": "conjugate", "steps": 4, **parameters})


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_extrapolation_has_them_too(sigma_y):
    """For linear operators alone."""
    y = bicubic().forward(draw(3, *SHAPE))
    check_samples(build(order=3), build(order=3), bicubic(), y, sigma_y)


@pytest.mark.parametrize("sigma_y", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("name", operators.REGISTRY)
def test_the_conjugate_sampler_is_stable_at_every_guidance_strength(name, sigma_y):
    """Where the released implementation diverges (mean |x| of 6e19)."""
    shape = (3, 16, 16)
    operator = operators.build({"name": name, **REQUIRED.get(name, {})}, shape)
    y = operator.forward(draw(2, *shape).float().clamp(-1, 1))
    y = y + sigma_y * draw(*y.shape, seed=1).float()
    for w in (1.0, 30.0):
        image = restore(build(w=w), GoldenPrior(), operator, y, sigma_y=sigma_y).image
        assert torch.isfinite(image).all()
        assert image.abs().mean() < 2


# Errors.


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"sampler\.name: missing"),
        ({"name": "ddpm"}, r"sampler\.name: .*conjugate"),
        ({"name": "conjugate", "stepz": 5}, r"sampler\.stepz: .*steps"),
        ({"name": "ddim", "w": 1.0}, r"sampler\.w"),
        ({"name": "conjugate", "steps": 0}, r"sampler\.steps"),
        ({"name": "conjugate", "steps": 2.5}, r"sampler\.steps"),
        ({"name": "conjugate", "w": -1.0}, r"sampler\.w"),
        ({"name": "conjugate", "w": float("inf")}, r"sampler\.w"),
        ({"name": "conjugate", "lam": float("nan")}, r"sampler\.lam"),
        ({"name": "conjugate", "order": 4}, r"sampler\.order"),
        ({"name": "conjugate", "grid": "log"}, r"sampler\.grid"),
        ({"name": "conjugate", "absorb": "all"}, r"sampler\.absorb"),
        ({"name": "conjugate", "schedule": "linear"}, r"sampler\.schedule"),
        ({"name": "conjugate", "path": "ve"}, r"sampler\.path"),
        ({"name": "conjugate", "start": "early"}, r"sampler\.start"),
    ],
    ids=str,
)
def test_a_spec_that_does_not_fit_is_refused_by_field(spec, message):
    with pytest.raises(SpecError, match=message):
        samplers.build(spec)


@pytest.mark.parametrize(
    ("parameters", "path", "message"),
    [
        ({"start": 1.2}, VP, "start: 1.2"),
        ({"start": -0.1}, VP, "start: -0.1"),
        ({"end": -0.001}, VP, "end: -0.001"),
        ({"start": 1000}, LABELS, "start: 1000"),
        ({"start": 0.001, "end": 0.4}, VP, "start, end: 0.001 to 0.4"),
        ({"start": 0.4, "end": 0.4}, VP, "start, end"),
        ({"start": 0.9, "end": 0.1}, FLOW, "start, end: 0.9 to 0.1"),
        ({"start": 1e-5, "path": "flow"}, VP, "start, end: .* does not reach"),
        ({"end": 0.0, "grid": "karras"}, VP, "grid"),
        ({"end": 0.0, "schedule": "constant"}, VP, "end: .* diverge"),
    ],
    ids=lambda value: str(value) if isinstance(value, str | dict) else type(value).__name__,
)
def test_times_that_lead_nowhere_are_refused_by_name(parameters, path, message):
    with pytest.raises(ValueError, match=message):
        restore(build(**parameters), mixture(path))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="noise"):
        restore(build(), noise=draw(1, *SHAPE))


@pytest.mark.slow
def test_importing_operators_and_samplers_imports_neither_ray_nor_diffusers():
    code = "import sys; from kintsugi import operators, samplers; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert "torch" in loaded
    assert not {"ray", "diffusers", "pyarrow"} & set(loaded)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_the_start_leaves_drowned_directions_to_the_prior(sigma_y):
    """x = a G H⁺y + s z: without noise H⁺y itself; with it, what H⁺ amplified is damped by g."""
    operator = operators.build({"name": "gaussian_blur", "sigma": 2.0, "taps": 9}, (1, 16, 16), dtype=D)
    y = operator.forward(0.6 * draw(2, 1, 16, 16)) + sigma_y * draw(2, 1, 16, 16, seed=5)
    z, seen = draw(2, 1, 16, 16, seed=2), []
    restore(
        build(steps=1, w=5),
        StandardNormal(),
        operator,
        y,
        z,
        sigma_y,
        callback=lambda k, x, x0_hat: seen.append(x),
    )
    t = torch.tensor(0.4, dtype=D)
    a, s = VP.a(t), VP.s(t)
    expected = a * damped_pinv(operator, y, sigma_y, a, s) + s * z
    torch.testing.assert_close(seen[0], expected)
