"""Corrections with the covariance of a prediction's error, against closed forms."""

import json
from itertools import pairwise

import pytest
import scipy.fft
import torch
from kit.operators import dense

from kintsugi import operators, priors, samplers
from kintsugi.operators import SpecError
from kintsugi.priors.analytic import Analytic
from kintsugi.priors.natural import FOLDER
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.covariance import Belief, local_deviation
from kintsugi.samplers.descent import PATH, Denoiser
from kintsugi.samplers.errors import frequencies_of, read_table, wiener
from kintsugi.samplers.problem import Problem
from kintsugi.testing import check_sampler, draw, mixture

D = torch.float64
SHAPE, PIXELS = (1, 8, 8), 64
ROWS = torch.from_numpy(scipy.fft.dct(torch.eye(8, dtype=D).numpy(), axis=0, norm="ortho"))
POWER = 0.02 / frequencies_of(8, 8) ** 1.5
TASKS = {
    "denoise": {"name": "denoise"},
    "box": {"name": "inpaint", "mask": "box"},
    "random": {"name": "inpaint", "mask": "random", "keep": 0.3},
    "bicubic": {"name": "bicubic", "factor": 2},
    "blur": {"name": "gaussian_blur", "sigma": 1.0, "taps": 5, "threshold": 0.2},
    "solved": {
        "name": "blur",
        "kernel": [[1.0, 2.0, 1.0], [2.0, 5.0, 2.0], [1.0, 0.0, 1.0]],
        "boundary": "valid",
    },
}
ON_TASKS = pytest.mark.parametrize("task", TASKS)


class Texture(Analytic):
    """x₀ ~ N(0, Ψᵀ diag(POWER) Ψ), Ψ the DCT."""

    def denoise(self, x, a, s):
        return ROWS.T @ (a * POWER / (a**2 * POWER + s**2) * (ROWS @ x @ ROWS.T)) @ ROWS


def errors(sigma, frequencies):
    """Of the denoiser of `Texture`."""
    power = 0.02 / frequencies**1.5
    return power * sigma**2 / (power + sigma**2)


def covariance(variances):
    """Ψᵀ diag(c) Ψ, dense."""
    whole = torch.kron(ROWS, ROWS)
    return whole.T * variances.flatten() @ whole


class Fast(KeyedNoise):
    """Noise for many samples at once."""

    def normal(self, stream, shape):
        generator = torch.Generator().manual_seed(sum(stream.encode()))
        return torch.randn(len(self.keys), *shape, generator=generator, dtype=D)


@pytest.fixture
def own_errors(monkeypatch):
    monkeypatch.setattr("kintsugi.samplers.covariance.errors_of", lambda which, prior: errors)


def build(**parameters):
    return samplers.build({"name": "covariance", "steps": 1, "start": 0.7, **parameters})


def images(count, seed=3):
    white = torch.randn(count, PIXELS, generator=torch.Generator().manual_seed(seed), dtype=D)
    return (white @ torch.linalg.cholesky(covariance(POWER)).T).view(count, *SHAPE)


@ON_TASKS
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.usefixtures("own_errors")
def test_on_a_gaussian_prior_one_step_from_any_state_is_the_exact_posterior_mean(task, sigma_y):
    operator = operators.build(TASKS[task], SHAPE, dtype=D)
    y = operator.forward(images(2))
    y = y + sigma_y * draw(*y.shape, seed=4)
    states = []
    found = build(init="pinv")(
        Texture(),
        operator,
        y,
        KeyedNoise(0, ["a", "b"]),
        sigma_y=sigma_y,
        callback=lambda *s: states.append(s),
    )
    (_, x, _), h = states[0], dense(operator.forward, SHAPE)
    a, s = PATH.a(torch.tensor(0.7, dtype=D)), PATH.s(torch.tensor(0.7, dtype=D))
    # Of x₀ given both x = a x₀ + s z and y.
    believed = torch.linalg.inv(
        torch.linalg.inv(covariance(POWER)) + a**2 / s**2 * torch.eye(PIXELS, dtype=D)
    )
    mean = x.flatten(1) * a / s**2 @ believed
    floor = 0.01**2 if task == "solved" else 0  # what is ascribed to a pixel, as `solved_for` says
    inner = torch.linalg.pinv(
        h @ believed @ h.T + (sigma_y**2 + floor) * torch.eye(len(h), dtype=D), rtol=1e-12
    )
    expected = mean + (y.flatten(1) - mean @ h.T) @ inner @ h @ believed
    torch.testing.assert_close(found.image.flatten(1), expected, rtol=0, atol=1e-5)
    if sigma_y == 0 and task != "solved":
        torch.testing.assert_close(operator.forward(found.image), y, rtol=0, atol=1e-9)


