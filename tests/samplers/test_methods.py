"""Every registered method: what holds for all of them, and each against its paper's algorithm.

The transcriptions know nothing of the samplers' code: dense matrices, ᾱ, and the noise that the
samplers draw (streams "start", "step-1", "step-2", … in the order of use).
"""

from itertools import islice, pairwise
from zlib import crc32

import numpy as np
import pytest
import scipy.fft
import torch
from kit.operators import dense as matrix
from kit.posterior import SAMPLERS, Posterior, bias, natural_texture
from kit.samplers import BY_NETWORK, FEW, REQUIRED, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from kintsugi import operators, priors, samplers
from kintsugi.numerics import conjugate_gradients, nth
from kintsugi.operators.base import Linear, Nonlinear
from kintsugi.priors.analytic import LowRankMixture, StandardNormal, natural_spectrum
from kintsugi.priors.paths import DDPM, RectifiedFlow, VariancePreserving
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.lmmse import TOLERANCE, linear_mmse, spectrum
from kintsugi.samplers.problem import Problem
from kintsugi.testing import check_sampler, draw, mixture, suited

D = torch.float64
VP, FLOW, LABELS = VariancePreserving(), RectifiedFlow(), DDPM()
SHAPE, COLOUR = (1, 8, 8), (3, 16, 16)
PIXELS = 64
KEYS = ["a", "b"]


def build(name="conjugate", **parameters):
    """A sampler of four steps."""
    return samplers.build({"name": name, "steps": 4, **FEW.get(name, {}), **parameters})


def degradation(name, shape=SHAPE, dtype=D, **parameters):
    return operators.build({"name": name, **REQUIRED.get(name, {}), **parameters}, shape, dtype=dtype)


def restore(sampler, operator, y, noise=None, sigma_y=0.0, prior=None):
    keyed = KeyedNoise(0, KEYS) if noise is None else noise
    return sampler(suited(prior or mixture(), sampler, operator), operator, y, keyed, sigma_y=sigma_y)


def measured(operator, sigma_y=0.0, batch=2):
    """Measurements of smooth images with values about [-1, 1]."""
    _, height, width = operator.image_shape
    white = torch.fft.fft2(draw(batch, *operator.image_shape, seed=3))
    images = 0.5 * torch.fft.ifft2(natural_spectrum(height, width).sqrt() * white).real
    y = operator.forward(images.to(operator.singular_values))
    return y + sigma_y * draw(*y.shape, seed=4).to(y)


class Fast(KeyedNoise):
    """Noise for many samples at once: a function of (seed, stream)."""

    def normal(self, stream, shape):
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {stream}".encode()))
        return torch.randn(len(self.keys), *shape, generator=generator)


# What holds for every method.

ALL = pytest.mark.parametrize("name", BY_NETWORK)


@pytest.fixture(scope="module")
def degradations():
    """Every registered operator, built once."""
    return {name: degradation(name, COLOUR, torch.float32) for name in operators.REGISTRY}


PRIORS = (StandardNormal(VP, "eps"), StandardNormal(FLOW, "v"), StandardNormal(LABELS, "x0"))


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@ALL
def test_any_method_runs_with_any_operator_and_any_prior(degradations, name, sigma_y):
    """Each with each: the three priors take turns."""
    sampler, first = build(name), BY_NETWORK.index(name)
    for turn, (kind, operator) in enumerate(degradations.items(), first):
        y, prior = measured(operator, sigma_y), PRIORS[turn % 3]
        restored = restore(sampler, operator, y, sigma_y=sigma_y, prior=prior)
        assert restored.image.shape == (2, *COLOUR), kind
        assert restored.image.dtype == torch.float32, kind
        assert torch.isfinite(restored.image).all(), (kind, prior.parametrization)
        assert restored.image.abs().mean() < 100, (kind, prior.parametrization)


@ALL
def test_a_sampler_keeps_nothing_of_the_job_before(name):
    """Each job differs from the one before in one thing; used again, a sampler is as good as new."""
    used, bicubic = build(name), degradation("bicubic", factor=2)
    first = {"operator": bicubic, "sigma_y": 0.1, "prior": mixture()}
    noiseless = first | {"sigma_y": 0.0}
    half = noiseless | {"operator": degradation("inpaint", mask="half")}
    flow = half | {"prior": mixture(FLOW, "v")}
    for job in (first, noiseless, half, flow, first):
        y = measured(job["operator"], job["sigma_y"])
        assert torch.equal(restore(used, y=y, **job).image, restore(build(name), y=y, **job).image)


