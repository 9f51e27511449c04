"""Extrapolation of the corrected predictions of a stepwise sampler."""

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.descent import PATH
from kintsugi.samplers.grids import time_grid
from kintsugi.testing import draw, mixture

SHAPE = (1, 8, 8)
STRENGTHS = {
    "ddnm": None,
    "ddrm": None,
    "diffpir": None,
    "dps": "zeta",
    "flower": None,
    "mcg": "zeta",
    "mmps": None,
    "pigdm_discrete": "w",
}
"""The stepwise samplers, and the strength of what they add to a state, not to a prediction."""


def restored(name, operator, **parameters):
    sampler = samplers.build({"name": name, "start": 0.9, **parameters})
    y = operator.forward(0.5 * draw(2, *SHAPE, seed=3))
    return sampler(mixture(), operator, y, KeyedNoise(0, ["a", "b"])).image


@pytest.mark.parametrize(("name", "strength"), STRENGTHS.items(), ids=list(STRENGTHS))
def test_two_predictions_are_extrapolated_as_the_formula_says(name, strength):
    """Of two steps the first leads to the state it leads to, and the result is x̂₂ + β (x̂₂ − x̂₁).

    x̂₁ is what one step to clean data leads to; what is added to the state is then added to x̂₁ / a'.
    """
    operator = operators.build({"name": "bicubic"}, SHAPE, dtype=torch.float64)
    later = float(PATH.a(time_grid(PATH, "uniform", 0.9, 0.001, 2)[1]))
    given = {strength: 0.7} if strength else {}
    second = restored(name, operator, steps=2, **given)
    first = restored(name, operator, steps=1, **{key: value / later for key, value in given.items()})
    assert (second - first).abs().max() > 0.05
    torch.testing.assert_close(
        restored(name, operator, steps=2, extrapolate=0.3, **given), second + 0.3 * (second - first)
    )


def test_with_more_steps_every_state_is_made_of_the_extrapolated_prediction():
    """DDNM without noise of its own, written out: the predictions that are extrapolated are not."""
    operator = operators.build({"name": "inpaint", "mask": "box"}, SHAPE, dtype=torch.float64)
    y, prior, beta = operator.forward(0.5 * draw(2, *SHAPE, seed=3)), mixture(), 0.3
    times = time_grid(PATH, "uniform", 0.9, 0.001, 4)[:-1]
    x = PATH.a(times[0]) * operator.pinv(y) + PATH.s(times[0]) * KeyedNoise(0, ["a", "b"]).normal(
        "start", SHAPE
    )
    before = None
    for k, t in enumerate(times):
        a, s = PATH.a(t), PATH.s(t)
        eps = prior(x, t.expand(2))
        own = (x - s * eps) / a
        corrected = own + operator.pinv(y - operator.forward(own))
        made = corrected if before is None else corrected + beta * (corrected - before)
        before = corrected
        later = (PATH.a(times[k + 1]), PATH.s(times[k + 1])) if k < 3 else (1.0, 0.0)
        x = later[0] * made + later[1] * eps
    found = restored("ddnm", operator, steps=4, eta=0, extrapolate=beta)
    torch.testing.assert_close(found, x)
    torch.testing.assert_close(operator.forward(found), y)
