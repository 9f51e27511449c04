"""Samplers for priors of latents, against closed forms behind a linear decoder."""

import itertools

import pytest
import torch
from kit.decoders import Images, Latents, LowPass
from kit.operators import dense
from torch.testing import assert_close

from kintsugi import operators, samplers
from kintsugi.priors.analytic import StandardNormal
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.covariance import Belief, Covariance
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import PATH, Denoiser, noise_levels
from kintsugi.samplers.errors import white
from kintsugi.samplers.latino import Latino, fresh_share, noise_of
from kintsugi.samplers.lmmse import TRUST
from kintsugi.samplers.problem import Problem
from kintsugi.testing import draw

D = torch.float64
SIZE, SHAPE = 8, (1, 8, 8)
CODER = LowPass(SIZE)
PRIOR = Latents(CODER)
TASKS = {
    "box": {"name": "inpaint", "mask": "box"},
    "random": {"name": "inpaint", "mask": "random", "keep": 0.5},
    "bicubic": {"name": "bicubic", "factor": 2},
}
LATENT = ("latino", "flowdps", "psld", "dps", "covariance")


def range_errors(sigma, frequencies):
    """Of the decoded predictions of `PRIOR`: r² on the frequencies that it has."""
    inside = torch.zeros_like(frequencies)
    inside[: SIZE // 2, : SIZE // 2] = 1
    return CODER.scale**2 * sigma**2 / (1 + sigma**2) * inside + 1e-10


@pytest.fixture
def exact(monkeypatch):
    """The covariances of errors are those of the prior, of half the images' rank: hard to solve with."""
    for sampler in (Latino, Covariance):
        monkeypatch.setattr(
            sampler,
            "errors",
            (lambda self, prior: white if isinstance(self, Covariance) and prior is PRIOR else range_errors),
        )
    monkeypatch.setattr("kintsugi.samplers.covariance.ITERATIONS", 200)


def problem_of(task, sigma=0.0, count=3):
    operator = operators.build(TASKS[task], SHAPE, dtype=D)
    x = CODER.decode(draw(count, 1, 4, 4))
    return operator, operator.forward(x) + sigma * draw(count, *operator.measurement_shape, seed=1)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["latino", "covariance"])
def test_one_step_is_the_posterior_mean_given_state_and_measurement(task, name, exact):
    """E[D z | z_t, y] by a dense solution; Gauss–Newton after the decoder has it, too."""
    sigma = 0.05
    operator, y = problem_of(task, sigma)
    start = draw(3, 1, 4, 4, seed=2)
    sampler = samplers.build({"name": name, "steps": 1, "covariance": "white", "init": "pinv"})
    found = sampler(PRIOR, operator, y, start, sigma_y=sigma).image
    level = sampler.prepare(PRIOR, operator, sigma, y)[0]
    problem = Problem(Decoded(operator, CODER), y, start, sigma)
    z = Denoiser(PRIOR, None)(problem.start("pinv", level.a, level.s), level)
    h, d = dense(operator.forward, SHAPE), CODER.matrix()
    c = level.sigma**2 / (1 + level.sigma**2) * torch.eye(16, dtype=D)
    g = h @ d
    ridge = TRUST**2 if name == "covariance" else 0.0  # of what has no decomposition
    noise = (sigma**2 + ridge) * torch.eye(len(g), dtype=D)
    gain = c @ g.T @ torch.linalg.inv(g @ c @ g.T + noise)
    mean = z.flatten(1) + (y.flatten(1) - z.flatten(1) @ g.T) @ gain.T
    assert_close(found.flatten(1), mean @ d.T, rtol=1e-5, atol=1e-7)


def test_without_noise_latents_do_what_pixels_do_on_the_decoders_range(exact):
    """Three steps of `latino` are three of `covariance` with the same prior, of images."""
    coder = LowPass(SIZE, scale=1.0)
    operator = operators.build(TASKS["bicubic"], SHAPE, dtype=D)
    y = operator.forward(coder.decode(0.1 * draw(2, 1, 4, 4)))
    start = 0.2 * draw(2, 1, 4, 4, seed=3)
    settings = {"steps": 3, "init": "pinv", "eta": 0.0, "start": 0.3}
    latino = samplers.build({"name": "latino", **settings})
    pixels = samplers.build({"name": "covariance", **settings})
    found = latino(Latents(coder), operator, y, start)
    assert found.image.abs().max() < 1, "an encoder's images are clipped"
    expected = pixels(Images(coder), operator, y, coder.decode(start))
    assert_close(found.image, expected.image, rtol=1e-5, atol=1e-6)
    assert_close(operator.forward(found.image), y, rtol=1e-5, atol=1e-6)