class HostReads(TorchDispatchMode):
    """Counts values that the host reads from a tensor: on a GPU it would wait for them."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("operator", "sigma_y"), [("bicubic", 0.0), ("bicubic", 0.1), ("hdr", 0.1), ("blur", 0.1)]
)
@ALL
def test_no_step_waits_for_the_device(name, operator, sigma_y):
    """Twice the steps read no more values; the network here is one that reads none itself."""

    class Network:
        path, parametrization = VP, "eps"

        def __call__(self, x, t):
            return 0.9 * x + 0.1 * torch.tanh(x)

    degrade, counts = degradation(operator, COLOUR, torch.float32), []
    y = measured(degrade, sigma_y)
    network = Network()
    for steps in (2, 4):
        sampler = build(name, steps=steps)
        restore(sampler, degrade, y, sigma_y=sigma_y, prior=network)  # coefficients, once per job
        with HostReads() as reads:
            restore(sampler, degrade, y, sigma_y=sigma_y, prior=network)
        counts.append(reads.count)
    # Adam counts its steps in a tensor on the host, DAPS' spread is one on the host for each level. CDIM and
    # SITCOM ask after each of their steps whether any sample needs one more: an evaluation is worth the wait.
    assert counts[0] == counts[1] or name in ("reddiff", "daps", "dmplug", "cdim", "sitcom")


@pytest.mark.slow
@ALL
def test_every_sampler_has_the_properties_that_are_offered_to_authors(name):
    check_sampler({"name": name, "steps": 4, **FEW.get(name, {})})


class OneStart(KeyedNoise):
    """The start of sample "a" for all; their own noise in the steps."""

    def normal(self, stream, shape):
        keys = ["a"] * len(self.keys) if stream == "start" else self.keys
        return KeyedNoise(self.seed, keys).normal(stream, shape)


@ALL
def test_a_method_takes_a_tensor_as_noise_exactly_if_its_steps_are_deterministic(name):
    operator, sampler = degradation("bicubic", factor=2), build(name)
    y = measured(operator, batch=1).expand(2, -1, -1, -1)
    first, second = restore(sampler, operator, y, OneStart(0, KEYS)).image
    start = KeyedNoise(0, ["a", "a"]).normal("start", SHAPE)
    if torch.allclose(first, second, rtol=1e-9, atol=1e-9):
        torch.testing.assert_close(restore(sampler, operator, y, start).image[0], first)
    else:
        with pytest.raises(ValueError, match=r"^noise: .*KeyedNoise"):
            restore(sampler, operator, y, start)


@pytest.mark.parametrize("operator", ["bicubic", "inpaint", "gaussian_blur"])
@ALL
def test_projection_imposes_a_noiseless_measurement_and_nothing_else(name, operator):
    operator = degradation(operator)
    y = measured(operator)
    plain = restore(build(name), operator, y).image
    projected = restore(build(name, project=True), operator, y).image
    torch.testing.assert_close(operator.forward(projected), y, rtol=1e-9, atol=1e-9)
    change = projected - plain
    torch.testing.assert_close(operator.project(change), change, rtol=1e-9, atol=1e-9)


@ALL
def test_projection_onto_a_noisy_measurement_is_refused(name):
    operator = degradation("bicubic")
    with pytest.raises(ValueError, match=r"^project: "):
        restore(build(name, project=True), operator, measured(operator), sigma_y=0.1)
    sampler = build(name, project=True)
    with pytest.raises(ValueError, match=r"^project: "):
        sampler.prepare(suited(mixture(), sampler, operator), operator, 0.1, torch.zeros(1))


@ALL
def test_single_precision_agrees_with_double(name):
    double, single = (degradation("bicubic", factor=2, dtype=dtype) for dtype in (D, torch.float32))
    y = measured(single, 0.1)
    image = restore(build(name), single, y, sigma_y=0.1).image
    assert image.dtype == torch.float32
    assert relative_error(image.double(), restore(build(name), double, y.double(), sigma_y=0.1).image) < 1e-3


DESCENTS = sorted(set(BY_NETWORK) - {"conjugate", "ddim", "pigdm"})


@pytest.mark.parametrize("name", DESCENTS)
def test_the_published_methods_depend_on_the_distribution_alone(name):
    """Not on the prior's path, nor on what its network predicts: x̂₀ at a noise level is all they see."""
    operator = degradation("gaussian_blur", sigma=1.0, taps=5)
    y = measured(operator, 0.1)
    expected = restore(build(name, start=0.9), operator, y, sigma_y=0.1).image
    for path, parametrization in ((VP, "v"), (VP, "x0"), (FLOW, "v"), (FLOW, "x0"), (LABELS, "eps")):
        prior = mixture(path, parametrization)
        moved = restore(build(name, start=0.9), operator, y, sigma_y=0.1, prior=prior).image
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-6)


# The linear MMSE start.


def dense(function):
    return matrix(function, SHAPE)


def natural_covariance(height, width, variance=0.25):
    """Of one channel, from scipy's DCT: variances ∝ 1/f², f in cycles per pixel, half the lowest for 0."""
    transform = scipy.fft.dctn(np.eye(height * width).reshape(-1, height, width), axes=(1, 2), norm="ortho")
    transform = torch.from_numpy(transform).flatten(1).T
    fy, fx = np.meshgrid(np.arange(height) / (2 * height), np.arange(width) / (2 * width), indexing="ij")
    squared = fy**2 + fx**2
    squared[0, 0] = (0.25 / max(height, width)) ** 2
    power = torch.from_numpy(variance / squared / (1 / squared).mean()).flatten()
    return transform.T * power @ transform


