"""Paths and analytic priors against closed forms and brute force; the embedded prior denoises."""

import numpy as np
import pytest
import torch
from skimage.data import astronaut
from skimage.transform import resize

from kintsugi import operators, priors, samplers
from kintsugi.priors.analytic import LowRankMixture, StandardNormal, StationaryGaussian, natural_spectrum
from kintsugi.priors.base import data_prediction
from kintsugi.priors.formats.rectified_flow import UnitRangeFlow
from kintsugi.priors.paths import DDPM, RectifiedFlow, VarianceExploding, VariancePreserving, log_snr
from kintsugi.priors.published import PUBLISHED, Published
from kintsugi.testing import check_prior

D = torch.float64
SHAPE = (2, 3, 4)
SIZE = 24
ALPHA_BAR = np.cos(np.linspace(0.01, 1.565, 1001)) ** 2
COSINE = 1 - ALPHA_BAR[1:] / ALPHA_BAR[:-1]
PATHS = {
    "vp": VariancePreserving(),
    "ddpm": DDPM(),
    "cosine": DDPM(betas=torch.from_numpy(COSINE)),
    "flow": RectifiedFlow(),
    "flow on [0, 1]": UnitRangeFlow(),
    "ve": VarianceExploding(),
}
PARAMETRIZATIONS = ["eps", "v", "x0"]


@pytest.fixture(params=PATHS.values(), ids=PATHS.keys())
def path(request):
    return request.param


def times(path, n=41):
    """Times inside the path; half labels for DDPM, whose log-SNR has kinks at the integers."""
    if isinstance(path, DDPM):
        return torch.arange(0.5, 999, 25, dtype=D)
    return torch.linspace(0.001, 0.999, n, dtype=D)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def column(values):
    return values.view(-1, 1, 1, 1)


# Paths.


def test_derivatives(path):
    t = times(path).requires_grad_()
    for function, derivative in ((path.a, path.da), (path.s, path.ds)):
        (expected,) = torch.autograd.grad((function(t) + 0 * t).sum(), t)  # a constant has no graph
        torch.testing.assert_close(derivative(t.detach()), expected, rtol=1e-9, atol=1e-12)


def test_time_of_inverts_the_log_snr(path):
    t = times(path)
    torch.testing.assert_close(path.time_of(log_snr(path, t)), t, rtol=1e-9, atol=1e-9)


def test_log_snr_rises_from_noise_to_data(path):
    t = torch.linspace(path.noise_time, path.data_time, 1001, dtype=D)
    assert (log_snr(path, t).diff() > 0).all()


def test_a_path_ends_at_clean_images(path):
    """What the conjugate sampler returns is the state itself, not x̂₀: it must be on the images' scale."""
    end = torch.tensor([path.data_time], dtype=D)
    torch.testing.assert_close(path.a(end), torch.ones(1, dtype=D), rtol=1e-3, atol=0)


def test_time_of_is_clamped_to_the_path(path):
    ends = path.time_of(torch.tensor([-100.0, 100.0], dtype=D))
    torch.testing.assert_close(ends, torch.tensor([path.noise_time, path.data_time], dtype=D))


@pytest.mark.parametrize("name", ["vp", "ddpm", "cosine"])
def test_diffusion_paths_preserve_variance(name):
    t = times(PATHS[name])
    total = PATHS[name].a(t) ** 2 + PATHS[name].s(t) ** 2
    torch.testing.assert_close(total, torch.ones_like(t), rtol=1e-14, atol=0)


def test_vp_is_the_published_one_and_precise_near_the_data():
    """Without expm1, s at t = 0.001 has a relative error near 1e-12; the series is good to 1e-15."""
    path, t = PATHS["vp"], torch.tensor([0.001], dtype=D)
    b = 0.1 * 0.001 + 9.95 * 0.001**2
    series = b - b**2 / 2 + b**3 / 6 - b**4 / 24
    torch.testing.assert_close(path.s(t), torch.tensor([series**0.5], dtype=D), rtol=1e-15, atol=0)
    torch.testing.assert_close(path.a(t), torch.tensor([np.exp(-b / 2)], dtype=D), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("name", "betas"), [("ddpm", np.linspace(1e-4, 0.02, 1000)), ("cosine", COSINE)])
def test_ddpm_is_the_table_at_integer_labels(name, betas):
    alpha_bar = np.cumprod(1 - betas)
    labels = torch.arange(1000, dtype=D)
    np.testing.assert_allclose(PATHS[name].a(labels), np.sqrt(alpha_bar), rtol=1e-11)
    np.testing.assert_allclose(PATHS[name].s(labels), np.sqrt(1 - alpha_bar), rtol=1e-11)


def test_variance_exploding_is_the_image_and_noise_of_deviation_t():
    t = times(PATHS["ve"])
    assert torch.equal(PATHS["ve"].a(t), torch.ones_like(t))
    assert torch.equal(PATHS["ve"].s(t), t)
    assert VarianceExploding(50.0).noise_time == 50


