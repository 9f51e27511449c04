"""Blind restoration: what is unknown of an operator is estimated with the sample."""

import pytest
import torch
from kit.samplers import relative_error

from kintsugi import operators, priors, samplers
from kintsugi.errors import SpecError
from kintsugi.numerics import cosines
from kintsugi.operators.family import Family
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.base import Restoration
from kintsugi.samplers.blind import estimate, restore, restored, search

SIZE = 64
BLUR = {"name": "gaussian_blur", "sigma": {"estimate": [0.5, 5.0]}, "taps": 31}


def images(count, slope=2.6, seed=0):
    """Gaussian images of spectrum 1/f^slope, grey, (B, 3, SIZE, SIZE) float64."""
    frequencies = torch.arange(SIZE, dtype=torch.float64) / (2 * SIZE)
    squared = frequencies[:, None] ** 2 + frequencies**2
    squared[0, 0] = squared[0, 1]
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, 1, SIZE, SIZE, generator=generator, dtype=torch.float64)
    basis = cosines(SIZE)
    x = basis.T @ (z * squared ** (-slope / 4)) @ basis
    return (0.4 * x / x.std((1, 2, 3), keepdim=True)).expand(-1, 3, -1, -1)


def measured(spec, x, sigma_y, seed=1):
    operator = operators.build(spec, (3, SIZE, SIZE), dtype=torch.float64)
    y = operator.forward(x)
    return y + sigma_y * torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.slow
@pytest.mark.parametrize("sigma_y", [0.0, 0.04])
@pytest.mark.parametrize("threshold", [0.0, 3e-2])
def test_where_the_model_holds_the_estimate_is_as_far_off_as_it_says(sigma_y, threshold):
    truths = torch.linspace(1.0, 3.0, 24, dtype=torch.float64)
    x = images(len(truths))
    y = torch.cat(
        [
            measured({**BLUR, "sigma": float(s), "threshold": threshold}, x[i : i + 1], sigma_y, seed=i)
            for i, s in enumerate(truths)
        ]
    )
    found = estimate(Family(BLUR, (3, SIZE, SIZE)), y, sigma_y)
    scores = (found.values[:, 0] - truths) / found.deviations[:, 0]
    assert (found.values[:, 0] / truths - 1).abs().median() < (0.03 if sigma_y else 0.01)
    assert scores.abs().max() < 5
    assert 0.4 < scores.square().mean().sqrt() < 1.7


@pytest.mark.slow
def test_a_sample_alone_is_as_in_its_batch():
    x, family = images(3), Family(BLUR, (3, SIZE, SIZE))
    y = torch.cat(
        [measured({**BLUR, "sigma": s}, x[i : i + 1], 0.04) for i, s in enumerate((1, 2, 3))]
    ).float()
    sampler, prior = (
        samplers.build({"name": "ddnm", "steps": 2, "start": 0.3}),
        priors.load({"name": "natural"}),
    )

    def run(rows):
        noise = KeyedNoise(0, [f"key {i}" for i in range(3)][rows])
        return restore(sampler, prior, family, y[rows], noise, sigma_y=0.04)

    together, alone = run(slice(0, 3)), run(slice(1, 2))
    assert relative_error(alone.image[0], together.image[1]) < 1e-5
    for part in ("estimate", "deviation"):
        assert getattr(alone, part)["sigma"][0] == getattr(together, part)["sigma"][1]
    assert alone.forwards == together.forwards == 2


def test_operators_of_several_kinds_restore_the_samples_that_they_belong_to():
    """Of widths along the axes and a slanted blur, which make no batch with them."""
    specs = [{"name": "gaussian_blur", "sigma": s} for s in (0.6, 0.8, 1.0)]
    specs.insert(1, {"name": "anisotropic_blur", "sigmas": [1.0, 0.7], "angle": 30.0})
    built = [operators.build(spec, (3, SIZE, SIZE), dtype=torch.float64) for spec in specs]
    x, noise, levels = images(4), torch.randn(4, 3, SIZE, SIZE), torch.arange(4.0).view(-1, 1, 1, 1)
    y = torch.cat([each.forward(x[i : i + 1]) for i, each in enumerate(built)])
    batches = []

    def sampler(prior, operator, y, noise, *, sigma_y, callback):
        batches.append(len(y))
        return Restoration(operator.pinv(y) + sigma_y * noise, 1, 0)

    found = restored(sampler, None, built, y, noise, levels, None)
    expected = [each.pinv(y[i : i + 1]) + i * noise[i] for i, each in enumerate(built)]
    assert relative_error(found.image, torch.cat(expected)) < 1e-6
    assert batches == [1, 1, 2]