LMMSE = {
    "mask": {"name": "inpaint", "mask": "random", "keep": 0.3},
    "bicubic": {"name": "bicubic", "factor": 2},
    "blur": {"name": "gaussian_blur", "sigma": 1.0, "taps": 9},
}


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("spec", LMMSE.values(), ids=LMMSE)
def test_the_linear_mmse_estimate_is_that_of_its_gaussian(spec, sigma_y):
    """E[x | y] under N(0, C), without noise the limit of none."""
    operator = operators.build(spec, SHAPE, dtype=D)
    y = measured(operator, sigma_y)
    h, c = dense(operator.forward), natural_covariance(8, 8)
    inner = torch.linalg.pinv(h @ c @ h.T + sigma_y**2 * torch.eye(len(h), dtype=D), rtol=1e-9)
    expected = y.flatten(1) @ inner @ h @ c
    known = operator.to_spectral(operator.pinv(y))
    estimate = linear_mmse(operator, known, sigma_y)
    assert relative_error(estimate.flatten(1), expected) < 3 * TOLERANCE
    alone = linear_mmse(operator, known[1:], sigma_y)
    torch.testing.assert_close(alone, estimate[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma_y", [0.0, 0.05])
def test_the_linear_mmse_estimate_fills_a_large_hole(sigma_y):
    """In single precision: what is hidden of C⁻¹ x is zero, for the hidden part is the likeliest one."""
    operator = operators.build({"name": "inpaint", "mask": "box"}, (1, 32, 32), dtype=torch.float32)
    y = measured(operator, sigma_y)
    estimate = linear_mmse(operator, operator.to_spectral(operator.pinv(y)), sigma_y).double()
    pull = estimate.flatten(1) @ torch.linalg.inv(natural_covariance(32, 32))
    hidden = operator.singular_values.flatten() == 0
    assert pull[:, hidden].abs().max() < 20 * TOLERANCE * pull.abs().max()
    if sigma_y == 0:
        torch.testing.assert_close(operator.forward(estimate), y.double(), rtol=0, atol=1e-5)


def test_conjugate_gradients_end_on_a_cpu_when_all_are_within_the_tolerance():
    """One that is solved at once, one that is there after few iterations, and one that takes more."""
    scale = torch.linspace(1, 2, 64).view(1, 1, 8, 8)
    noise = draw(1, 1, 8, 8).float()
    b = torch.cat([torch.zeros(1, 1, 8, 8), (scale < 1.1) * noise, noise])

    def iterates(b, tolerance):
        return list(islice(conjugate_gradients(lambda x: scale * x, lambda r: r, b, tolerance), 60))

    ended = iterates(b, 1e-4)
    assert len(ended) < 15 < len(iterates(b, 0.0))
    solution, residual = ended[-1]
    assert (residual.flatten(1).norm(dim=1) <= 1e-4 * b.flatten(1).norm(dim=1)).all()
    for i in range(3):
        alone = nth(conjugate_gradients(lambda x: scale * x, lambda r: r, b[i : i + 1], 1e-4), 60)
        assert torch.equal(alone, solution[i : i + 1])


def test_the_linear_mmse_start_is_closer_to_a_smooth_image_than_the_pseudo_inverse():
    operator = degradation("inpaint", (1, 16, 16), keep=0.3)
    white = draw(8, 256, seed=5)
    images = (white @ torch.linalg.cholesky(natural_covariance(16, 16)).T).view(8, 1, 16, 16)
    y = operator.forward(images)
    estimate = linear_mmse(operator, operator.to_spectral(operator.pinv(y)), 0.0)
    errors = [(guess - images).square().mean((1, 2, 3)) for guess in (estimate, operator.pinv(y))]
    assert (errors[0] < errors[1]).all()
    assert errors[0].mean() < 0.3 * errors[1].mean()


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@ALL
def test_the_estimate_enters_by_the_start_alone(name, sigma_y):
    """The first state is a m + s z, for RED-diff's own noise around m; m is H⁺y or the linear MMSE."""
    operator, t = degradation("bicubic", factor=2), torch.tensor(0.4, dtype=D)
    y, seen = measured(operator, sigma_y), {}
    for init in ("pinv", "lmmse"):
        states = []
        sampler = build(name, start=0.4, init=init)
        sampler(
            suited(mixture(), sampler, operator), operator, y, KeyedNoise(0, KEYS), sigma_y=sigma_y,
            callback=lambda k, x, prediction, states=states: states.append(x),
        )  # fmt: skip
        seen[init] = states[0]
    lmmse = linear_mmse(operator, operator.to_spectral(operator.pinv(y)), sigma_y)
    squared = VP.s(t).item() ** 2
    variance = {"reddiff": 1.0, "cm4ir": squared / (1 + squared)}.get(name, squared)
    pinv = Problem(operator, y, KeyedNoise(0, KEYS), sigma_y).estimate("pinv", variance)
    on_flow = VP.a(t) / (VP.a(t) + VP.s(t))
    a = {"flower": on_flow, "pnp_flow": on_flow, "flowdps": on_flow, "cm4ir": 1.0, "pnp_cm": 1.0}.get(
        name, VP.a(t)
    )
    torch.testing.assert_close(seen["lmmse"] - seen["pinv"], a * (lmmse - pinv))


# An operator whose decomposition is not known.


class Dense(Linear):
    """A matrix with its decomposition, computed."""

    def __init__(self, h, like):
        self.u, s, self.vt = torch.linalg.svd(h, full_matrices=False)
        super().__init__(like.image_shape, like.measurement_shape, s)

    def forward(self, x):
        return self.shaped(self.to_spectral(x) * self.singular_values @ self.u.T)

    def adjoint(self, y):
        return self.from_spectral(y.flatten(1) @ self.u * self.singular_values)

    def pinv(self, y):
        return self.from_spectral(y.flatten(1) @ self.u / self.singular_values)

    def to_spectral(self, x):
        return x.flatten(1) @ self.vt.T

    def from_spectral(self, c):
        return (c @ self.vt).view(-1, *self.image_shape)

    def shaped(self, y):
        return y.view(-1, *self.measurement_shape)


SHAKEN = {"kernel": [[0.0, 1.0, 0.0, 2.0], [3.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.5, 0.0]], "boundary": "valid"}


def solved(sigma_y, threshold=1e-3):
    """A valid blur, its dense matrix, measurements, and a prediction."""
    operator = degradation("blur", **SHAKEN, threshold=threshold)
    return operator, dense(operator.forward), measured(operator, sigma_y), draw(2, *SHAPE, seed=9)


@pytest.mark.parametrize("variance", [0.9, 0.1, 1e-3])
def test_what_is_solved_for_is_the_exact_step_towards_a_noisy_measurement(variance):
    """V g Vᵀ (H⁺y − x̂₀) = r² Hᵀ (r² H Hᵀ + σ_y²)⁻¹ (y − H x̂₀), and the warm start of it from nothing."""
    operator, h, y, prediction = solved(0.1)
    problem = Problem(operator, y, KeyedNoise(0, KEYS), 0.1)
    inner = variance * h @ h.T + 0.1**2 * torch.eye(len(h), dtype=D)
    misfit = y.flatten(1) - prediction.flatten(1) @ h.T
    exact = variance * torch.linalg.solve(inner, misfit.T).T @ h
    residual = problem.known_given(prediction, variance) - operator.to_spectral(prediction)
    step = operator.from_spectral(problem.factor(variance) * residual)
    assert (operator.singular_values > 0).all(), "no frequency is left to the prior"
    torch.testing.assert_close(step.flatten(1), exact, rtol=0, atol=1e-5)
    start = variance * torch.linalg.solve(inner, y.flatten(1).T).T @ h
    torch.testing.assert_close(problem.estimate("pinv", variance).flatten(1), start, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sigma_y"), [("pigdm", 0.2), ("conjugate", 0.05)])
def test_a_sampler_solves_for_what_it_would_know_with_a_decomposition(name, sigma_y):
    """The same guided ODE: many steps end where those of the exact decomposition do."""
    operator, h, y, _ = solved(sigma_y)
    exact, prior = (
        Dense(h, operator),
        LowRankMixture(
            torch.zeros(1, *SHAPE, dtype=D), draw(1, 3, *SHAPE, seed=1) / 8, 0.3, torch.ones(1, dtype=D)
        ),
    )
    found, expected = (
        restore(build(name, steps=150, w=1.0), one, y, sigma_y=sigma_y, prior=prior).image
        for one in (operator, exact)
    )
    assert relative_error(found, expected) < 0.02


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
def test_the_linear_mmse_is_that_of_the_dense_matrix_without_a_decomposition(sigma_y):
    operator, h, y, _ = solved(sigma_y)
    cosines_2d = torch.kron(*(torch.from_numpy(scipy.fft.dct(np.eye(8), norm="ortho", axis=0)),) * 2)
    precision = cosines_2d.T @ torch.diag(1 / spectrum(8, 8).flatten()) @ cosines_2d
    trust = 1 / (sigma_y**2 + 0.01**2)
    exact = torch.linalg.solve(trust * h.T @ h + precision, trust * (y.flatten(1) @ h).T).T
    found = Problem(operator, y, KeyedNoise(0, KEYS), sigma_y).estimate("lmmse", 1.0)
    assert relative_error(found.flatten(1), exact) < 1e-3


def test_without_a_decomposition_there_is_one_order():
    operator, _, y, _ = solved(0.0)
    with pytest.raises(ValueError, match="order: what a measurement without a decomposition says"):
        restore(build(order=2), operator, y)


# Each method against its paper's algorithm.

STEPS, START, END = 4, 0.95, 0.001
TIMES = torch.linspace(START, END, STEPS + 1, dtype=D)[:-1]
ALPHA_BAR = [*torch.exp(-(0.1 * TIMES + 9.95 * TIMES**2)).tolist(), 1.0]


class Reference:
    """The measurement of a dense operator, the network ε(x, k), and the noise in the order of use."""

    def __init__(self, operator, sigma_y):
        self.operator, self.sigma_y = operator, sigma_y
        self.y = measured(operator, sigma_y)
        self.flat_y = self.y.flatten(1)
        self.h = dense(operator.forward) if operator.linear else None
        if operator.linear:
            self.u, s, self.vt = torch.linalg.svd(self.h)
            self.s = torch.zeros(PIXELS, dtype=D)
            self.s[: len(s)] = torch.where(s > 1e-9, s, 0)
            self.pinv = torch.linalg.pinv(self.h, rtol=1e-9)
        self.used = 0

    def start(self):
        """√ᾱ H⁺y + √(1 − ᾱ) z, with H⁺ less what noise drowns, as the samplers document their start."""
        ab = ALPHA_BAR[0]
        z = KeyedNoise(0, KEYS).normal("start", SHAPE).double().flatten(1)
        if self.h is None:
            mean = self.operator.pinv(self.y).flatten(1) * (1 - ab) / (1 - ab + self.sigma_y**2)
        elif self.sigma_y == 0:
            mean = self.flat_y @ self.pinv.T
        else:
            inner = self.h @ self.h.T + self.sigma_y**2 / (1 - ab) * torch.eye(len(self.h), dtype=D)
            mean = torch.linalg.solve(inner, self.flat_y.T).T @ self.h
        return ab**0.5 * mean + (1 - ab) ** 0.5 * z

    def noise(self):
        self.used += 1
        return KeyedNoise(0, KEYS).normal(f"step-{self.used}", SHAPE).double().flatten(1)

    def eps(self, x, k):
        return mixture()(x.view(-1, *SHAPE), TIMES[k].expand(len(x))).flatten(1)

    def forward(self, x):
        return self.operator.forward(x.view(-1, *SHAPE)).flatten(1)

    def agrees(self, name, expected, **parameters):
        sampler = build(name, start=START, **parameters)
        restored = restore(sampler, self.operator, self.y, sigma_y=self.sigma_y)
        torch.testing.assert_close(restored.image.flatten(1), expected, rtol=1e-7, atol=1e-7)
        assert self.used > 0 or parameters.get("eta") == 0


BLUR = {"sigma": 1.0, "taps": 5, "threshold": 0.2}
"""Singular values from 1 to 0.07, and directions that it does not see."""
KINDS = pytest.mark.parametrize(("kind", "parameters"), [("inpaint", {}), ("gaussian_blur", BLUR)])


def predict(x, eps, ab):
    return (x - (1 - ab) ** 0.5 * eps) / ab**0.5


@pytest.mark.parametrize("eta", [0.0, 0.85])
@KINDS
def test_ddnm_is_algorithm_1_of_its_paper(kind, parameters, eta):
    ref = Reference(degradation(kind, **parameters), 0.0)
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        eps = ref.eps(x, k)
        x0 = predict(x, eps, ab)
        x0 = ref.flat_y @ ref.pinv.T + x0 - x0 @ (ref.pinv @ ref.h).T
        x = later**0.5 * x0 + (1 - later) ** 0.5 * (1 - eta**2) ** 0.5 * eps
        if later < 1 and eta > 0:
            x = x + (1 - later) ** 0.5 * eta * ref.noise()
    ref.agrees("ddnm", x, eta=eta)


@pytest.mark.parametrize("eta", [0.0, 0.85])
@KINDS
def test_ddnm_plus_is_section_3_3_of_its_paper(kind, parameters, eta):
    """a² σ_y² λ²/s² + φ² = σ_t², the noise of the whole level: y in full where it hides that of y."""
    sigma_y, cases = 0.5, set()
    ref = Reference(degradation(kind, **parameters), sigma_y)
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        eps = ref.eps(x, k)
        x0, a, sigma = predict(x, eps, ab), later**0.5, (1 - later) ** 0.5
        lam, phi = torch.zeros(PIXELS, dtype=D), torch.full((PIXELS,), sigma * eta, dtype=D)
        kept = torch.full((PIXELS,), sigma * (1 - eta**2) ** 0.5, dtype=D)
        for i, s in enumerate(ref.s.tolist()):
            if s > 0:
                hidden = sigma >= a * sigma_y / s
                lam[i] = 1.0 if hidden else s * sigma * (1 - eta**2) ** 0.5 / (a * sigma_y)
                phi[i] = (sigma**2 - (a * sigma_y / s) ** 2) ** 0.5 if hidden else sigma * eta
                kept[i] = 0.0  # the noise of y takes its place
                cases.add(hidden)
        correction = (x0 @ ref.h.T - ref.flat_y) @ ref.pinv.T
        x0 = x0 - correction @ (ref.vt.T * lam @ ref.vt)
        x = a * x0 + eps @ (ref.vt.T * kept @ ref.vt)
        if later < 1:
            x = x + ref.noise() @ (ref.vt.T * phi @ ref.vt)
    assert cases == {True, False}
    ref.agrees("ddnm", x, eta=eta)


@pytest.mark.parametrize("eta_b", [1.0, 0.6])
@pytest.mark.parametrize("sigma_y", [0.0, 0.5])
@KINDS
def test_ddrm_is_equations_7_and_8_of_its_paper(kind, parameters, sigma_y, eta_b):
    eta, cases = 0.85, set()
    ref = Reference(degradation(kind, **parameters), sigma_y)
    known = ref.flat_y @ ref.pinv.T @ ref.vt.T  # ȳ = Σ⁺ Uᵀ y
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        # The paper's variables: x̄ = Vᵀ x/√ᾱ, noise levels σ = √((1 − ᾱ)/ᾱ).
        before, after = ((1 - ab) / ab) ** 0.5, ((1 - later) / later) ** 0.5
        x0 = predict(x, ref.eps(x, k), ab) @ ref.vt.T
        bar = x @ ref.vt.T / ab**0.5
        z = ref.noise() @ ref.vt.T if later < 1 else torch.zeros_like(bar)
        new = torch.empty_like(bar)
        for i, s in enumerate(ref.s.tolist()):
            own, kept = x0[:, i], (1 - eta**2) ** 0.5 * after
            if s == 0:
                new[:, i] = own + kept * (bar[:, i] - own) / before + eta * after * z[:, i]
            elif after < sigma_y / s:
                new[:, i] = own + kept * (known[:, i] - own) / (sigma_y / s) + eta * after * z[:, i]
            else:
                spread = (after**2 - sigma_y**2 / s**2 * eta_b**2) ** 0.5
                new[:, i] = (1 - eta_b) * own + eta_b * known[:, i] + spread * z[:, i]
            cases.add((s > 0) * (1 + (after < sigma_y / s if s > 0 else 0)))
        x = later**0.5 * new @ ref.vt
    assert cases == ({0, 1, 2} if sigma_y > 0 else {0, 1})
    ref.agrees("ddrm", x, eta=eta, eta_b=eta_b)


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@KINDS
def test_diffpir_is_algorithm_1_of_its_paper(kind, parameters, sigma_y):
    lam, zeta = 8.0, 0.3
    ref = Reference(degradation(kind, **parameters), sigma_y)
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        x0 = predict(x, ref.eps(x, k), ab)
        if sigma_y > 0:
            rho = lam * sigma_y**2 / ((1 - ab) / ab)
            system = ref.h.T @ ref.h + rho * torch.eye(PIXELS, dtype=D)
            x0 = torch.linalg.solve(system, (ref.flat_y @ ref.h + rho * x0).T).T
        else:  # the limit ρ → 0
            x0 = x0 + (ref.flat_y - x0 @ ref.h.T) @ ref.pinv.T
        eps = (x - ab**0.5 * x0) / (1 - ab) ** 0.5
        x = later**0.5 * x0
        if later < 1:
            x = x + (1 - later) ** 0.5 * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * ref.noise())
    ref.agrees("diffpir", x, lam=lam, zeta=zeta)


def ddpm_step(ref, x, x0, ab, later):
    """A draw from DDPM's posterior q(x' | x, x₀)."""
    alpha = ab / later
    mean = (later**0.5 * (1 - alpha) * x0 + alpha**0.5 * (1 - later) * x) / (1 - ab)
    if later == 1:
        return mean
    return mean + ((1 - later) / (1 - ab) * (1 - alpha)) ** 0.5 * ref.noise()


@pytest.mark.parametrize("kind", ["inpaint", "gaussian_blur", "hdr", "phase_retrieval"])
def test_dps_is_algorithm_1_of_its_paper(kind):
    zeta = 0.7
    ref = Reference(degradation(kind), 0.1)
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        leaf = x.clone().requires_grad_()
        x0 = predict(leaf, ref.eps(leaf, k), ab)
        norms = (ref.flat_y - ref.forward(x0)).norm(dim=1)
        (gradient,) = torch.autograd.grad(norms.sum(), leaf)
        x = ddpm_step(ref, x, x0.detach(), ab, later) - zeta * gradient
    ref.agrees("dps", x, zeta=zeta)


@KINDS
def test_mcg_is_algorithm_1_of_its_paper(kind, parameters):
    zeta = 0.7
    ref = Reference(degradation(kind, **parameters), 0.0)
    measured_part = ref.pinv @ ref.h
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        leaf = x.clone().requires_grad_()
        x0 = predict(leaf, ref.eps(leaf, k), ab)
        (gradient,) = torch.autograd.grad((ref.flat_y - x0 @ ref.h.T).norm(dim=1).sum(), leaf)
        x = ddpm_step(ref, x, x0.detach(), ab, later) - zeta * gradient
        level = later**0.5 * ref.flat_y @ ref.pinv.T
        if later < 1:
            level = level + (1 - later) ** 0.5 * ref.noise() @ measured_part
        x = x - x @ measured_part + level
    ref.agrees("mcg", x, zeta=zeta)


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@KINDS
def test_discrete_pigdm_is_algorithm_1_of_its_paper(kind, parameters, sigma_y, eta):
    """g = (yᵀ − x̂₀ᵀHᵀ)(HHᵀ + σ_y²/r²)⁻¹ H ∂x̂₀/∂x with r² = 1 − ᾱ, and x' = DDIM + √ᾱ g."""
    ref = Reference(degradation(kind, **parameters), sigma_y)
    x = ref.start()
    for k, (ab, later) in enumerate(pairwise(ALPHA_BAR)):
        leaf = x.clone().requires_grad_()
        eps = ref.eps(leaf, k)
        x0 = predict(leaf, eps, ab)
        inner = ref.h @ ref.h.T + sigma_y**2 / (1 - ab) * torch.eye(len(ref.h), dtype=D)
        misfit = (ref.flat_y - x0 @ ref.h.T).detach()
        vector = misfit @ torch.linalg.pinv(inner, rtol=1e-9, hermitian=True) @ ref.h
        (g,) = torch.autograd.grad(x0, leaf, vector)
        c1 = eta * ((1 - ab / later) * (1 - later) / (1 - ab)) ** 0.5
        c2 = (1 - later - c1**2) ** 0.5
        x = later**0.5 * x0.detach() + c2 * eps.detach() + ab**0.5 * g
        if later < 1:
            x = x + c1 * ref.noise()
    ref.agrees("pigdm_discrete", x, eta=eta)


@pytest.mark.parametrize(("weighting", "power"), [("linear", 1), ("sqrt", 0.5), ("square", 2)])
@pytest.mark.parametrize("kind", ["gaussian_blur", "hdr"])
def test_reddiff_is_algorithm_1_of_its_paper(kind, weighting, power):
    """torch's Adam on a loss through autograd; the start is the mean that the samplers document."""
    lam, lr, sigma_y = 0.25, 0.1, 0.0
    ref = Reference(degradation(kind), sigma_y)
    mu = ref.operator.pinv(ref.y).flatten(1).requires_grad_()
    optimiser = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99))
    for k, ab in enumerate(ALPHA_BAR[:-1]):
        z = ref.noise()
        with torch.no_grad():
            eps = ref.eps(ab**0.5 * mu + (1 - ab) ** 0.5 * z, k)
        weight = lam * ((1 - ab) / ab) ** (power / 2)
        loss = 0.5 * (ref.flat_y - ref.forward(mu)).square().sum() + weight * ((eps - z) * mu).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ref.agrees("reddiff", mu.detach(), lam=lam, lr=lr, weighting=weighting)


