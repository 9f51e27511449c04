"""What makes networks faster must not change what they compute."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kintsugi import priors
from kintsugi.priors import speed
from kintsugi.priors.base import data_prediction
from kintsugi.priors.paths import VariancePreserving

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def natural():
    return priors.load({"name": "natural"})


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


T = torch.tensor([0.1, 0.4])


def vjp(prior, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(prior(leaf, T).square().sum(), leaf)[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
def test_half_precision_is_as_good_as_what_autocast_computes(natural, x, dtype):
    single = natural(x, T)
    with torch.autocast("cpu", dtype):
        error = (natural(x, T).float() - single).norm()
    speed.half_precision(natural, dtype)
    assert natural(x, T).dtype == torch.float32
    assert (natural(x, T) - single).norm() < 1.2 * error
    assert vjp(natural, x).dtype == torch.float32


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=PRECISIONS)
def test_half_precision_costs_less_than_two_hundredths_of_a_decibel(natural, dtype):
    """Denoising at σ = 0.1 on [0, 1]: the PSNR against the truth, in float32 and in half precision."""
    from skimage.data import astronaut

    x0 = torch.from_numpy(astronaut()[:48, 200:248].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    t = natural.path.time_of(-torch.tensor([0.2], dtype=torch.float64).log())
    a, s = natural.path.a(t).item(), natural.path.s(t).item()
    noisy = a * x0 + s * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    p, q = (value.item() for value in data_prediction(natural.path, natural.parametrization, t))

    def psnr():
        return -10 * torch.log10((p * noisy + q * natural(noisy, t.float()) - x0).square().mean() / 4).item()

    single = psnr()
    speed.half_precision(natural, dtype)
    assert 25 < single < 40
    assert abs(psnr() - single) < 0.02


def test_half_precision_halves_the_weights(natural):
    def size():
        return sum(p.numel() * p.element_size() for p in natural.network.parameters())

    single = size()
    speed.half_precision(natural, torch.bfloat16)
    assert size() < 0.51 * single


def test_channels_last_changes_the_order_in_memory_only(natural, x):
    expected = natural(x, T)
    speed.channels_last(natural)
    weights = [p for p in natural.network.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    torch.testing.assert_close(natural(x, T), expected, rtol=1e-4, atol=1e-5)


def test_recomputed_activations_give_the_same_gradient(natural, x):
    expected = vjp(natural, x)
    assert speed.checkpointed(natural)
    assert torch.equal(vjp(natural, x), expected)
    assert not speed.checkpointed(natural)  # nothing more to gain


def tiny_prior(network):
    """Any network as a prior; what is tested is the way it is called."""

    class Tiny(SimpleNamespace):
        def __call__(self, x, t):
            return self.network(x, t)

    return Tiny(network=network, path=VariancePreserving(), parametrization="eps")


class TinyNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.convolution(x)) * t.view(-1, 1, 1, 1)


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_and_takes_other_sizes(x):
    torch.manual_seed(0)
    prior = tiny_prior(TinyNetwork())
    expected, gradient, alone = prior(x, T), vjp(prior, x), prior(x[:1], T[:1])
    assert speed.compiled(prior, "default", len(x), lambda: vjp(prior, x)) is None
    torch.testing.assert_close(prior(x, T), expected)
    torch.testing.assert_close(vjp(prior, x), gradient)
    torch.testing.assert_close(prior(x[:1], T[:1]), alone)


def test_a_sample_of_a_smaller_batch_is_computed_as_in_a_whole_one(monkeypatch):
    """By a network whose result depends on the size of a batch, as that of a GPU's kernels does."""
    sizes = []

    class Depends(nn.Module):
        def forward(self, x, t, labels, scale):
            sizes.append(len(x))
            return ((x * len(x)).sin() * t.view(-1, 1, 1, 1) * labels.view(-1, 1, 1, 1) * scale,)

    monkeypatch.setattr(torch, "compile", lambda network, **kwargs: network)
    prior = SimpleNamespace(network=Depends())
    assert speed.compiled(prior, "default", 4, lambda: None) is None
    x, t, labels = torch.randn(5, 3, 4, 4), torch.rand(5), torch.arange(5) + 1

    def first(count):
        leaf = x[:count].clone().requires_grad_()
        (u,) = prior.network(leaf, t[:count], labels[:count], torch.tensor(2.0))
        return u, torch.autograd.grad(u.square().sum(), leaf)[0]

    u, gradient = first(4)
    for count in (1, 2, 3):
        fewer = first(count)
        assert fewer[0].shape == fewer[1].shape == (count, 3, 4, 4)
        assert torch.equal(fewer[0], u[:count])
        assert torch.equal(fewer[1], gradient[:count])
    first(5)
    assert sizes == [4, 4, 4, 4, 5]


def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_says_so(x, monkeypatch):
    def no_compiler(model, **kwargs):
        def run(*args, **kwargs):
            raise RuntimeError("no C++ compiler found\nmore lines")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    prior = tiny_prior(TinyNetwork())
    expected = prior(x, T)
    why = speed.compiled(prior, "default", len(x), lambda: prior(x, T))
    assert why == "torch.compile failed, running without it: no C++ compiler found"
    assert torch.equal(prior(x, T), expected)


@pytest.mark.parametrize("place", ["cache", "user's", "nowhere"])
def test_what_is_compiled_is_kept_for_all_workers_of_a_machine(x, tmp_path, monkeypatch, place):
    variable, cache = "TORCHINDUCTOR_CACHE_DIR", tmp_path / "cache"
    monkeypatch.setenv(variable, "/elsewhere")
    monkeypatch.setenv("KINTSUGI_CACHE", str(cache))
    if place != "user's":
        monkeypatch.delenv(variable)
    if place == "nowhere":
        cache.write_text("in the way")
    monkeypatch.setattr(torch, "compile", lambda network, **kwargs: network)
    assert speed.compiled(tiny_prior(TinyNetwork()), "default", len(x), lambda: None) is None
    expected = {"cache": str(cache / "compiled"), "user's": "/elsewhere", "nowhere": None}
    assert os.environ.pop(variable, None) == expected[place]


def test_what_a_compiled_network_returns_survives_the_next_call(x, monkeypatch):
    """CUDA graphs write every result to the same memory; here a network that does so on a CPU."""
    memory = {}

    class Overwrites(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return memory.setdefault("output", torch.empty_like(x)).copy_(2 * x).view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            return memory.setdefault("gradient", torch.empty_like(gradient)).copy_(2 * gradient)

    monkeypatch.setattr(torch, "compile", lambda network, **kwargs: lambda x, t: Overwrites.apply(x))
    prior = tiny_prior(TinyNetwork())
    speed.compiled(prior, "reduce-overhead", len(x), lambda: None)
    leaf = x.clone().requires_grad_()
    output = prior(leaf, T)
    (gradient,) = torch.autograd.grad(output, leaf, torch.ones_like(x))
    again = prior(x + 1, T), vjp(prior, x + 1)
    assert torch.equal(output, 2 * x)
    assert torch.equal(gradient, torch.full_like(x, 2.0))
    assert not torch.equal(again[0], output)
