"""Tiles must not show: a prior on tiles against the same prior on the whole image."""

import math
import weakref
from typing import ClassVar

import numpy as np
import pytest
import torch
from kit.samplers import BY_NETWORK, FEW
from skimage.data import astronaut
from skimage.transform import resize

from kintsugi import operators, priors, samplers
from kintsugi.priors import SpecError
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.base import ClassConditional
from kintsugi.priors.paths import VariancePreserving
from kintsugi.priors.tiled import Tiled, starts, windows
from kintsugi.samplers import KeyedNoise
from kintsugi.testing import suited

T = torch.tensor([0.1, 0.4, 0.7])
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def natural():
    return priors.load({"name": "natural"})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vjp(prior, x, t, cotangent):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(prior(leaf, t), leaf, cotangent)[0]


class Recording:
    """A pointwise prior, u = t sin x, that keeps what it is shown."""

    path, parametrization = VariancePreserving(), "eps"

    def __init__(self):
        self.seen = []

    def __call__(self, x, t):
        self.seen.append(x.detach())
        return t.view(-1, 1, 1, 1) * torch.sin(x)


# Windows.


@pytest.mark.parametrize(("tile", "multiple"), [(32, 8), (40, 8), (64, 16), (12, 4), (7, 1), (8, 8)])
def test_windows_cover_every_pixel_and_their_weights_sum_to_one(tile, multiple):
    for overlap in sorted({0, min(1, tile - multiple), (tile - multiple) // 2, tile - multiple}):
        for side in [*range(1, 3 * tile), 1000, 1003]:
            axis = windows(side, tile, multiple, overlap, CPU, torch.float64)
            index, weight = (values.view(axis.count, axis.length) for values in (axis.index, axis.weight))
            begin = index[:, 0]
            assert axis.length == min(tile, side + -side % multiple)
            assert (begin % multiple == 0).all()
            assert (begin[:-1] + axis.length - begin[1:] >= overlap).all()
            positions = begin[:, None] + torch.arange(axis.length)
            inside = positions < side
            assert torch.equal(index[inside], positions[inside])
            assert (positions < side + -side % multiple).all()  # the rest is the last few, by reflection
            assert (weight[inside] > 0).all()
            assert (weight[~inside] == 0).all()
            total = torch.zeros(side, dtype=weight.dtype).index_add(0, axis.index, axis.weight)
            torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)


def test_windows_are_evenly_spread_and_the_fewest_with_the_overlap():
    for tile, overlap in [(8, 0), (8, 3), (8, 7), (32, 4), (5, 2)]:
        for side in range(1, 200):
            begin = np.array(starts(side, tile, overlap))
            assert begin[0] == 0
            assert begin[-1] == max(side - tile, 0)
            if len(begin) > 1:
                gaps = np.diff(begin)
                assert (tile - gaps >= overlap).all()
                assert gaps.max() - gaps.min() <= 1
                assert (len(begin) - 2) * (tile - overlap) < side - tile  # one fewer would not reach


def test_weights_fall_smoothly_to_nothing_where_the_neighbour_begins():
    first, second = windows(96, 64, 8, 32, CPU, torch.float64).weight.view(2, 64)
    assert torch.equal(first[:32], torch.ones(32, dtype=torch.float64))
    torch.testing.assert_close(first, second.flip(0))
    falls = -first[31:].diff()
    assert (falls > 0).all()
    assert falls.max() < 2.5 / 32
    assert first[-1] < 0.001


# What the network sees, and what is made of it.

SIZES = [(1, 1), (3, 50), (16, 16), (31, 33), (37, 101), (64, 24)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("overlap", [0, 5, 8])
def test_a_pointwise_prior_gives_the_untiled_result_and_vjp_for_every_size(size, overlap):
    """Every image has its own time, and network calls hold tiles of different images."""
    prior = Recording()
    tiled = Tiled(prior, tile=16, multiple=4, overlap=overlap, batch=4)
    x, cotangent = draw(3, 2, *size), draw(3, 2, *size, seed=1)
    assert (tiled.path, tiled.parametrization, tiled.prior) == (prior.path, "eps", prior)
    torch.testing.assert_close(tiled(x, T), prior(x, T), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(vjp(tiled, x, T, cotangent), vjp(prior, x, T, cotangent), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(tiled(x, T[1]), prior(x, T[1].expand(3)), rtol=1e-6, atol=1e-6)


def test_the_network_sees_batch_tiles_at_once_and_each_once(natural):
    prior = Recording()
    Tiled(prior, tile=16, multiple=4, overlap=4, batch=5)(draw(3, 3, 40, 28), T)
    per_image = math.prod(len(starts(side // 4, 4, 1)) for side in (40, 28))
    assert [len(x) for x in prior.seen] == [5] * (3 * per_image // 5) + [3 * per_image % 5]
    assert {x.shape[1:] for x in prior.seen} == {(3, 16, 16)}


@pytest.mark.parametrize("size", [(10, 16), (3, 13), (1, 2)], ids=str)
def test_small_images_are_continued_by_reflection(size):
    prior = Recording()
    x = draw(3, 2, *size)
    Tiled(prior, tile=32, multiple=8, overlap=8, batch=3)(x, T)
    ends = [(0, -side % 8) for side in size]
    expected = np.pad(x.numpy(), [(0, 0), (0, 0), *ends], mode="symmetric")
    assert len(prior.seen) == 1
    np.testing.assert_array_equal(prior.seen[0].numpy(), expected)


def test_an_image_of_one_tile_goes_to_the_network_as_it_is(natural):
    x = draw(2, 3, 24, 16)
    prior = Recording()
    Tiled(prior, tile=24, multiple=8, overlap=8, batch=2)(x, T[:2])
    assert prior.seen[0].data_ptr() == x.data_ptr()
    assert torch.equal(Tiled(natural, 24, 8, 8, batch=2)(x, T[:2]), natural(x, T[:2]))


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_tiles_at_once(natural):
    """All at once nothing is recomputed; otherwise activations are, and the gradient is the same."""
    x, cotangent = draw(2, 3, 44, 52), draw(2, 3, 44, 52, seed=1)
    together = Tiled(natural, 32, 8, 8, batch=100)
    expected, gradient = together(x, T[:2]), vjp(together, x, T[:2], cotangent)
    for batch in (1, 3, 8):
        tiled = Tiled(natural, 32, 8, 8, batch)
        torch.testing.assert_close(tiled(x, T[:2]), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vjp(tiled, x, T[:2], cotangent), gradient, rtol=1e-4, atol=1e-5)


class Exponential(torch.autograd.Function):
    """Keeps its result for the backward pass, in memory whose life can be watched."""

    kept: ClassVar[list[weakref.ref]] = []
    alive_in_backward: ClassVar[list[int]] = []

    @classmethod
    def alive(cls):
        return sum(reference() is not None for reference in cls.kept)

    @staticmethod
    def forward(ctx, x):
        result = np.exp(x.numpy())
        Exponential.kept.append(weakref.ref(result))
        ctx.save_for_backward(torch.from_numpy(result))
        return torch.from_numpy(result.copy())

    @staticmethod
    def backward(ctx, gradient):
        (result,) = ctx.saved_tensors
        Exponential.alive_in_backward.append(Exponential.alive())
        return gradient * result


def test_activations_are_kept_for_one_batch_of_tiles_at_a_time():
    class Exponentials(Recording):
        def __call__(self, x, t):
            return Exponential.apply(x)

    x = draw(1, 1, 64, 64).requires_grad_()
    output = Tiled(Exponentials(), tile=16, multiple=8, overlap=8, batch=2)(x, T[:1])
    calls = len(Exponential.kept)
    assert calls == 49 // 2 + 1
    assert Exponential.alive() == 0
    (gradient,) = torch.autograd.grad(output.sum(), x)
    assert Exponential.alive_in_backward == [1] * calls
    torch.testing.assert_close(gradient, x.detach().exp())


class Labelled:
    """A class-conditional prior, u = (class + 1) x², as strict about its labels as the published networks."""

    path, parametrization = VariancePreserving(), "eps"

    def __init__(self, label=None):
        self.classes, self.label, self.labels = 10, label, None

    def __call__(self, x, t):
        labels = torch.full((len(x),), self.label) if self.label is not None else self.labels
        assert len(labels) == len(x)
        return (labels + 1).view(-1, 1, 1, 1) * x.square()


def test_every_tile_has_the_class_of_its_image():
    """In the backward pass too, where tiles are shown to the network again."""
    prior = Labelled()
    tiled = Tiled(prior, tile=16, multiple=4, overlap=4, batch=4)
    assert isinstance(tiled, ClassConditional)
    assert (tiled.classes, tiled.label) == (10, None)
    labels = torch.tensor([7, 0, 3])
    factors = (labels + 1).view(-1, 1, 1, 1)
    x, cotangent = draw(3, 2, 41, 30), draw(3, 2, 41, 30, seed=1)
    tiled.labels = labels
    torch.testing.assert_close(tiled(x, T), factors * x.square())
    torch.testing.assert_close(vjp(tiled, x, T, cotangent), factors * 2 * x * cotangent)
    assert torch.equal(tiled.labels, labels)
    tiled.labels = labels[:2]
    with pytest.raises(SpecError, match="2 given for 3 images"):
        tiled(x, T)
    one = Tiled(Labelled(label=2), tile=16, multiple=4, overlap=4, batch=4)
    torch.testing.assert_close(one(x, T), 3 * x.square())


def test_a_prior_without_classes_takes_no_labels(natural):
    tiled = Tiled(natural, 32, natural.multiple, 8)
    assert tiled.classes is tiled.label is tiled.labels is None
    with pytest.raises(SpecError, match="no classes"):
        tiled.labels = torch.tensor([1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 20}, r"^tile: .* multiple of 8, .*got 20"),
        ({"tile": 0}, "^tile:"),
        ({"overlap": 25}, r"^overlap: .* 0 to 24 .*got 25"),
        ({"overlap": -1}, "^overlap:"),
        ({"batch": 0}, "^batch:"),
    ],
)
def test_tiles_that_do_not_fit_are_refused_by_field(arguments, message):
    with pytest.raises(SpecError, match=message):
        Tiled(Recording(), **{"tile": 32, "multiple": 8, "overlap": 8} | arguments)


# Restorations.


@pytest.mark.parametrize("name", BY_NETWORK)
def test_every_sampler_restores_by_tiles_what_it_restores_whole(name):
    """A pointwise prior: what the sampler, the operator and the guidance do must know nothing of tiles."""
    operator = operators.build({"name": "gaussian_blur", "sigma": 1.0, "taps": 5}, (3, 20, 37))
    y = operator.forward(draw(2, 3, 20, 37)) + 0.1 * draw(2, 3, 20, 37, seed=1)
    sampler = samplers.build({"name": name, "steps": 4, "start": 0.4, **FEW.get(name, {})})
    prior = suited(StandardNormal(), sampler, operator)
    tiled = Tiled(prior, tile=16, multiple=4, overlap=4, batch=3)
    whole, parts = (
        sampler(p, operator, y, KeyedNoise(0, ["a", "b"]), sigma_y=0.1).image for p in (prior, tiled)
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_tiles_do_not_show_in_a_restoration(natural):
    """Near the windows' edges tiles differ from the whole by much less than the sampler's own noise."""
    small = resize(astronaut(), (96, 96), anti_aliasing=True)
    truth = torch.from_numpy(small).permute(2, 0, 1)[None].float() * 2 - 1
    operator = operators.build({"name": "bicubic", "factor": 4}, (3, 96, 96))
    sampler = samplers.build({"name": "conjugate", "steps": 3, "w": 15})
    y = operator.forward(truth)

    def restored(prior, seed=0):
        return sampler(prior, operator, y, KeyedNoise(seed, ["astronaut"])).image

    def near_edges(difference, tile):
        band = torch.zeros(96, dtype=torch.bool)
        for line in (tile, 96 - tile):
            band[line - 2 : line + 2] = True
        return difference[..., band[:, None] | band].square().mean().sqrt().item()

    whole = restored(natural)
    noise = (restored(natural, seed=1) - whole).square().mean().sqrt().item() / math.sqrt(2)
    blended, abutting = (
        near_edges(restored(Tiled(natural, tile, 8, overlap, batch=4)) - whole, tile)
        for tile, overlap in ((64, 32), (48, 0))
    )
    assert blended < 0.25 * noise
    assert abutting > 0.5 * noise