def test_what_is_unknown_is_found_at_any_depth():
    spec = {
        "name": "anisotropic_blur",
        "sigmas": [{"estimate": [1, 4]}, 1.0],
        "angle": {"estimate": [0, 180]},
    }
    family = Family(spec, (3, SIZE, SIZE))
    assert family.fields == ["sigmas.0", "angle"]
    assert family.of((2.0, 30.0)) == {"name": "anisotropic_blur", "sigmas": [2.0, 1.0], "angle": 30.0}
    inside = {"name": "compose", "operators": [BLUR, {"name": "colorize"}]}
    assert Family(inside, (3, SIZE, SIZE)).fields == ["operators.0.sigma"]
    (taps,) = Family({"name": "uniform_blur", "taps": {"estimate": [3, 9]}}, (3, SIZE, SIZE)).unknown
    assert taps.between(*taps.span, 16) == [3, 5, 7, 9]


@pytest.mark.parametrize("ask", [[4, 1], [1], "low", [1, float("inf")]])
def test_a_range_that_is_none_is_named(ask):
    with pytest.raises(SpecError, match=r"operator\.sigma\.estimate: two numbers"):
        Family({"name": "gaussian_blur", "sigma": {"estimate": ask}}, (3, SIZE, SIZE))


@pytest.mark.parametrize("sigma_y", [0.0, 0.04])
@pytest.mark.parametrize("quality", [15, 60, 90])
def test_the_quality_of_a_jpeg_is_found_clipped_and_rounded_or_noisy(quality, sigma_y):
    y = measured({"name": "jpeg", "quality": quality}, images(1), sigma_y)
    if sigma_y == 0:
        y = ((y.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    found = estimate(Family({"name": "jpeg", "quality": {"estimate": [5, 95]}}, (3, SIZE, SIZE)), y, sigma_y)
    assert found.values.item() == quality


def test_the_quality_of_a_grey_jpeg_is_found():
    grey = images(1).mean(1, keepdim=True)
    y = operators.build({"name": "jpeg", "quality": 60}, (1, SIZE, SIZE)).forward(grey.float())
    found = estimate(Family({"name": "jpeg", "quality": {"estimate": [5, 95]}}, (1, SIZE, SIZE)), y, 0.0)
    assert found.values.item() == 60


@pytest.mark.slow
def test_the_angle_of_a_motion_is_found():
    motion = {"name": "linear_motion_blur", "length": 9.0, "angle": 40.0}
    ask = {"length": {"estimate": [3, 16]}, "angle": {"estimate": [0, 180]}}
    found = estimate(Family({**motion, **ask}, (3, SIZE, SIZE)), measured(motion, images(1), 0.04), 0.04)
    assert abs(found.values[0, 1].item() - 40.0) < 8.0  # of the length see docs/blind.md


def test_a_length_that_only_shows_at_its_angle_is_found():
    """Fractions of it are likely at angles that are about right, and so are found first."""
    ask = {"length": {"estimate": [3, 30]}, "angle": {"estimate": [0, 180]}}
    family = Family({"name": "linear_motion_blur", **ask}, (3, SIZE, SIZE))

    def log_likelihood(grid):
        length, angle = torch.tensor(grid, dtype=torch.float64).T
        peaks = [
            height - 3e3 * (length / (22.4 * share) - 1) ** 2 - ((angle - at) / width) ** 2
            for height, share, at, width in ((1000.0, 1.0, 52.0, 0.1), (500.0, 0.5, 49.0, 2.0))
        ]
        return torch.stack(peaks).amax(0)

    (length, angle), _ = search(family, log_likelihood)
    assert length == pytest.approx(22.4, rel=0.01)
    assert angle == pytest.approx(52.0, abs=0.2)


@pytest.mark.parametrize("ask", [31, [15, 31]])
def test_a_free_kernel_is_refused_with_what_to_estimate_in_its_place(ask):
    with pytest.raises(SpecError, match=r"operator\.kernel\.estimate: a free kernel cannot be .*anisotropic"):
        Family({"name": "blur", "kernel": {"estimate": ask}}, (3, SIZE, SIZE))


def test_an_operator_without_a_likelihood_is_refused():
    family = Family({"name": "hdr", "factor": {"estimate": [1.5, 3.0]}}, (3, SIZE, SIZE))
    with pytest.raises(ValueError, match="'hdr' is not linear"):
        estimate(family, images(1))
