"""Keyed noise depends on (seed, key, stream) and on nothing else."""

import pytest
import torch

from samplers import KeyedNoise
from samplers.noise import start_noise

SHAPE = (3, 4, 5)


def draw(seed=0, key="a", stream="start", shape=SHAPE):
    return KeyedNoise(seed, [key]).normal(stream, shape)[0]


def test_a_sample_gets_the_same_noise_in_any_batch_and_order():
    alone = draw(key="b")
    assert torch.equal(KeyedNoise(0, ["a", "b", "c"]).normal("start", SHAPE)[1], alone)
    assert torch.equal(KeyedNoise(0, ["b", "a"]).normal("start", SHAPE)[0], alone)


def test_drawing_does_not_advance_a_state():
    source = KeyedNoise(0, ["a"])
    first = source.normal("start", SHAPE)
    source.normal("other", SHAPE)
    assert torch.equal(source.normal("start", SHAPE), first)


def test_seeds_keys_and_streams_give_independent_noise():
    n = (4096,)
    base = draw(shape=n)
    for other in (draw(seed=1, shape=n), draw(key="b", shape=n), draw(stream="churn", shape=n)):
        assert (base * other).mean().abs() < 5 / 4096**0.5


def test_the_parts_are_not_concatenated():
    drawn = [
        draw(seed=1, key="2", stream="x"),
        draw(seed=1, key="2x", stream=""),
        draw(seed=1, key="", stream="2x"),
        draw(seed=12, key="", stream="x"),
        draw(seed=12, key="x", stream=""),
    ]
    for i, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:i])


def test_noise_is_standard_normal():
    sample = draw(shape=(100_000,)).double()
    assert abs(sample.mean()) < 0.02
    assert abs(sample.var() - 1) < 0.02
    assert abs((sample**4).mean() - 3) < 0.1


def test_the_first_numbers_are_pinned():
    """Published results depend on them: a change of hash, generator or NumPy's stream must be noticed."""
    expected = torch.tensor([0.6045727, -1.3871502, -0.8899326, -1.8341701, -1.3635941])
    drawn = KeyedNoise(0, ["00000001"]).normal("start", (5,))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn[0], expected, rtol=0, atol=1e-6)


def test_start_noise_has_the_type_of_the_state_and_its_shape_is_checked():
    state = torch.zeros(2, *SHAPE, dtype=torch.float64)
    noise = KeyedNoise(0, ["a", "b"])
    assert torch.equal(start_noise(noise, state), noise.normal("start", SHAPE).double())
    with pytest.raises(ValueError, match="noise has shape"):
        start_noise(torch.zeros(1, *SHAPE), state)
