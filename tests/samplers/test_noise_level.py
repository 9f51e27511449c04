"""The noise level of a measurement is found again."""

import pytest
import torch
from kit.operators import PER_SAMPLE

from kintsugi import operators
from kintsugi.numerics import diagonal_details
from kintsugi.samplers.noise_level import noise_level

SHAPE = (3, 64, 64)
LINEAR = [specs[0] for specs in PER_SAMPLE if specs[0]["name"] != "inpaint" or specs[0]["mask"] != "half"]
EXPECTED = [
    [-0.75000000, 2.07027223, -0.55472777, 0.75000000],
    [2.07027223, -0.87500000, 2.62500000, -2.07027223],
    [0.03677858, 0.99222777, -0.43750000, -0.03677858],
    [-1.91177858, -0.43750000, -1.63277223, 1.91177858],
]
"""pywt.dwtn(image, "db2")["dd"] of the image below, PyWavelets 1.8.0."""


def smooth(count):
    """Smooth images, (B, *SHAPE)."""
    rows = torch.linspace(-1, 1, SHAPE[1], dtype=torch.float64)
    phases = torch.arange(count).double()[:, None, None, None]
    return torch.sin(2 * rows[:, None] + 3 * rows + phases).expand(-1, *SHAPE) * 0.7


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cases():
    for spec in LINEAR:
        try:
            operator = operators.build(spec, SHAPE, dtype=torch.float64)
        except operators.SpecError:
            continue
        if operator.linear and min(operator.measurement_shape[1:]) >= 16:
            yield pytest.param(operator, id=f"{spec['name']}-{len(spec)}")


@pytest.mark.parametrize("operator", list(cases()))
def test_the_level_is_found_whatever_the_operator(operator):
    y = operator.forward(smooth(2))
    y = y + torch.tensor([0.05, 0.2]).double().view(2, 1, 1, 1) * noise(y.shape)
    found = noise_level(operator, y)
    off = (found.sigma - torch.tensor([0.05, 0.2]).double()).abs()
    assert (off < 4 * found.deviation + 0.002).all()
    assert (found.deviation < 0.15 * found.sigma).all()


def test_unseen_directions_are_not_misled_by_texture():
    operator = operators.build({"name": "gaussian_blur", "sigma": 2.0}, SHAPE, dtype=torch.float64)
    y = operator.forward(noise((200, *SHAPE))) + 0.01 * noise((200, *SHAPE), seed=1)
    found = noise_level(operator, y)
    assert found.unseen
    scores = (found.sigma - 0.01) / found.deviation
    assert 0.85 < scores.square().mean().sqrt() < 1.15


def test_wavelets_are_those_of_pywavelets():
    image = (torch.arange(30, dtype=torch.float64).view(1, 5, 6) ** 2).remainder(7)
    expected = torch.tensor(EXPECTED, dtype=torch.float64)
    torch.testing.assert_close(diagonal_details(image)[0], expected, atol=1e-7, rtol=0)


def test_what_was_filled_in_is_not_taken_for_noise():
    operator = operators.build({"name": "inpaint", "mask": "half"}, SHAPE, dtype=torch.float64)
    y = operator.forward(smooth(1))
    with pytest.raises(ValueError, match="holds one value"):
        noise_level(operator, y)