def test_rectified_flow_is_the_straight_line():
    t = times(PATHS["flow"])
    assert torch.equal(PATHS["flow"].a(t), t)
    assert torch.equal(PATHS["flow"].s(t), 1 - t)


# Parametrisations.


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_data_prediction_recovers_x0_from_the_true_output(path, parametrization):
    t = times(path)
    x0, z = draw(len(t)), draw(len(t), seed=1)
    x = path.a(t) * x0 + path.s(t) * z
    u = {"eps": z, "v": path.da(t) * x0 + path.ds(t) * z, "x0": x0}[parametrization]
    p, q = data_prediction(path, parametrization, t)
    torch.testing.assert_close(p * x + q * u, x0, rtol=1e-9, atol=1e-9)


# Analytic priors: u gives back E[x₀ | x_t], computed here with dense covariances.


def covariance_of(factors, tau):
    rows = factors.reshape(len(factors), -1).numpy()
    return rows.T @ rows + tau**2 * np.eye(rows.shape[1])


def mixture(path, parametrization, tau=0.3):
    means = draw(3, *SHAPE)
    directions = torch.linalg.qr(draw(3, SIZE, 2, seed=1))[0].mT
    lengths = torch.tensor([[1.5, 0.7], [1.0, 0.2], [0.3, 0.1]], dtype=D)
    factors = (directions * lengths[..., None]).reshape(3, 2, *SHAPE)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=D)
    return LowRankMixture(means, factors, tau, weights, path, parametrization)


def gaussian_log_density(x, mean, covariance):
    residual = x - mean
    _, log_determinant = np.linalg.slogdet(covariance)
    return -0.5 * (residual @ np.linalg.solve(covariance, residual) + log_determinant)


def conditional_mean(x, a, s, mean, covariance):
    """E[x₀ | a x₀ + s z = x] for x₀ ~ N(mean, covariance)."""
    gain = a * covariance @ np.linalg.inv(a**2 * covariance + s**2 * np.eye(len(x)))
    return mean + gain @ (x - a * mean)


def mixture_mean(prior, x, a, s):
    modes = [
        (mean.flatten().numpy(), covariance_of(factors, prior.tau))
        for mean, factors in zip(prior.means, prior.factors, strict=True)
    ]
    logs = np.array(
        [gaussian_log_density(x, a * m, a**2 * c + s**2 * np.eye(len(x))) for m, c in modes]
    ) + np.log(prior.weights.numpy())
    shares = np.exp(logs - logs.max())
    return sum(
        w * conditional_mean(x, a, s, m, c) for w, (m, c) in zip(shares / shares.sum(), modes, strict=True)
    )


def texture_mean(prior, x, a, s):
    """The covariance of a stationary field is circulant: F* diag(power) F, one block per channel."""
    _, h, w = SHAPE
    fourier = np.kron(np.fft.fft(np.eye(h), norm="ortho"), np.fft.fft(np.eye(w), norm="ortho"))
    block = (fourier.conj().T @ np.diag(prior.power.flatten().numpy()) @ fourier).real
    return conditional_mean(x, a, s, np.zeros(len(x)), np.kron(np.eye(SHAPE[0]), block))


def normal_mean(prior, x, a, s):
    return conditional_mean(x, a, s, np.zeros(len(x)), np.eye(len(x)))


ANALYTIC = {
    "mixture": (mixture, mixture_mean),
    "texture": (lambda path, u: StationaryGaussian(natural_spectrum(*SHAPE[1:]), path, u), texture_mean),
    "normal": (StandardNormal, normal_mean),
}


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", ANALYTIC)
def test_analytic_priors_are_the_posterior_mean(path, parametrization, name):
    make, brute_force = ANALYTIC[name]
    prior = make(path, parametrization)
    assert (prior.path, prior.parametrization) == (path, parametrization)
    t = times(path)[1:-1:8]
    a, s = path.a(t), path.s(t)
    x = column(a) * draw(len(t), *SHAPE) + column(s) * draw(len(t), *SHAPE, seed=1)
    p, q = (column(value) for value in data_prediction(path, parametrization, t))
    prediction = (p * x + q * prior(x, t)).flatten(1).numpy()
    for i in range(len(t)):
        expected = brute_force(prior, x[i].flatten().numpy(), a[i].item(), s[i].item())
        np.testing.assert_allclose(prediction[i], expected, rtol=1e-8, atol=1e-8)


def test_natural_spectrum_falls_as_the_square_of_the_frequency():
    power = natural_spectrum(32, 32)
    assert abs(power.mean() - 1) < 1e-12
    np.testing.assert_allclose(power[0, 2] / power[0, 8], 16, rtol=1e-12)
    np.testing.assert_allclose(power[0, 0] / power[0, 1], 4, rtol=1e-12)  # that of half a cycle
    flipped = power.flip(0, 1).roll((1, 1), (0, 1))
    torch.testing.assert_close(flipped, power)


