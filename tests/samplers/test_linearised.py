"""What measurements say through non-linear operators, and corrections by it, against closed forms."""

import pytest
import torch
from kit.operators import dense

from kintsugi import operators, samplers
from kintsugi.numerics import cosines
from kintsugi.operators.stack import stack
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.covariance import Belief
from kintsugi.samplers.descent import Level
from kintsugi.samplers.errors import frequencies_of
from kintsugi.samplers.linearised import narrowed
from kintsugi.samplers.lmmse import TRUST, spectrum
from kintsugi.samplers.problem import Problem
from kintsugi.testing import draw

D = torch.float64
SHAPE, SIDE = (1, 8, 8), 8
JPEGS = pytest.mark.parametrize(
    ("shape", "spec"),
    [((3, 32, 16), {}), ((3, 16, 8), {"subsampling": "4:4:4"}), ((1, 8, 16), {"quality": 30})],
)


def power(sigma, frequencies):
    """Of errors, whatever the level."""
    return 0.05 / (1 + 400 * frequencies**2)


def dense_covariance(variances):
    whole = torch.kron(cosines(SIDE), cosines(SIDE))
    return whole.T * variances.flatten() @ whole


def correct(operator, y, prediction, sigma_y=0.0):
    keys = [str(i) for i in range(len(y))]
    belief = Belief(power, 1.0, 1.0, operator.image_shape[1:])
    return belief.correct(Problem(operator, y, KeyedNoise(0, keys), sigma_y), prediction, None)


def closed_form(h, y, prediction, variance, covariance):
    """x̂₀ + C Hᵀ (H C Hᵀ + R)⁻¹ (y − H x̂₀)."""
    inner = h @ covariance @ h.T + variance * torch.eye(len(h), dtype=D)
    missed = y.flatten(1) - prediction.flatten(1) @ h.T
    return prediction.flatten(1) + missed @ torch.linalg.inv(inner) @ h @ covariance


@JPEGS
def test_coefficients_of_the_truth_are_within_half_a_step_of_those_that_a_jpeg_says(shape, spec):
    operator = operators.build({"name": "jpeg", **spec}, shape, dtype=D)
    truth = 0.5 * draw(2, *shape)
    target = operator.reading(operator.forward(truth), 0.0)
    torch.testing.assert_close(target.target, target.target.round(), rtol=0, atol=1e-9)
    apart = target.forward(truth) - target.target
    assert 0.4 < apart.abs().max() <= target.cell + 1e-9
    assert target.cell == 0.5
    assert target.variance.max() == 0


@JPEGS
def test_noise_of_a_jpeg_counts_by_the_rows_of_its_transform(shape, spec):
    """diag(A Aᵀ) σ_y², A x the coefficients."""
    operator = operators.build({"name": "jpeg", **spec}, shape, dtype=D)
    origin = operator.coefficients(torch.zeros(1, *shape, dtype=D))
    a = dense(lambda x: operator.coefficients(x) - origin, shape)
    expected = 0.1**2 * a.square().sum(1).view(origin.shape)
    torch.testing.assert_close(operator.reading(draw(1, *shape), 0.1).variance, expected)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("before", [None, {"name": "bicubic", "factor": 2}])
def test_what_rounding_leaves_unknown_counts_as_evenly_spread_noise(sigma_y, before):
    """Of a prediction's distance from the middle 0.6 is believed within the cell, and no more beyond it."""
    spec, shape = {"name": "quantize", "bits": 2}, SHAPE
    h = torch.eye(64, dtype=D)
    if before:
        h = dense(operators.build(before, shape, dtype=D).forward, shape)
        spec = {"name": "compose", "operators": [before, spec]}
    operator = operators.build(spec, shape, dtype=D)
    y, prediction = operator.forward(0.4 * draw(2, *shape)), 0.3 * draw(2, *shape, seed=1)
    missed = (prediction.flatten(1) @ h.T).view_as(y) - y
    within = missed.abs() < 1 / 3
    assert within.any()
    assert not within.all()
    target = y + 0.6 * torch.where(within, missed, missed.sign() / 3)
    variance = (0.4 * 2 / 3) ** 2 / 12 + sigma_y**2 + TRUST**2
    covariance = dense_covariance(power(1.0, frequencies_of(SIDE, SIDE)))
    expected = closed_form(h, target, prediction, variance, covariance)
    found = correct(operator, y, prediction, sigma_y)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=2e-4)