class Given(KeyedNoise):
    """One tensor, whatever is asked for."""

    def __init__(self, z):
        super().__init__(0, [""] * len(z))
        self.z = z

    def normal(self, stream, shape):
        return self.z


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize(("variance", "lr"), [(4.0, 1e-4), (0.05, 1e-3), (23000.0, 1e-4), (1e-4, 1e-2)])
@KINDS
def test_the_one_draw_of_daps_has_the_law_of_its_langevin_steps(kind, parameters, variance, lr, sigma_y):
    """x ← x − R ∇ + √(2R) z from x̂₀, R the step, no longer than 1/curvature: mean and covariance."""
    steps, beta_y = 30, 0.05
    ref = Reference(degradation(kind, **parameters), sigma_y)
    sampler = build("daps", langevin_steps=steps, lr=lr, beta_y=beta_y)
    noise_variance = beta_y**2
    center = draw(2, PIXELS, seed=7)
    curvature = torch.eye(PIXELS, dtype=D) / variance + ref.h.T @ ref.h / noise_variance
    values, vectors = torch.linalg.eigh(curvature)
    longest = torch.tensor(lr, dtype=D)
    rate = vectors * torch.minimum(1 / values, longest) @ vectors.T
    mean, covariance = center.clone(), torch.zeros(PIXELS, PIXELS, dtype=D)
    for _ in range(steps):
        gradient = (mean - center) / variance + (mean @ ref.h.T - ref.flat_y) @ ref.h / noise_variance
        mean = mean - gradient @ rate
        kept = torch.eye(PIXELS, dtype=D) - rate @ curvature
        covariance = kept @ covariance @ kept.T + 2 * rate
    problem = Problem(ref.operator, ref.y, KeyedNoise(0, KEYS), sigma_y)
    moved = sampler.langevin(problem, center.view(-1, *SHAPE), variance, lr, noise=False)
    torch.testing.assert_close(moved.flatten(1), mean, rtol=1e-8, atol=1e-8)
    # The draw is affine in its noise: the unit vectors give the matrix.
    units = torch.eye(PIXELS, dtype=D).view(-1, *SHAPE)
    y = ref.y[:1].expand(PIXELS, -1, -1, -1)
    problem = Problem(ref.operator, y, Given(units), sigma_y)
    center = center[:1].expand(PIXELS, -1).reshape(-1, *SHAPE)
    drawn = sampler.langevin(problem, center, variance, lr, noise=True).flatten(1)
    matrix = (drawn - mean[0]).T
    assert relative_error(matrix @ matrix.T, covariance) < 1e-6


