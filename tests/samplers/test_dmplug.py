"""DMPlug against its paper's objective, by autograd through all steps of DDIM at once."""

from itertools import pairwise

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.priors.paths import VariancePreserving
from kintsugi.samplers import KeyedNoise, SpecError
from kintsugi.testing import draw, mixture

D, PATH, SHAPE, KEYS = torch.float64, VariancePreserving(), (1, 8, 8), ["a", "b"]
START, END = 0.95, 0.001


def transcribed(operator, y, updates, lr, ode_steps):
    """R(z) by DDIM in ᾱ, torch's Adam on the mean square of y − H(R(z)), sample by sample."""
    prior, times = mixture(), torch.linspace(START, END, ode_steps + 1, dtype=D)[:-1]

    def generate(x):
        for t, later in pairwise([*times, None]):
            ab, after = PATH.a(t) ** 2, torch.ones((), dtype=D) if later is None else PATH.a(later) ** 2
            eps = prior(x, t.expand(len(x)))
            x = after**0.5 * (x - (1 - ab) ** 0.5 * eps) / ab**0.5 + (1 - after) ** 0.5 * eps
        return x

    images = []
    for key, one in zip(KEYS, y.split(1), strict=True):
        noise = KeyedNoise(0, [key]).normal("start", SHAPE).double()
        z = (PATH.a(times[0]) * operator.pinv(one) + PATH.s(times[0]) * noise).requires_grad_()
        adam = torch.optim.Adam([z], lr=lr)
        for _ in range(updates):
            adam.zero_grad()
            (operator.forward(generate(z)) - one).square().mean().backward()
            adam.step()
        images.append(generate(z).detach())
    return torch.cat(images)


@pytest.mark.parametrize(("updates", "ode_steps"), [(0, 3), (1, 1), (12, 3)])
@pytest.mark.parametrize("kind", ["bicubic", "hdr"])
def test_it_minimises_the_objective_of_its_paper(kind, updates, ode_steps):
    operator = operators.build({"name": kind}, SHAPE, dtype=D)
    y = operator.forward(draw(2, *SHAPE, seed=3) / 2)
    spec = {"steps": (updates + 1) * ode_steps, "ode_steps": ode_steps, "lr": 0.05, "start": START}
    found = samplers.build({"name": "dmplug", **spec})(mixture(), operator, y, KeyedNoise(0, KEYS))
    torch.testing.assert_close(
        found.image, transcribed(operator, y, updates, 0.05, ode_steps), rtol=1e-7, atol=1e-7
    )
    assert (found.forwards, found.vjps) == ((updates + 1) * ode_steps, updates * ode_steps)


def test_a_longer_search_agrees_better_with_the_measurement():
    operator = operators.build({"name": "bicubic"}, SHAPE, dtype=D)
    y = operator.forward(mixture().means[:2] + 0.1 * draw(2, *SHAPE, seed=3))
    misfits = [
        (operator.forward(samplers.build({"name": "dmplug", "steps": steps, "lr": 0.05})(
            mixture(), operator, y, KeyedNoise(0, KEYS)
        ).image) - y).norm()
        for steps in (3, 60, 300)
    ]  # fmt: skip
    assert misfits[2] < 0.5 * misfits[1] < 0.25 * misfits[0]


def test_steps_are_whole_trajectories():
    with pytest.raises(SpecError, match=r"ode_steps: 3 does not divide the 10 steps"):
        samplers.build({"name": "dmplug", "steps": 10})