def test_a_prediction_decides_where_in_its_cell_a_rounded_value_is():
    """Levels at ±1/3 and ±1: what is 0.2 from the middle goes to 0.12, what is 1/3 or more to 0.2."""
    reading = operators.build({"name": "quantize", "bits": 2}, SHAPE, dtype=D).reading(
        torch.full((1, *SHAPE), 1 / 3, dtype=D), 0.1
    )
    for predicted, expected in [
        (1 / 3, 1 / 3),
        (0.2 + 1 / 3, 0.12 + 1 / 3),
        (0.9, 0.2 + 1 / 3),
        (-1, 2 / 15),
    ]:
        found = narrowed(reading, torch.full((1, *SHAPE), predicted, dtype=D))
        torch.testing.assert_close(found.target, torch.full((1, *SHAPE), expected, dtype=D))
        assert found.variance.item() == pytest.approx(0.1**2 + (0.4 / 3) ** 2 / 3)
        assert found.cell == 0


def test_a_pixel_that_was_not_clipped_says_its_value_to_a_prediction_that_would_be():
    operator = operators.build({"name": "hdr", "factor": 2.0}, SHAPE, dtype=D)
    truth = torch.full((1, *SHAPE), 0.2, dtype=D)
    found = correct(operator, operator.forward(truth), torch.full((1, *SHAPE), 0.8, dtype=D))
    assert (found - truth).abs().max() < 0.02


def test_a_clipped_pixel_says_no_more_than_that_it_was():
    operator = operators.build({"name": "hdr", "factor": 2.0}, SHAPE, dtype=D)
    y = torch.ones(2, *SHAPE, dtype=D)
    bright = 0.6 + 0.3 * draw(1, *SHAPE).clamp(0, 1)
    found = correct(operator, y, torch.cat([bright, bright - 0.5]))
    torch.testing.assert_close(found[:1], bright, rtol=0, atol=1e-12)
    assert found[1].min() > 0.45


@pytest.mark.parametrize(
    ("field", "name", "values"),
    [("quality", "jpeg", (10, 60)), ("bits", "quantize", (1, 3)), ("factor", "hdr", (1.5, 3.0))],
)
def test_operators_of_samples_say_what_each_does_alone(field, name, values):
    shape, sigma_y = (3, 16, 16), torch.tensor([0.05, 0.2], dtype=D).view(2, 1, 1, 1)
    alone = [operators.build({"name": name, field: value}, shape, dtype=D) for value in values]
    truth, prediction = 0.4 * draw(2, *shape), 0.4 * draw(2, *shape, seed=1)
    y = torch.cat([operator.forward(truth[i : i + 1]) for i, operator in enumerate(alone)])
    both = correct(stack(alone), y, prediction, sigma_y)
    for i, operator in enumerate(alone):
        some = slice(i, i + 1)
        found = correct(operator, y[some], prediction[some], sigma_y[some])
        torch.testing.assert_close(found, both[some])


def test_it_begins_at_the_mean_of_what_natural_images_are_given_the_measurement():
    operator = operators.build({"name": "quantize", "bits": 2}, SHAPE, dtype=D)
    y = operator.forward(0.5 * draw(2, *SHAPE))
    problem = Problem(operator, y, KeyedNoise(0, ["a", "b"]), 0.0)
    level = Level(a=1.0, s=0.0, p=1.0, q=0.0, scale=1.0, time=torch.zeros(()))
    found = samplers.build({"name": "covariance"}).begin(problem, level)
    covariance = dense_covariance(spectrum(SIDE, SIDE))
    variance = (0.4 * 2 / 3) ** 2 / 12 + TRUST**2
    target = y - 0.6 * y.sign() / 3  # grey is what is predicted
    expected = closed_form(torch.eye(64, dtype=D), target, torch.zeros_like(y), variance, covariance)
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=2e-3)