# The embedded prior.


@pytest.fixture(scope="module")
def natural():
    return priors.load({"name": "natural"})


def noisy_astronaut(prior, sigma):
    """x₀ (1, 3, 64, 64), x_t and t at a noise of standard deviation sigma on [-1, 1], unscaled."""
    small = resize(astronaut(), (64, 64), anti_aliasing=True)
    x0 = torch.from_numpy(small).permute(2, 0, 1)[None].float() * 2 - 1
    t = prior.path.time_of(torch.tensor([-np.log(sigma)], dtype=D))
    x = prior.path.a(t).float() * (x0 + sigma * draw(1, 3, 64, 64).float())
    return x0, x, t


def psnr(image, reference):
    return 10 * torch.log10(4 / (image - reference).square().mean()).item()


def test_natural_prior_denoises(natural):
    """A standard deviation of 0.2 on [0, 1], 14 dB: the estimate is several dB better."""
    x0, x, t = noisy_astronaut(natural, sigma=0.4)
    p, q = (value.float() for value in data_prediction(natural.path, natural.parametrization, t))
    assert psnr(p * x + q * natural(x, t.float()), x0) > psnr(p * x, x0) + 4


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (72, 24)])
def test_natural_prior_takes_any_size_divisible_by_its_multiple(natural, height, width):
    assert height % natural.multiple == width % natural.multiple == 0
    u = natural(torch.zeros(2, 3, height, width), torch.tensor([0.1, 0.4]))
    assert u.shape == (2, 3, height, width)
    assert torch.isfinite(u).all()


def test_natural_prior_has_a_vjp_and_frozen_weights(natural):
    """Against central differences along the gradient itself, where the derivative is its norm."""
    x, cotangent = draw(1, 3, 16, 16).float(), draw(1, 3, 16, 16, seed=1).float()
    t, leaf = torch.tensor([0.3]), x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(natural(leaf, t), leaf, cotangent)
    step = 0.05 * gradient / gradient.norm()
    rise = ((natural(x + step, t) - natural(x - step, t)) * cotangent).sum() / 0.1
    torch.testing.assert_close(rise, gradient.norm(), rtol=1e-2, atol=0)
    assert not natural.network.training
    assert not any(weight.requires_grad for weight in natural.network.parameters())


def test_natural_prior_has_the_properties_that_are_offered_to_authors():
    check_prior({"name": "natural"})


def test_sizes_that_the_natural_prior_does_not_take_are_found_without_loading_it(natural):
    assert priors.examine({"name": "natural"}, (3, 24, 40)).sha256 == natural.sha256
    with pytest.raises(priors.SpecError, match=rf"divisible by {natural.multiple}"):
        priors.examine({"name": "natural"}, (3, 24, 36))


def test_published_files_are_named_by_their_checksum(natural, monkeypatch):
    assert priors.examine({"name": "natural"}, (3, 8, 8)).title == "natural, 6.6 M parameters"
    known = {natural.sha256: Published("prior.pt of Someone", "MIT")}
    monkeypatch.setattr(priors, "PUBLISHED", known)
    expected = "prior.pt of Someone; licence: MIT, 6.6 M parameters"
    assert priors.examine({"name": "natural"}, (3, 8, 8)).title == expected


def test_the_table_of_published_files_holds_checksums():
    assert all(len(key) == 64 and int(key, 16) for key in PUBLISHED)


@pytest.mark.slow
def test_a_diffusion_prior_drives_the_flow_sampler_by_its_noise_levels(natural):
    """C-ΠGFM from a prior without a flow. With the constant schedule the path does not matter."""
    operator = operators.build({"name": "average_pool", "factor": 2}, (3, 64, 64))
    truth, _, _ = noisy_astronaut(natural, 0.1)
    y, noise = operator.forward(truth), draw(1, 3, 64, 64).float()
    start = natural.path.time_of(log_snr(RectifiedFlow(), torch.tensor([0.6], dtype=D))).item()
    spec = {"name": "conjugate", "steps": 10, "w": 1, "schedule": "constant", "grid": "logsnr"}
    flow = samplers.build(spec | {"path": "flow", "start": 0.6})(natural, operator, y, noise)
    diffusion = samplers.build(spec | {"start": start})(natural, operator, y, noise)
    assert psnr(flow.image, truth) > 20
    assert psnr(flow.image, diffusion.image) > 45


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "unnatural"}, r"prior\.name.*natural"),
        ({"name": "natural", "steps": 5}, r"prior\.steps"),
        ({}, r"prior\.name: missing"),
    ],
)
def test_a_spec_that_does_not_fit_is_refused_by_field(spec, message):
    with pytest.raises(priors.SpecError, match=message):
        priors.load(spec)