@pytest.mark.parametrize("kind", ["hdr", "phase_retrieval"])
def test_daps_is_algorithm_1_of_its_paper(kind):
    """Non-linear, so that its Langevin steps are taken one by one. Karras's levels in σ = s/a."""
    outer, inner, langevin, lr, sigma_y, beta_y, rho = 3, 2, 5, 1e-5, 0.02, 0.01, 7
    ref = Reference(degradation(kind), sigma_y)

    def karras(first, last, n):
        ramp = np.arange(n) / n
        return (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho

    def sigma_of(t):
        return float(np.expm1(0.1 * t + 9.95 * t**2) ** 0.5)

    def denoise(x, sigma):
        """E[x₀ | x₀ + σ z = x]."""
        a, s = (torch.tensor(v, dtype=D).view(1, 1, 1, 1) for v in (1.0, sigma))
        return mixture().denoise(x.view(-1, *SHAPE), a, s).flatten(1)

    last = sigma_of(END)
    levels = karras(sigma_of(START), last, outer)
    x = ref.start() / ALPHA_BAR[0] ** 0.5
    for i, sigma in enumerate(levels):
        x0 = x
        for now, later in pairwise([*karras(sigma, last, inner), 0.0]):
            x0 = x0 + (later - now) * (x0 - denoise(x0, now)) / now
        step = lr * (1 - 0.99 * i / outer)
        rate = min(step, 1 / (1 / sigma**2 + ref.operator.lipschitz**2 / beta_y**2))
        sample = x0
        for _ in range(langevin):
            leaf = sample.clone().requires_grad_()
            energy = (leaf - x0).square().sum() / (2 * sigma**2)
            energy = energy + (ref.forward(leaf) - ref.flat_y).square().sum() / (2 * beta_y**2)
            (gradient,) = torch.autograd.grad(energy, leaf)
            sample = sample - rate * gradient
            if i < outer - 1:
                sample = sample + (2 * rate) ** 0.5 * ref.noise()
        x = sample if i == outer - 1 else sample + levels[i + 1] * ref.noise()
    ref.agrees("daps", x, steps=outer * inner, ode_steps=inner, langevin_steps=langevin, lr=lr)


# The conjugate sampler's further settings.


class Disguised(Nonlinear):
    """A linear operator that does not say so; its surrogate H⁺ is exact."""

    def __init__(self, operator):
        super().__init__(operator.image_shape, operator.measurement_shape)
        self.inside = operator

    def forward(self, x):
        return self.inside.forward(x)

    def pinv(self, y):
        return self.inside.pinv(y)


@pytest.mark.parametrize("absorb", ["conditional", "unconditional"])
def test_a_surrogate_pseudo_inverse_that_is_exact_leads_to_the_linear_trajectory(absorb):
    """As steps grow; for a linear operator what the step absorbs is another."""
    linear = degradation("bicubic", factor=2)
    y, errors = measured(linear), []
    spec = {"absorb": absorb, "w": 3.0, "start": 0.6, "end": 0.05}
    expected = restore(build(steps=100, **spec | {"order": 3}), linear, y).image
    for steps in (25, 100):
        image = restore(build(steps=steps, **spec), Disguised(linear), y).image
        errors.append(relative_error(image, expected))
    assert errors[1] < 2e-2
    assert errors[1] < errors[0] / 3


def test_extrapolation_is_refused_for_a_non_linear_operator_and_with_churn():
    operator = degradation("hdr")
    with pytest.raises(ValueError, match=r"^order: .*non-linear"):
        restore(build(order=2), operator, measured(operator))
    with pytest.raises(ValueError, match=r"churn: .*order: 1"):
        build(order=2, churn=1.0)


def test_churn_is_absent_at_zero_grows_from_there_and_needs_keyed_noise():
    operator = degradation("bicubic", factor=2)
    y = measured(operator)
    plain = restore(build(), operator, y).image
    assert torch.equal(restore(build(churn=0.0), operator, y).image, plain)
    small, large = (relative_error(restore(build(churn=c), operator, y).image, plain) for c in (1e-4, 1.0))
    assert 0 < small < 0.1 * large
    with pytest.raises(ValueError, match=r"^noise: .*KeyedNoise"):
        restore(build(churn=1.0), operator, y, torch.zeros(2, *SHAPE))


class AsFlow:
    """The ε-network of a VP prior on the flow path, by the change of variables in closed form."""

    path = FLOW

    def __init__(self, prior, parametrization):
        self.prior, self.parametrization = prior, parametrization

    def __call__(self, x, t):
        t = t.double()
        # s/a = (1 − t)/t; on VP s²/a² = eᵇ − 1 with b = 0.1 u + 9.95 u² at time u.
        b = torch.log1p(((1 - t) / t) ** 2)
        u = (-0.1 + torch.sqrt(0.01 + 39.8 * b)) / 19.9
        scale, t = (value.to(x).view(-1, 1, 1, 1) for value in (torch.exp(-b / 2) / t, t))
        eps = self.prior(scale * x, u.to(x))
        return (x - eps) / t if self.parametrization == "v" else eps  # v = x̂₀ − ε, x = t x̂₀ + (1 − t) ε


@pytest.fixture(scope="module")
def on_flows():
    """The embedded network, a restoration with it as it is on the flow path, and with it as a flow's."""
    natural = priors.load({"name": "natural"})
    operator = degradation("bicubic", (3, 32, 32), torch.float32, factor=2)
    y = measured(operator)

    def both(parametrization, **spec):
        own = restore(build(**spec), operator, y, prior=AsFlow(natural, parametrization)).image
        moved = restore(build(**spec, path="flow"), operator, y, prior=natural).image
        return relative_error(moved, own)

    return both


def test_a_diffusion_network_serves_the_flow_sampler_exactly(on_flows):
    """C-ΠGFM with a real network: matching the log-SNR is the change of variables, and nothing more."""
    assert on_flows("eps", name="conjugate", w=5.0) < 1e-4
    assert on_flows("eps", name="pigdm", w=2.0) < 1e-4
    assert on_flows("v", name="ddim") < 1e-4


@pytest.mark.slow
def test_c_pigfm_on_a_velocity_and_on_the_noise_that_it_implies_converge_to_one_image(on_flows):
    """A step holds v or ε constant, which with guidance is not the same; the limit is."""
    spec = {"w": 5.0, "start": 0.45, "end": 0.95}
    coarse, fine = on_flows("v", **spec), on_flows("v", **spec | {"steps": 16, "order": 2})
    assert fine < 0.1 * coarse
    assert fine < 5e-3


# Samples of a posterior.

FIGURES = {
    "conjugate, constant, w 1, order 3": {"SR 2×, σ 0.2": (0.150, 0.99, 0.95)},
    "conjugate, constant, w 1, churn 20": {"inpainting, σ 0.2": (0.069, 1.00, 1.00)},
    "C-ΠGDM, w 15": {"SR 2×, σ 0.2": (0.182, 0.96, 0.85)},
    "ΠGDM, w 4": {"inpainting": (0.394, 0.86, 0.91)},
    "ΠGDM, discrete": {"SR 2×, σ 0.2": (0.156, 0.93, 0.82), "inpainting": (0.244, 0.85, 0.85)},
    "DPS": {"inpainting, σ 0.2": (0.393, 0.86, 0.83)},
    "MCG": {"inpainting, σ 0.2": (1.097, 0.58, 0.56)},
    "DDRM": {"SR 2×, σ 0.2": (0.059, 0.74, 0.66), "inpainting": (0.110, 0.79, 0.79)},
    "DDNM": {"SR 2×, σ 0.2": (0.059, 0.74, 0.66), "inpainting": (0.062, 0.77, 0.77)},
    "covariance": {"SR 2×, σ 0.2": (0.039, 0.74, 0.65), "inpainting": (0.232, 0.70, 0.70)},
    "DiffPIR": {"SR 2×, σ 0.2": (0.304, 0.90, 1.29), "inpainting": (0.178, 1.01, 1.01)},
    "DAPS": {"inpainting, σ 0.2": (0.092, 0.90, 0.87)},
    "Flower": {"SR 2×, σ 0.2": (0.004, 0.49, 0.49)},
    "Flower, γ 1": {"SR 2×, σ 0.2": (0.004, 1.03, 1.02), "inpainting": (0.048, 1.04, 1.04)},
    "CDIM": {"SR 2×, σ 0.2": (0.098, 0.95, 0.94)},
    "SITCOM": {"SR 2×, σ 0.2": (0.172, 0.44, 0.47)},
    "MMPS": {"SR 2×, σ 0.2": (0.008, 0.93, 0.93), "inpainting": (0.017, 0.94, 0.94)},
}
"""From the table of benchmarks/posterior_bias.py: mean, variance where y is silent, and over all."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FIGURES for task in FIGURES[name]])
def test_the_stated_bias_on_a_gaussian_prior(name, task):
    figures = bias(SAMPLERS[name], natural_texture(), task, samples=60)
    mean, unseen, total = FIGURES[name][task]
    assert figures.mean == pytest.approx(mean, abs=0.02)
    assert figures.unseen == pytest.approx(unseen, abs=3.5 * figures.uncertainty)
    assert figures.total == pytest.approx(total, abs=3.5 * figures.uncertainty)


def test_every_sampler_but_nine_states_its_bias():
    """Three seek one image, DDIM has no guidance, two are for consistency functions, three for latents."""
    stated = {SAMPLERS[name]["name"] for name in FIGURES}
    others = {"reddiff", "pnp_flow", "dmplug", "ddim", "cm4ir", "pnp_cm", "latino", "flowdps", "psld"}
    assert stated == set(BY_NETWORK) - others


@pytest.mark.parametrize("sigma_y", [0.1, 0.5])
def test_the_posterior_of_the_table_is_that_of_bayes_rule(sigma_y):
    """Its gain form against the information form, for another covariance than the identity."""
    operator, gaussian = degradation("bicubic", factor=2), natural_texture()
    posterior = Posterior.of(gaussian.covariance, operator, sigma_y)
    h = dense(operator.forward)
    covariance = torch.linalg.inv(torch.linalg.inv(gaussian.covariance) + h.T @ h / sigma_y**2)
    torch.testing.assert_close(posterior.covariance, covariance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(posterior.gain, covariance @ h.T / sigma_y**2, rtol=1e-9, atol=1e-9)
    one, identity = torch.ones(1, 1, 1, 1, dtype=D), torch.eye(PIXELS, dtype=D)
    gain = dense(lambda x: gaussian.prior.denoise(x, one, one))
    torch.testing.assert_close(gain, gaussian.covariance @ torch.linalg.inv(gaussian.covariance + identity))


# Several modes.

MODES = {
    "conjugate": {"steps": 40},
    "pigdm": {"steps": 40},
    "pigdm_discrete": {"steps": 40},
    "dps": {"steps": 80},
    "mcg": {"steps": 80},
    "ddrm": {"steps": 40},
    "ddnm": {"steps": 40},
    "covariance": {"steps": 40},
    "diffpir": {"steps": 40},
    "daps": {"steps": 60, "ode_steps": 3},
    "reddiff": {"steps": 80},
    "dmplug": {"steps": 300, "ode_steps": 3, "lr": 0.05},
    "sitcom": {"steps": 200, "adam_steps": 20, "lr": 0.05},
}
"""Evaluations enough for each guided method."""


def shares_of_modes(name, sigma_y):
    """The shares of samples within each of four modes: left half A or B, right half C or D; y is A."""
    a, b, c, d = (0.7 * draw(8, 4, seed=seed).sign() for seed in range(4))
    means = torch.stack([torch.cat([left, right], dim=1) for left in (a, b) for right in (c, d)])[:, None]
    factors = 0.2 * torch.linalg.qr(draw(4, PIXELS, 1, seed=5))[0].mT.reshape(4, 1, *SHAPE)
    prior = LowRankMixture(means, factors, 0.1, torch.full((4,), 0.25, dtype=D))
    operator, samples = degradation("inpaint", mask="half"), 100
    y = operator.forward(means[:1]).expand(samples, -1, -1, -1)
    y = y + sigma_y * operator.forward(draw(samples, *SHAPE, seed=6))
    sampler = build(name, start=1.0, **MODES.get(name, {"steps": 40}))
    images = restore(sampler, operator, y, Fast(0, [""] * samples), sigma_y, prior).image
    # Modes are about 5 apart; a sample of one is at about 0.8 from its mean.
    distances = (images[:, None] - means).flatten(2).norm(dim=2)
    return (distances < 2.2).double().mean(0).tolist()


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("name", sorted(set(BY_NETWORK) - {"ddim"}))
def test_samples_are_in_the_modes_that_agree_with_the_measurement_and_in_all_of_them(name, sigma_y):
    agree, too, *others = shares_of_modes(name, sigma_y)
    assert agree + too > 0.95
    assert sum(others) < 0.03
    assert min(agree, too) > 0.3


def test_without_guidance_half_of_the_samples_are_in_the_wrong_modes():
    agree, too, *others = shares_of_modes("ddim", 0.0)
    assert 0.35 < agree + too < 0.65
    assert 0.35 < sum(others) < 0.65


# The noisy conjugate sampler at every strength.


LINEAR = [name for name in operators.REGISTRY if degradation(name, COLOUR).linear]


def few_directions():
    """Images that their prior knows well, a mean and six directions of variation; and that prior."""

    def textures(count, seed):
        white = torch.fft.fft2(draw(count, *COLOUR, seed=seed))
        return 0.5 * torch.fft.ifft2(natural_spectrum(16, 16).sqrt() * white).real

    mean, tau, pixels = textures(1, 1), 0.05, 768
    directions = 3 * torch.linalg.qr(draw(pixels, 6, seed=2))[0].T
    images = mean.flatten() + draw(8, 6, seed=3) @ directions + tau * draw(8, pixels, seed=4)
    prior = LowRankMixture(mean, directions.view(1, 6, *COLOUR), tau, torch.ones(1, dtype=D))
    return prior, images.view(8, *COLOUR)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("operator", LINEAR)
def test_the_conjugate_sampler_improves_on_the_pseudo_inverse_at_every_strength(operator, sigma_y):
    operator, (prior, images) = degradation(operator, COLOUR), few_directions()
    y = operator.forward(images)
    y = y + sigma_y * draw(*y.shape, seed=5)
    before = (operator.pinv(y) - images).square().mean((1, 2, 3)).sqrt().mean()
    for w in (1.0, 10.0, 30.0):
        image = restore(
            build(steps=5, w=w), operator, y, KeyedNoise(0, list("abcdefgh")), sigma_y, prior
        ).image
        after = (image - images).square().mean((1, 2, 3)).sqrt().mean()
        # A sample of the posterior keeps the spread τ = 0.05 that neither y nor the prior removes.
        assert after < max(before, 0.1), (w, after.item(), before.item())