def test_what_an_autoencoder_loses_is_the_stated_bias(exact):
    """With E(D(z)) = 0.8 z and a measurement that says nothing the latents shrink by that at each step."""
    coder, steps = LowPass(SIZE, gain=0.8), 4
    operator = operators.build(
        {"name": "inpaint", "mask": torch.zeros(8, 8, dtype=torch.bool)}, SHAPE, dtype=D
    )
    start = draw(2, 1, 4, 4)
    settings = {"steps": steps, "init": "pinv", "eta": 0.0}
    sampler = samplers.build({"name": "latino", **settings})
    found = sampler(Latents(coder), operator, torch.zeros(2, *operator.measurement_shape, dtype=D), start)
    levels = noise_levels(PATH, Latents(coder), sampler.times(), start)
    z = levels[0].s * start
    for now, later in itertools.pairwise(levels):
        prediction = now.a / (now.a**2 + now.s**2) * z
        noise = (z - now.a * prediction) / now.s
        z = later.a * 0.8 * prediction + later.s * noise
    assert_close(found.image, coder.decode(prediction), rtol=1e-6, atol=1e-8)


class Watched(LowPass):
    """Counts what is asked of it, and the products with its Jacobians, as autograd makes them."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = dict.fromkeys(("decodes", "encodes", "autoencoder_vjps"), 0)

    def through(self, kind, function, x):
        self.seen[kind] += 1
        watched = self

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return function(x)

            @staticmethod
            def backward(ctx, v):
                return Back.apply(v)

        class Back(torch.autograd.Function):  # linear: of its derivative the function is D again
            @staticmethod
            def forward(ctx, v):
                watched.seen["autoencoder_vjps"] += 1
                with torch.enable_grad():
                    leaf = torch.zeros_like(x).requires_grad_()
                    return torch.autograd.grad(function(leaf), leaf, v)[0]

            @staticmethod
            def backward(ctx, w):
                watched.seen["autoencoder_vjps"] += 1
                return function(w)

        return Product.apply(x)

    def encode(self, x):
        return self.through("encodes", super().encode, x)

    def decode(self, z):
        return self.through("decodes", super().decode, z)


SETTINGS = {"dps": {"steps": 4}, "psld": {"steps": 4}, "flowdps": {"steps": 4}, "latino": {"steps": 4}}


@pytest.mark.parametrize("name", LATENT)
def test_what_is_asked_of_the_autoencoder_is_counted(name):
    coder = Watched(SIZE)
    operator, y = problem_of("random", 0.05)
    sampler = samplers.build({"name": name, **SETTINGS.get(name, {})})
    found = sampler(Latents(coder), operator, y, KeyedNoise(0, "abc"), sigma_y=0.05)
    assert {kind: getattr(found, kind) for kind in coder.seen} == coder.seen
    assert found.decodes > 0
    assert (found.autoencoder_vjps > 0) == (name != "latino")


@pytest.mark.parametrize("task", ["random", "bicubic"])
@pytest.mark.parametrize("name", LATENT)
def test_a_sample_of_latents_depends_on_its_key_alone(name, task):
    operator, y = problem_of(task, 0.05)
    sampler = samplers.build({"name": name, **SETTINGS.get(name, {})})
    whole = sampler(PRIOR, operator, y, KeyedNoise(0, "abc"), sigma_y=0.05).image
    alone = sampler(PRIOR, operator, y[1:2], KeyedNoise(0, "b"), sigma_y=0.05).image
    assert whole.isfinite().all()
    assert_close(whole[1:2], alone, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["dps", "psld"])
def test_a_step_follows_the_gradient_through_network_decoder_and_encoder(name):
    """One step, against autograd through all of it."""
    operator, y = problem_of("random")
    start = draw(3, 1, 4, 4, seed=2)
    sampler = samplers.build({"name": name, "steps": 1, "start": 0.3})
    found = sampler(PRIOR, operator, y, start).image
    level = sampler.prepare(PRIOR, operator, 0.0, y)[0]
    x = (level.a * CODER.encode(operator.pinv(y)) + level.s * start).requires_grad_()
    z = level.a / (level.a**2 + level.s**2) * x
    missed = (y - operator.forward(CODER.decode(z))).flatten(1).norm(dim=1).sum()
    if name == "psld":
        filled = CODER.decode(z) + operator.pinv(y - operator.forward(CODER.decode(z)))
        missed = missed + 0.1 * (z - CODER.encode(filled)).flatten(1).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(missed, x)
    assert_close(found, CODER.decode(z - gradient).detach(), rtol=1e-6, atol=1e-8)


def test_flowdps_is_its_formulas():
    """Two steps on the flow path, written out with σ = 1 − t."""
    operator, y = problem_of("random")
    sampler = samplers.build({"name": "flowdps", "steps": 2, "inner": 2, "rate": 0.7, "start": 0.4})
    noise = KeyedNoise(0, "abc")
    found = sampler(PRIOR, operator, y, noise).image
    sigmas = [1 - t for t in sampler.times().tolist()] + [0.0]
    z = (1 - sigmas[0]) * CODER.encode(operator.pinv(y)) + sigmas[0] * noise.normal("start", (1, 4, 4)).to(D)
    for sigma, later in itertools.pairwise(sigmas):
        a = 1 - sigma
        clean = a / (a**2 + sigma**2) * z
        rest = (z - a * clean) / sigma
        moved = clean
        for _ in range(2):
            leaf = moved.detach().requires_grad_()
            length = operator.pinv(y - operator.forward(CODER.decode(leaf))).flatten(1).norm(dim=1).sum()
            moved = leaf.detach() - 0.7 * torch.autograd.grad(length, leaf)[0]
        clean = (1 - sigma) * clean + sigma * moved
        fresh = noise.normal("step-1", (1, 4, 4)).to(D)
        z = (1 - later) * clean + later * (later**0.5 * rest + (1 - later) ** 0.5 * fresh)
    assert_close(found, CODER.decode(z), rtol=1e-9, atol=1e-10)


def test_images_of_the_autoencoder_may_be_larger():
    """H is composed with the resize: the result agrees with y, and keeps what the resize does not see."""

    class Larger(LowPass):
        enlarge = 2

    coder = Larger(2 * SIZE, 1.0)
    operator = operators.build(TASKS["random"], SHAPE, dtype=D)
    y = operator.forward(0.3 * draw(2, *SHAPE))
    found = samplers.build({"name": "latino", "steps": 3})(Latents(coder), operator, y, KeyedNoise(0, "ab"))
    assert found.image.shape == (2, *SHAPE)
    assert_close(operator.forward(found.image), y, rtol=1e-6, atol=1e-7)
    seen = Decoded(operator, coder)
    large = draw(2, 1, 16, 16)
    changed = seen.enlarged(found.image, large)
    assert_close(seen.reduced(changed), found.image, rtol=1e-6, atol=1e-7)
    unseen = changed - large
    assert_close(seen.resize.project(unseen), unseen, rtol=1e-6, atol=1e-7)


def test_who_takes_which_prior_is_said():
    operator, y = problem_of("random")
    for name in samplers.REGISTRY:
        if name == "external":
            continue
        sampler = samplers.build({"name": name})
        refused = [
            prior
            for prior, fits in ((PRIOR, name in LATENT), (StandardNormal(), name not in LATENT[:3]))
            if not fits
        ]
        for prior in refused:
            with pytest.raises(ValueError, match=r"^name: \w+ (works on pixels|is for a prior of latents)"):
                sampler(prior, operator, y, KeyedNoise(0, "abc"))


def test_what_is_of_images_is_not_taken_for_latents():
    """A table of decoded errors is none of latents, and a draw needs to know what is measured."""
    operator, y = problem_of("random")
    for settings, message in (
        ({"covariance": "natural"}, r"^covariance: natural and tables are of images"),
        ({"covariance": "white", "temperature": 0.5}, r"^temperature: "),
    ):
        sampler = samplers.build({"name": "covariance", "steps": 2, **settings})
        with pytest.raises(ValueError, match=message):
            sampler(PRIOR, operator, y, KeyedNoise(0, "abc"))


def test_sides_that_the_autoencoder_does_not_divide_are_continued_by_their_mirror():
    """An image of 8 × 7: what is decoded is cut, what is encoded mirrored, and y is met."""
    operator = operators.build(TASKS["random"], (1, 8, 7), dtype=D)
    seen = Decoded(operator, CODER)
    assert seen.image_shape == (1, 4, 4)
    x = draw(2, 1, 8, 7)
    whole = torch.cat([x, x[..., -1:]], -1)
    assert_close(seen.encode(x), CODER.encode(whole))
    z = draw(2, 1, 4, 4)
    assert_close(seen.decode(z), CODER.decode(z)[..., :7])
    y = operator.forward(0.1 * x)
    found = samplers.build({"name": "latino", "steps": 2})(PRIOR, operator, y, KeyedNoise(0, "ab")).image
    assert found.shape == x.shape
    assert_close(operator.forward(found), y, rtol=1e-6, atol=1e-7)


def test_noise_of_y_counts_as_noise_of_the_next_level(exact):
    """Behind an orthonormal decoder, all of it measured, latents have K² σ_y² of it, K = c / (c + σ_y²)."""
    coder, sigma_y, trust = LowPass(64, scale=1.0), 0.1, 10.0
    operator = operators.build({"name": "denoise"}, (1, 64, 64), dtype=D)
    seen, later = Decoded(operator, coder), 0.3
    problem = Problem(seen, torch.zeros(2, 1, 64, 64, dtype=D), KeyedNoise(0, "ab"), sigma_y)
    belief = Belief(white, 0.5, trust, (64, 64))
    moved = seen.encode(belief.correct(noise_of(problem), torch.zeros(2, 1, 64, 64, dtype=D), None))
    c = trust * 0.5**2 / (1 + 0.5**2)
    variance = (c / (c + sigma_y**2)) ** 2 * sigma_y**2
    share = (1 - variance / later**2) ** 0.5
    assert_close(fresh_share(moved, later).flatten(), torch.full((2,), share, dtype=D), rtol=0.02, atol=0)
    assert not fresh_share(moved, 0.05).any(), "there is more of it than the level has"


@pytest.mark.parametrize("name", ["psld", "flowdps"])
def test_gradients_do_not_need_to_be_seen_by_autograd(name):
    """With an operator whose H⁺ and Hᵀ it cannot follow the result is that of the same operator."""

    class Opaque(type(problem_of("random")[0])):
        def pinv(self, y):
            return super().pinv(y.detach())

        def adjoint(self, y):
            return super().adjoint(y.detach())

    known = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    plain, opaque = (kind(known.expand(SHAPE)).double() for kind in (type(problem_of("random")[0]), Opaque))
    y = plain.forward(CODER.decode(draw(2, 1, 4, 4)))
    sampler = samplers.build({"name": name, "steps": 3, "start": 0.4})
    one, other = (sampler(PRIOR, operator, y, KeyedNoise(0, "ab")).image for operator in (plain, opaque))
    assert_close(one, other)


def test_the_glue_follows_the_gradient_with_larger_images_too():
    """One step of `psld` with `enlarge`, against autograd through resize, decoder and encoder."""

    class Larger(LowPass):
        enlarge = 2

    coder = Larger(2 * SIZE, 1.0)
    prior, operator = Latents(coder), operators.build(TASKS["random"], SHAPE, dtype=D)
    y, start = operator.forward(0.3 * draw(2, *SHAPE)), draw(2, 1, 8, 8, seed=2)
    sampler = samplers.build({"name": "psld", "steps": 1, "start": 0.3})
    seen, level = Decoded(operator, coder), sampler.prepare(prior, operator, 0.0, y)[0]
    x = (level.a * seen.pinv(y) + level.s * start).detach().requires_grad_()
    z = level.a / (level.a**2 + level.s**2) * x
    large = coder.decode(z)
    image = seen.reduced(large)
    filled = seen.enlarged(operator.impose(image, y), large)
    terms = (operator.forward(image) - y).flatten(1).norm(dim=1).sum()
    terms = terms + 0.1 * (z - coder.encode(filled)).flatten(1).norm(dim=1).sum()
    (gradient,) = torch.autograd.grad(terms, x)
    found = sampler(prior, operator, y, start).image
    assert_close(found, seen.image((z - gradient).detach()), rtol=1e-6, atol=1e-8)