def test_a_measurement_alike_in_every_direction_is_no_matter_of_iterations(monkeypatch):
    """σ of each sample its own; with M they are."""
    operator = operators.build({"name": "denoise"}, SHAPE, dtype=D)
    assert operator.isotropic
    sigma = torch.tensor([0.1, 0.4], dtype=D).view(2, 1, 1, 1)
    problem = Problem(operator, images(2), KeyedNoise(0, ["a", "b"]), sigma)
    prediction, belief = images(2, seed=5), Belief(errors, 1.0, 1.0, (8, 8))
    one = torch.ones(2, 1, 8, 8, dtype=D)
    iterated = belief.correct(problem, prediction, one)
    gains = belief.variances / (belief.variances + sigma**2)
    expected = prediction + ROWS.T @ (gains * (ROWS @ (problem.y - prediction) @ ROWS.T)) @ ROWS
    torch.testing.assert_close(iterated, expected, rtol=0, atol=1e-9)
    monkeypatch.setattr("kintsugi.samplers.lmmse.conjugate_gradients", None)
    torch.testing.assert_close(belief.correct(problem, prediction, None), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("local", [False, True])
def test_gauss_newton_finds_the_closed_form_of_a_linear_operator(local):
    """`compose` hides that it is linear; hdr clips nothing here."""
    plain = operators.build({"name": "bicubic", "factor": 2}, SHAPE, dtype=D)
    parts = [{"name": "bicubic", "factor": 2}, {"name": "hdr", "factor": 1.0}]
    hidden = operators.build({"name": "compose", "operators": parts}, SHAPE, dtype=D)
    assert not hidden.linear
    y, prediction, belief = (
        0.3 * plain.forward(images(2)),
        0.1 * images(2, seed=5),
        Belief(errors, 1.0, 1.0, (8, 8)),
    )
    deviation = local_deviation(prediction) if local else None
    exact, found = (
        belief.correct(Problem(operator, y, KeyedNoise(0, ["a", "b"]), 0.2), prediction, deviation)
        for operator in (plain, hidden)
    )
    # The 0.01² that is added to σ_y² = 0.2².
    assert (found - exact).norm() < 3e-3 * (exact - prediction).norm()


@pytest.mark.parametrize("name", ["hdr", "quantize", "jpeg", "phase_retrieval"])
def test_gauss_newton_steps_lessen_the_misfit_of_a_non_linear_operator(name):
    shape = (3, 16, 16)
    operator = operators.build({"name": name}, shape, dtype=D)
    truth = 0.4 * draw(3, *shape, seed=1)
    y = operator.forward(truth)
    problem = Problem(operator, y, KeyedNoise(0, ["a", "b", "c"]), 0.05)
    belief = Belief(wiener, 1.0, 1.0, shape[1:])
    prediction = truth + 0.3 * draw(3, *shape, seed=2)
    found = belief.correct(problem, prediction, None)

    def misfit(x):
        return (operator.forward(x) - y).square().sum((1, 2, 3))

    assert (misfit(found) < 0.95 * misfit(prediction)).all()
    alone = Problem(operator, y[1:2], KeyedNoise(0, ["b"]), 0.05)
    torch.testing.assert_close(belief.correct(alone, prediction[1:2], None), found[1:2])


@pytest.mark.parametrize("eta", [0.0, 0.85])
@pytest.mark.parametrize("task", ["box", "random", "bicubic", "blur"])
def test_with_the_identity_for_c_it_is_ddnm(monkeypatch, task, eta):
    monkeypatch.setattr(
        "kintsugi.samplers.covariance.errors_of", lambda *_: lambda s, f: torch.full_like(f, 0.3)
    )
    operator = operators.build(TASKS[task], SHAPE, dtype=D)
    y, noise = operator.forward(images(2)), KeyedNoise(0, ["a", "b"])
    ours = build(steps=4, eta=eta)(mixture(), operator, y, noise)
    theirs = samplers.build({"name": "ddnm", "steps": 4, "start": 0.7, "init": "lmmse", "eta": eta})
    torch.testing.assert_close(ours.image, theirs(mixture(), operator, y, noise).image, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("own_errors")
def test_the_next_state_is_as_noisy_as_its_level_in_every_direction():
    """With λ = 1, of a Gaussian prior: a' (x̂ − x₀) and the fresh noise together have variance s'²."""
    operator = operators.build({"name": "gaussian_blur", "sigma": 0.7, "taps": 5}, SHAPE, dtype=D)
    count, sigma_y = 20000, 0.5
    noise, truth = Fast(0, ["k"] * count), images(count)
    y = operator.forward(truth)
    y = y + sigma_y * torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=D)
    problem, sampler = Problem(operator, y, noise, sigma_y), build(steps=2, trust=1, eta=1)
    now, later, _ = sampler.prepare(Texture(), operator, sigma_y, truth)
    x = now.a * truth + now.s * torch.randn(truth.shape, generator=torch.Generator().manual_seed(8), dtype=D)
    state, _ = sampler.step(problem, Denoiser(Texture(), None), x, now, later)
    variance = operator.to_spectral(state - later.a * truth).square().mean((0, 1)) / later.s**2
    assert operator.singular_values.min() > 0
    assert (variance - 1).abs().max() < 5 * (2 / count) ** 0.5
    plain = later.a * problem.operator.to_spectral(
        sampler.step(problem, Denoiser(Texture(), None), x, now, later)[1] - truth
    )
    counted_twice = plain.square().mean((0, 1)) / later.s**2
    assert counted_twice.max() > 0.08, "there is nothing to account for"


def test_with_large_trust_the_fresh_noise_is_that_of_ddnm_plus():
    """C = c I, λ → ∞: y's own value, and what the level has more of noise than y, where y is sharper."""
    operator = operators.build({"name": "inpaint", "mask": "box"}, SHAPE, dtype=D)
    y, keys = operator.forward(images(2)) + 0.2 * draw(2, *SHAPE), KeyedNoise(0, ["a", "b"])
    ours = build(steps=2, trust=1e6, eta=1)
    theirs = samplers.build({"name": "ddnm", "steps": 2, "start": 0.7, "eta": 1})
    states = []
    now, later, _ = ours.prepare(mixture(), operator, 0.2, y)
    assert later.sigma > 0.2
    for sampler in (ours, theirs):
        problem = Problem(operator, y, keys, 0.2)
        state, _ = sampler.step(problem, Denoiser(mixture(), None), 0.5 * draw(2, *SHAPE, seed=7), now, later)
        states.append(state * (operator.singular_values > 0))
    torch.testing.assert_close(*states, rtol=0, atol=2e-4)


@pytest.mark.parametrize("local", [False, True])
def test_what_is_drawn_at_the_end_has_the_covariance_of_what_is_unknown(local):
    operator = operators.build(TASKS["random"], SHAPE, dtype=D)
    count, sigma_y = 8000, 0.2
    belief = Belief(errors, 1.0, 1.0, SHAPE[1:])
    deviation = local_deviation(images(1)) if local else None
    h, c = dense(operator.forward, SHAPE), covariance(belief.variances)
    if local:
        m = deviation.flatten()
        c = m[:, None] * c * m
    gain = c @ h.T @ torch.linalg.inv(h @ c @ h.T + sigma_y**2 * torch.eye(PIXELS, dtype=D))
    expected = c - gain @ h @ c
    problem = Problem(operator, torch.zeros(count, *SHAPE, dtype=D), Fast(0, ["k"] * count), sigma_y)
    drawn = belief.draw(problem, deviation).flatten(1)
    error = (drawn.T @ drawn / count - expected).abs()
    scale = (expected.diag()[:, None] * expected.diag()).sqrt()
    assert (error / scale).max() < 6 / count**0.5


@pytest.mark.parametrize("task", ["box", "bicubic", "blur"])
def test_variances_along_the_operators_directions(task):
    """Exact for products of factors, and by 24 probes for others."""
    operator = operators.build(TASKS[task], (3, 8, 8), dtype=D)
    belief = Belief(errors, 1.0, 1.0, (8, 8))
    one = operators.build(TASKS[task], SHAPE, dtype=D)
    v = dense(one.to_spectral, SHAPE)
    expected = torch.einsum("ip,pq,iq->i", v, covariance(belief.variances), v)
    found = belief.along(operator).expand_as(operator.to_spectral(draw(1, 3, 8, 8)))[0, 0].flatten()
    tolerance = 1e-9 if task != "box" else 6 * (2 / 72) ** 0.5
    assert (found / expected - 1).abs().max() < tolerance


@pytest.mark.parametrize("parameters", [{"local": True, "eta": 0.5}, {"extrapolate": 0.3, "trust": 1}])
def test_its_options_keep_the_properties_of_a_sampler(parameters):
    check_sampler({"name": "covariance", "steps": 3, **parameters})


def table(**others):
    values = {"prior": "0" * 64, "size": 8, "precision": "float32", "images": 8, "sigmas": [0.1, 1.0]}
    values |= {"frequencies": [0.05, 0.2, 0.7], "variances": [[0.01, 0.008, 0.002], [1.0, 0.1, 0.01]]}
    return {**values, **others}


def write(folder, **others):
    path = folder / "errors.json"
    path.write_text(json.dumps(table(**others)))
    return path


def test_a_table_is_linear_in_logarithms_between_its_rings_and_levels(tmp_path):
    found = read_table(write(tmp_path))
    at = torch.tensor([0.01, 0.05, 0.1, 0.7, 0.71], dtype=D)
    torch.testing.assert_close(found(0.1, at)[[1, 3]], torch.tensor([0.01, 0.002], dtype=D))
    torch.testing.assert_close(found(0.1, at)[2], torch.tensor((0.01 * 0.008) ** 0.5, dtype=D))
    torch.testing.assert_close(found(10**-0.5, at)[1], torch.tensor(0.1, dtype=D))
    assert found(0.01, at)[0] == found(0.1, at)[1]
    assert found(9.0, at)[4] == found(1.0, at)[3]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"sigmas": [1.0, 0.1]}, "sigmas"),
        ({"variances": [[0.1, 0.1, 0.1]]}, "variances"),
        ({"variances": [[0.01, -0.008, 0.002], [1.0, 0.1, 0.01]]}, "variances.0.1"),
        ({"frequencies": [0.05, 0.2, float("nan")]}, "frequencies.2"),
        ({"code": "x"}, "code"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, others, message):
    path = write(tmp_path, **others)
    with pytest.raises(ValueError, match=f"covariance: .*{message}"):
        read_table(path)


def test_a_table_of_another_prior_and_a_missing_file_are_refused(tmp_path):
    operator = operators.build(TASKS["box"], (3, 8, 8), dtype=D)
    prior = priors.load({"name": "natural"})
    path = write(tmp_path)
    for which, message in (
        (str(path), "is of the prior 000000000000"),
        (str(tmp_path / "none.json"), "cannot be read"),
    ):
        with pytest.raises(ValueError, match=f"covariance: .*{message}"):
            build(covariance=which).prepare(prior, operator, 0.0, torch.empty(0))
    with pytest.raises(SpecError, match="covariance"):
        build(covariance="calibrated")


def test_the_embedded_prior_comes_with_a_table_of_its_own():
    found = read_table(FOLDER / "errors.json")
    assert found.prior == priors.load({"name": "natural"}).sha256
    whole = torch.tensor(found.variances)
    assert (whole[0] < 1.5 * found.sigmas[0] ** 2).all()
    # Errors grow with the noise, and are less than it.
    assert all((later > before).float().mean() > 0.9 for before, later in pairwise(whole))
