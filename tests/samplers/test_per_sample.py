"""Degradations that belong to the sample: each is restored in a batch of others as it is alone."""

from functools import cache

import numpy as np
import pytest
import torch
from kit.operators import KERNELS, MASKS, QUALITIES, WIDTHS, each
from kit.samplers import BY_NETWORK, FEW

from kintsugi import operators, samplers
from kintsugi.operators import stack
from kintsugi.priors.analytic import StandardNormal
from kintsugi.samplers import KeyedNoise, coefficients
from kintsugi.samplers.lattice import HIGHEST, LOWEST, distinct, lattice
from kintsugi.testing import draw, mixture, suited

D = torch.float64
KEYS = ["a", "b", "c"]
LEVELS = torch.tensor([0.02, 0.1, 0.7], dtype=D).view(3, 1, 1, 1)
ALL = pytest.mark.parametrize("name", BY_NETWORK)
SAME = {"one mask": MASKS[:1] * 3, "one blur": WIDTHS[1:2] * 3}
CASES = {
    "masks": MASKS,
    "widths": WIDTHS,  # of different ranks
    "kernels": each("blur", "kernel", KERNELS),
    "mirrored and shifted": each("gaussian_blur", "boundary", ("reflect", "zero", "circular"), sigma=1.0),
    "solved for": each("blur", "kernel", KERNELS, boundary="valid"),
    "clipped": each("hdr", "factor", (1.5, 2.0, 3.0)),
    **SAME,
}
LINEAR = ("masks", "widths", "kernels")


def shape_of(case):
    return (3, 16, 16) if case == "coded" else (1, 8, 8)


@cache
def operators_of(case, dtype=D):
    specs = QUALITIES if case == "coded" else CASES[case]
    return [operators.build(spec, shape_of(case), dtype=dtype) for spec in specs]


def build(name, **parameters):
    return samplers.build({"name": name, "steps": 4, **FEW.get(name, {}), **parameters})


def restore(sampler, operator, y, sigma_y, keys=KEYS):
    prior = suited(mixture(shape=operator.image_shape), sampler, operator)
    return sampler(prior, operator, y, KeyedNoise(0, keys), sigma_y=sigma_y).image


def assert_alone_is_in_batch(sampler, case, sigma_y, dtype=D, limit=1e-9):
    """The three restored at once, and each by itself, its noise level a number."""
    alone = operators_of(case, dtype)
    whole = stack(alone if case not in SAME else alone[:1] * 3)
    y = whole.forward(draw(3, *whole.image_shape, seed=3).to(dtype) / 4)
    y = y + (sigma_y * draw(*y.shape, seed=4)).to(dtype)
    together = restore(sampler, whole, y, sigma_y)
    assert torch.isfinite(together).all()
    for i, one in enumerate(alone):
        own = sigma_y[i].item() if isinstance(sigma_y, torch.Tensor) else sigma_y
        by_itself = restore(sampler, one, y[i : i + 1], own, KEYS[i : i + 1])[0]
        assert (together[i] - by_itself).abs().max() <= limit * by_itself.abs().max().clamp_min(1), i


@pytest.mark.parametrize("sigma_y", [0.0, LEVELS], ids=["noiseless", "levels"])
@pytest.mark.parametrize("case", CASES)
@ALL
def test_a_sample_is_restored_in_a_batch_as_alone(name, case, sigma_y):
    assert_alone_is_in_batch(build(name), case, sigma_y)


@pytest.mark.parametrize("case", ["widths", "kernels"])
@ALL
def test_in_single_precision_too(name, case):
    # Where long steps are made at pure noise, where x̂₀ is x / 0.007 and the rounding of that.
    assert_alone_is_in_batch(
        build(name), case, LEVELS, torch.float32, 1e-4 if name in ("cdim", "flower", "mmps") else 1e-5
    )


@pytest.mark.parametrize("sigma_y", [0.0, LEVELS + 0.1], ids=["noiseless", "levels"])
@pytest.mark.parametrize("case", [*LINEAR, "solved for"])
@pytest.mark.parametrize("name", ["conjugate", "ddrm"])
def test_from_the_linear_mmse_too(name, case, sigma_y):
    """With less noise its iterations end before they converge, and make 1e-8 of a rounding."""
    assert_alone_is_in_batch(build(name, init="lmmse", start=0.4), case, sigma_y)


