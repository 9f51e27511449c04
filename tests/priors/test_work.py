"""What networks ask of a device: nothing idle, no gradients of weights, no copies of images around norms."""

import diffusers
import pytest
import torch
from kit.counting import Operations, by_one, casts, pretended_gpu
from kit.edm import make as make_edm
from kit.networks import draw, make_adm, make_lucidrains, make_ncsnpp
from kit.pipelines import save
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import group_norm

from kintsugi import priors
from kintsugi.priors import speed
from kintsugi.priors.base import autoencoder_of
from kintsugi.priors.formats import adm
from kintsugi.priors.formats.adm_training import Known

FORMATS = [
    "natural",
    "natural_latent",
    "adm",
    "edm",
    "rectified_flow",
    "score_sde",
    "lucidrains",
    "diffusers",
]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A prior of every built-in format, of test size, and its times."""
    folder = tmp_path_factory.mktemp("priors")
    path, head_channels, *_ = make_adm(folder, "ffhq-like")
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    trained, x = ("luc", "pred_noise", torch.linspace(1e-3, 0.2, 100).double()), draw(2, 3, 16, 16)
    specs = {
        "natural": {},
        "natural_latent": {},
        "adm": {"path": str(path), "head_channels": head_channels},
        "edm": make_edm(folder, "iddpm"),
        "rectified_flow": {"path": str(make_ncsnpp(folder, "narrow")[0])},
        "score_sde": {"path": str(make_ncsnpp(folder, "wide", levels=(100.0, 0.01))[0])},
        "lucidrains": {"path": str(make_lucidrains(folder, *trained, x, torch.ones(2))[0])},
        "diffusers": {"path": str(save(folder / "saved", scheduler))},
    }
    assert specs.keys() == priors.BUILTIN.keys()
    return {name: priors.load({"name": name} | spec) for name, spec in specs.items()}


def state(prior):
    """What a prior takes: two images, or latents of such."""
    return draw(2, autoencoder.channels if (autoencoder := autoencoder_of(prior)) else 3, 16, 16)


def forward_and_vjp(prior):
    leaf = state(prior).requires_grad_()
    u = prior(leaf, torch.tensor([0.25, 0.75]))
    return u, torch.autograd.grad(u, leaf, torch.ones_like(u))[0]


def leaves(node):
    """All that a graph of autograd ends in."""
    seen, open_ = set(), [node]
    while open_:
        if (here := open_.pop()) is not None and here not in seen:
            seen.add(here)
            open_ += [parent for parent, _ in here.next_functions]
    return [each.variable for each in seen if hasattr(each, "variable")]


@pytest.mark.parametrize("name", FORMATS)
def test_derivatives_are_of_the_input_alone(loaded, name):
    network = loaded[name].network
    assert not any(weight.requires_grad for weight in network.parameters())
    assert not any(module.training for module in network.modules())
    x = state(loaded[name]).requires_grad_()
    (only,) = leaves(loaded[name](x, torch.tensor([0.25, 0.75])).grad_fn)
    assert only is x


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_divided_or_multiplied_by_one_and_nothing_dropped(loaded, name):
    with Operations() as operations:
        forward_and_vjp(loaded[name])
    assert not by_one(operations, "div") + by_one(operations, "mul")
    assert not [each for each in operations.done if "dropout" in each.name]


@pytest.mark.parametrize("name", FORMATS)
def test_without_the_divisions_by_one_results_are_the_same_bits(loaded, name):
    idle = [
        (module, divisor)
        for module in loaded[name].network.modules()
        for divisor in speed.DIVISORS
        if isinstance(getattr(module, divisor, None), speed.Nothing)
    ]
    u, vjp = forward_and_vjp(loaded[name])
    for module, divisor in idle:
        setattr(module, divisor, 1.0)
    with Operations() as operations:
        again = forward_and_vjp(loaded[name])
    assert len(by_one(operations, "div")) == 2 * len(idle), (
        "of each one in the forward pass and one in the backward pass"
    )
    speed.drop_idle(loaded[name].network)
    assert bool(idle) == (name in ("natural", "natural_latent", "adm", "diffusers")), "of other blocks"
    assert torch.equal(u, again[0])
    assert torch.equal(vjp, again[1])


@pytest.mark.parametrize("name", FORMATS)
def test_the_host_reads_nothing_and_no_activation_changes_its_type(loaded, name):
    """With its derivative; that no step of a sampler reads anything beside it, test_methods.py has."""
    with Operations() as operations:
        forward_and_vjp(loaded[name])
    assert not operations.named("_local_scalar_dense")
    assert not [each for each in operations.named("_to_copy") if each.results[0].ndim > 2]


@pytest.mark.parametrize("name", FORMATS)
def test_traced_as_a_graph_of_all_operations_it_has_none_that_is_idle(loaded, name):
    """As a compiler sees it; a value that the host reads has none in a graph, and would be an error."""
    x, t = state(loaded[name]), torch.tensor([0.25, 0.75])
    graph = make_fx(loaded[name])(x, t).graph
    called = [node for node in graph.nodes if node.op == "call_function"]
    assert len(called) > 20
    for node in called:
        what = str(node.target)
        assert "_local_scalar_dense" not in what
        if what.startswith(("aten.div", "aten.mul")) and node.meta["val"].ndim > 2:
            assert node.args[1] != 1


def test_a_compiler_understands_what_stands_for_one():
    class Half(nn.Module):
        output_scale_factor = 1.0

        def forward(self, x):
            return x.sin() / self.output_scale_factor

    network, x = Half(), draw(2, 3)
    speed.drop_idle(network)
    assert torch.equal(torch.compile(network, backend="eager", fullgraph=True)(x), x.sin())


def network_on_gpu(narrow):
    """ADM's layout in bf16 on a pretended GPU: the operations of a forward."""
    network = adm.build(adm.Layout(32, (32, 64), 1, (1,), None, 6, Known(32))).eval().requires_grad_(False)
    speed.drop_idle(network)
    network = speed.HalfPrecision(network, torch.bfloat16)
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    for module in [] if narrow else network.modules():
        if hasattr(module, speed.TYPE):
            module.__class__ = type(module).__bases__[0]
            module.float()
    with pretended_gpu(network):
        x, t = torch.empty(2, 3, 32, 32, device="cuda"), torch.empty(2, device="cuda")
        with Operations() as operations:
            network(x, t, None, return_dict=False)
    return operations, len(norms)


