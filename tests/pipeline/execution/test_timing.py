"""The network's time, from a network whose time is known."""

import time

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.pipeline.execution.timing import Metered
from kintsugi.priors.paths import VariancePreserving

FORWARD, BACKWARD = 0.004, 0.009


class Slow(torch.autograd.Function):
    """x ↦ x / 2, in a known time."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(FORWARD)
        return x / 2

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(BACKWARD)
        return gradient / 2


class SlowPrior:
    path = VariancePreserving()
    parametrization = "eps"

    def __call__(self, x, t):
        return Slow.apply(x)


@pytest.mark.parametrize("sampler", ["conjugate", "pigdm_discrete", "dps", "ddnm"])
def test_forwards_and_products_are_timed_apart(sampler):
    operator = operators.build({"name": "average_pool", "factor": 2}, (3, 8, 8))
    built = samplers.build({"name": sampler, "steps": 3})
    y, noise = torch.zeros(2, 3, 4, 4), samplers.KeyedNoise(0, ["a", "b"])
    plain = built(SlowPrior(), operator, y, noise)
    metered = Metered(SlowPrior(), torch.device("cpu"))
    metered.begin()
    started = time.perf_counter()
    result = built(metered, operator, y, noise)
    total = time.perf_counter() - started
    seconds = metered.seconds()
    assert torch.equal(result.image, plain.image)
    assert seconds["forward"] >= FORWARD * result.forwards
    assert seconds["vjp"] >= BACKWARD * result.vjps
    assert sum(seconds.values()) <= total
    assert (seconds["vjp"] > 0) == (result.vjps > 0)


def test_what_was_noted_before_is_forgotten():
    metered = Metered(SlowPrior(), torch.device("cpu"))
    metered(torch.zeros(1), torch.zeros(1))
    metered.begin()
    assert metered.seconds() == {"forward": 0.0, "vjp": 0.0}