@pytest.mark.parametrize(
    "parameters",
    [
        {"order": 3, "lam": 0.3},
        {"order": 2, "absorb": "unconditional"},
        {"schedule": "constant", "w": 1.0, "start": 0.9},
        {"jacobian": False},
        {"churn": 1.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("sigma_y", [0.0, LEVELS], ids=["noiseless", "levels"])
@pytest.mark.parametrize("case", LINEAR)
def test_with_other_settings_too(case, sigma_y, parameters):
    assert_alone_is_in_batch(build("conjugate", **parameters), case, sigma_y)


@pytest.mark.parametrize("name", ["pigdm", "diffpir", "dps"])
def test_qualities_of_jpeg_too(name):
    assert_alone_is_in_batch(build(name), "coded", 0.0)


# What a noise level for each sample may be.


@ALL
def test_levels_that_are_not_of_each_sample_and_positive_are_refused(name):
    (operator, *_), sampler = operators_of("masks"), build(name)
    y = operator.forward(draw(3, *operator.image_shape))
    for value in (0.0, -0.1, torch.nan):
        levels = LEVELS.clone()
        levels[1] = value
        with pytest.raises(ValueError, match=r"^sigma_y: .* positive; restore samples without noise by"):
            restore(sampler, operator, y, levels)
    for shape in ((3,), (1, 1, 1, 1), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match=r"^sigma_y: shape .* expected \(3, 1, 1, 1\)"):
            restore(sampler, operator, y, torch.ones(shape))
    with pytest.raises(ValueError, match=r"^project: .*σ = 0\.7 on"):
        restore(build(name, project=True), operator, y, LEVELS)


def test_levels_are_taken_in_the_precision_of_the_measurement():
    (operator, *_), sampler = operators_of("masks"), build("conjugate")
    y = operator.forward(draw(3, *operator.image_shape))
    single = restore(sampler, operator, y, LEVELS.float())
    torch.testing.assert_close(single, restore(sampler, operator, y, LEVELS), rtol=1e-6, atol=1e-6)


# Coefficients of the conjugate integrator.

SETTINGS = [
    {},
    {"w": 300.0, "order": 3, "steps": 7},
    {"schedule": "constant", "w": 1.0, "start": 1.0, "steps": 10},
    {"absorb": "unconditional", "lam": 0.3},
    {"end": 0.0},
    {"path": "flow", "start": 0.1, "grid": "karras"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_interpolated_are_the_coefficients(settings):
    """Against the quadrature for the ratios themselves: between the lattice's, beyond it, and zero."""
    sampler, prior = samplers.build({"name": "conjugate", **settings}), StandardNormal()
    between = np.random.default_rng(0).uniform(LOWEST - 5, HIGHEST + 5, 500)
    ratios = torch.cat([torch.from_numpy(between).exp(), torch.tensor([0.0, 1.0, 1.0], dtype=D)])
    index, interpolate = distinct(ratios)
    found = sampler.coefficients(prior, lattice(), 1.0).steps
    expected = sampler.coefficients(prior, ratios, 1.0).steps
    for one, other in zip(found, expected, strict=True):
        one, pairs = one.mapped(lambda values: interpolate(values)[..., index]), []
        pairs.append((one.g, other.g))
        for mine, theirs in ((one.advance, other.advance), (one.correct, other.correct)):
            pairs += [] if mine is None else zip(vars(mine).values(), vars(theirs).values(), strict=True)
        for value, reference in pairs:
            scale = reference.abs().max().clamp_min(1e-30)
            torch.testing.assert_close(value / scale, reference / scale, rtol=0, atol=1e-10)


def test_another_operator_and_another_noise_level_integrate_nothing_anew(monkeypatch):
    sampler, prior, like = build("conjugate"), mixture(), torch.zeros(1)
    for case in ("masks", "widths"):
        sampler.prepare(prior, stack(operators_of(case)), 0.1, like)
    monkeypatch.setattr(coefficients, "quadrature", None)
    for case in ("masks", "kernels", "widths"):
        for sigma_y in (0.2, LEVELS):
            sampler.prepare(prior, stack(operators_of(case)), sigma_y, like)
    with pytest.raises(TypeError):
        sampler.prepare(prior, operators_of("masks")[0], 0.0, like)