class Attention(torch.autograd.Function):
    """Which keeps what a GPU's fused attention does: its inputs, the output, and a number for each query."""

    @staticmethod
    def forward(ctx, q, k, v):
        output = torch.empty_like(q)
        of_queries = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        ctx.save_for_backward(q, k, v, output, of_queries)
        return output


def saved_by(layout, dtype):
    """GiB that autograd keeps of an image of 256² for a vector-Jacobian product, beside the weights."""
    network = adm.build(layout).eval().requires_grad_(False)
    speed.drop_idle(network)
    if dtype is not None:
        network = speed.HalfPrecision(network, dtype)
    saved = {}

    def keep(x):
        saved[x.untyped_storage()._cdata] = x.untyped_storage()
        return x

    with pretended_gpu(network, lambda q, k, v, *_, **__: Attention.apply(q, k, v)):
        weights = {weight.untyped_storage()._cdata for weight in network.parameters()}
        x, t = torch.empty(1, 3, 256, 256, device="cuda", requires_grad=True), torch.empty(1, device="cuda")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            network(x, t, None, return_dict=False)
        return sum(s.nbytes() for place, s in saved.items() if place not in weights) / 2**30


def test_around_norms_in_half_precision_no_activations_are_copied():
    """On CUDA, by the rules of its autocast; else every norm had a copy before it and one behind."""
    before, norms = network_on_gpu(False)
    after, _ = network_on_gpu(True)
    single, half = torch.float32, torch.bfloat16
    assert casts(before, half, single) > norms
    assert (casts(after, half, single), casts(after, single, half)) == (1, 1), "the output and the input"
    assert all(each.results[0].dtype == half for each in after.named("native_group_norm"))
    assert sum(each.bytes for each in after.done) < 0.75 * sum(each.bytes for each in before.done)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, 2.31), (None, 4.61)], ids=["bf16", "float32"])
def test_what_a_derivative_keeps_of_an_image_is_below_two_and_a_half_gib_in_bf16(dtype, kept):
    """By ADM's network for ImageNet 256, on a pretended GPU: all that autograd keeps between the passes."""
    assert saved_by(
        adm.Layout(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5), None, 6, Known(64)), dtype
    ) == (pytest.approx(kept, abs=0.01))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_norm_in_half_precision_is_right_to_its_rounding(dtype):
    """Of many values far from zero, whose sums in half precision would be wrong by far."""
    norm = nn.GroupNorm(2, 8)
    norm.weight.data, norm.bias.data = 1 + 0.3 * draw(8), 0.3 * draw(8, seed=1)
    network = speed.HalfPrecision(nn.Sequential(norm), dtype)
    x = (20 + 4 * draw(2, 8, 64, 64)).to(dtype)
    weight, bias = (each.double() for each in (norm.weight, norm.bias))
    expected = group_norm(x.double(), 2, weight, bias, norm.eps)
    found = network.network(x)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps
    assert ((found.double() - expected).abs() <= 0.51 * unit * expected.abs() + 1e-5).all()
