"""Keyed noise depends on (seed, key, stream) and on nothing else."""

import threading

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.samplers import KeyedNoise, problem
from kintsugi.samplers.noise import threads
from kintsugi.testing import mixture

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


def test_poisson_counts_have_their_rate_as_mean_and_variance():
    rates = torch.full((2, 50_000), 3.0)
    counts = KeyedNoise(0, ["a", "b"]).poisson("photons", rates)
    assert counts.dtype == rates.dtype
    assert torch.equal(counts, counts.round())
    assert (counts.mean(1) - 3).abs().max() < 0.05
    assert (counts.var(1) - 3).abs().max() < 0.1
    assert (KeyedNoise(0, ["a"]).poisson("photons", torch.zeros(1, 9)) == 0).all()


def test_poisson_counts_belong_to_their_sample():
    rates = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)) * 10
    counts = KeyedNoise(0, ["a", "b", "c"]).poisson("photons", rates)
    assert torch.equal(KeyedNoise(0, ["c", "b"]).poisson("photons", rates[[2, 1]]), counts[[2, 1]])


def test_noise_is_the_same_from_any_number_of_threads():
    before = torch.get_num_threads()
    drawn = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            drawn.append(KeyedNoise(0, list("abcde")).normal("step-1", SHAPE))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


class Told(KeyedNoise):
    """Notes which thread draws what."""

    def normal(self, stream, shape):
        self.drawn.append((stream, threading.current_thread().name.split("_")[0]))
        return super().normal(stream, shape)


@pytest.mark.parametrize(
    "spec", [{"name": "ddrm"}, {"name": "pnp_flow", "draws": 2}, {"name": "daps", "ode_steps": 2}]
)
def test_noise_is_drawn_ahead_of_its_step_and_is_the_same(spec, monkeypatch):
    operator = operators.build({"name": "inpaint", "mask": "half"}, (1, 8, 8))
    sampler = samplers.build({"steps": 4, **spec})
    images = []
    for ahead in (False, True):
        monkeypatch.setattr(problem, "draws_ahead", lambda device, ahead=ahead: ahead)
        noise = Told(0, ["a", "b"])
        noise.drawn = []
        images.append(sampler(mixture(), operator, torch.zeros(2, 1, 8, 8), noise, sigma_y=0.1).image)
        threads("ahead", 1).submit(int).result()  # behind the last draw, for which nobody waits
        others = [stream for stream, thread in noise.drawn if thread == "ahead"]
        assert (others[:2] == ["step-2", "step-3"]) == ahead
        assert sorted({s for s, _ in noise.drawn}) == sorted(s for s, _ in noise.drawn), "each drawn once"
    assert torch.equal(*images)
