"""Published checkpoint formats: against the original projects' outputs, and against plain references.

The references below compute a network's output from its state dict with torch's functions. Where a weight
is missing they draw it, so that one run makes the file in the original format, and its expected output.
"""

import logging
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.networks import ADM, NCSNPP, Weights, adm_reference, draw, make_adm, make_ncsnpp
from safetensors.torch import save_file

from kintsugi import cache, checkpoint, priors
from kintsugi.checkpoint import CheckpointError
from kintsugi.errors import SpecError
from kintsugi.priors.base import data_prediction
from kintsugi.priors.formats import adm, ncsnpp, rectified_flow
from kintsugi.priors.formats.adm_training import ADM as PUBLISHED
from kintsugi.priors.formats.adm_training import Known, Told
from kintsugi.priors.formats.layout import in_file
from kintsugi.priors.paths import DDPM
from kintsugi.registry import construct
from kintsugi.testing import check_prior

SHARED = Path(os.environ.get("KINTSUGI_SHARED", Path(__file__).parents[3] / "shared"))
GOLDEN = SHARED / "golden" / "checkpoints"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden checkpoints in {GOLDEN} (KINTSUGI_SHARED)"
)
NATURAL = Path(__file__).parents[2] / "priors" / "natural" / "natural.safetensors"
REGISTRY = {"adm": adm.adm, "rectified_flow": rectified_flow.rectified_flow}
DESCRIBE = {"adm": adm.describe, "rectified_flow": rectified_flow.describe}


def load(name, path, **parameters):
    return construct("prior", REGISTRY, {"name": name, "path": str(path), **parameters}, "cpu")


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# References.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def adm_file(folder):
    return make_adm(folder, "plain")[0]


@pytest.fixture(scope="module")
def flow_file(folder):
    return make_ncsnpp(folder, "narrow")[0]


@pytest.fixture(scope="module")
def conditional_file(folder):
    return make_adm(folder, "conditional")


@pytest.fixture(scope="module", params=["adm", "rectified_flow"])
def any_prior(request, adm_file, flow_file):
    """Name, file and prior."""
    if request.param == "adm":
        return "adm", adm_file, load("adm", adm_file, head_channels=32)
    return "rectified_flow", flow_file, load("rectified_flow", flow_file)


# Against the original projects.


@needs_golden
@pytest.mark.parametrize("name", ["adm_like_imagenet", "adm_like_ffhq"])
def test_adm_is_the_original(name):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "adm_outputs.npz").items()}
    prior = load("adm", GOLDEN / f"{name}.pt", head_channels=16)
    u = prior(golden[f"{name}|x"], golden[f"{name}|t"])
    assert relative_error(u, golden[f"{name}|y"][:, :3]) < 1e-5


@needs_golden
def test_rectified_flow_is_the_original():
    """The golden network is as initialised, with outputs that hardly depend on time and attention."""
    golden = {
        key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "rectified_flow_outputs.npz").items()
    }
    prior = load("rectified_flow", GOLDEN / "rectified_flow_like.pth")
    assert relative_error(prior(golden["x"], golden["t"] / 999), golden["y"]) < 1e-7


@needs_golden
@pytest.mark.parametrize("name", ["adm_like_imagenet", "adm_like_ffhq"])
def test_the_adm_reference_is_the_original(name):
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "adm_outputs.npz").items()}
    layout = adm.describe(path=GOLDEN / f"{name}.pt", head_channels=16)
    multipliers = [width / layout.channels for width in layout.widths]
    w = Weights()
    w.update(torch.load(GOLDEN / f"{name}.pt", weights_only=True))
    x, t = golden[f"{name}|x"], golden[f"{name}|t"]
    y = adm_reference(w, x, t, 32, multipliers, layout.blocks, layout.attention, 16, None, 6, None)
    assert relative_error(y, golden[f"{name}|y"]) < 1e-5


# Against the references.


@pytest.mark.parametrize("name", ADM)
def test_adm_is_the_reference(name, folder):
    path, head_channels, x, t, labels, epsilon = make_adm(folder, name)
    prior = load("adm", path, head_channels=head_channels)
    prior.labels = labels
    assert relative_error(prior(x, t), epsilon) < 1e-5
    channels, multipliers, blocks, attention, *_, classes, outputs = ADM[name]
    layout = adm.describe(path=path, head_channels=head_channels)
    assert layout.widths == tuple(int(channels * m) for m in multipliers)
    assert (layout.channels, layout.blocks, set(layout.attention)) == (channels, blocks, attention)
    assert (layout.classes, layout.outputs, prior.classes) == (classes, outputs, classes)
    assert layout.parameters == sum(weight.numel() for weight in prior.network.parameters())
    assert layout.multiple == 2 ** (len(multipliers) - 1)


@pytest.mark.parametrize("name", NCSNPP)
def test_rectified_flow_is_the_reference_with_averaged_weights(name, folder):
    path, x, t, velocity = make_ncsnpp(folder, name)
    prior = load("rectified_flow", path)
    assert relative_error(prior(x, t), velocity) < 1e-5
    layout = rectified_flow.describe(path=path)
    assert (layout.widths, layout.blocks, set(layout.attention)) == NCSNPP[name]
    assert layout.parameters == sum(weight.numel() for weight in prior.network.parameters())
    assert layout.multiple == 2 ** (len(layout.widths) - 1)


def test_published_layouts_have_their_published_sizes():
    """ADM's parameters as in the paper: 554 M for ImageNet 256, 559 M for 512, with classes."""
    layouts = [adm.Layout(*of[:4], classes, 6, Known(64)) for of in PUBLISHED for classes in (None, 1000)]
    for layout in layouts:
        assert adm.infer(in_file(adm.entries(layout)), Path("x"), Told()) == layout
    sizes = [layout.parameters for layout in layouts]
    assert sizes[0] == 552_814_086
    assert [round(size / 1e6) for size in sizes[1:5]] == [554, 558, 559, 94]
    flow = ncsnpp.Layout((128, 128, 256, 256, 256, 256, 256), 2, (4,), base=128)
    assert ncsnpp.infer(in_file(ncsnpp.entries(flow)), Path("x")) == flow
    assert round(flow.parameters / 1e6, 1) == 65.6


# What every prior does.


def test_priors_have_a_vjp_and_frozen_weights(any_prior):
    """Against central differences along the gradient itself, where the derivative is its norm."""
    prior = any_prior[2]
    x, cotangent, t = draw(1, 3, 16, 16), draw(1, 3, 16, 16, seed=1), torch.tensor([0.5])
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(leaf, t), leaf, cotangent)
    step = 0.01 * gradient / gradient.norm()
    rise = ((prior(x + step, t) - prior(x - step, t)) * cotangent).sum() / 0.02
    torch.testing.assert_close(rise, gradient.norm(), rtol=1e-2, atol=0)
    assert not prior.network.training
    for weight in prior.network.parameters():
        assert not weight.requires_grad
        assert weight.dtype == torch.float32


def test_priors_have_the_properties_that_are_offered_to_authors(any_prior):
    name, path, _ = any_prior
    check_prior({"name": name, "path": str(path)} | ({"head_channels": 32} if name == "adm" else {}))


def test_a_description_has_the_layout_of_the_prior(any_prior):
    name, path, prior = any_prior
    parameters = {"head_channels": 32} if name == "adm" else {}
    layout = construct("prior", DESCRIBE, {"name": name, "path": str(path), **parameters})
    assert cache.checksum(layout.files) == prior.sha256
    assert prior.parametrization == {"adm": "eps", "rectified_flow": "v"}[name]


def test_bytes_that_were_lost_in_the_file_are_found(any_prior, tmp_path):
    """A hole of zeros, as a download leaves that was not finished; torch itself opens such a file."""
    name, path, _ = any_prior
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    damaged = tmp_path / path.name
    damaged.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: wrong checksum of '.*/data/\d+'"):
        checkpoint.check_intact(damaged)
    spec = {"name": name, "path": str(damaged)} | ({"head_channels": 32} if name == "adm" else {})
    with pytest.raises(SpecError, match="is damaged"):
        priors.examine(spec, (3, 32, 32))
    checkpoint.check_intact(path)


def test_weights_are_adopted_without_copies(adm_file):
    state = checkpoint.tensors(checkpoint.read(adm_file), adm_file)
    layout = adm.infer(state, adm_file, Told(32))
    network = adm.build(layout)
    assert all(weight.is_meta for weight in network.parameters())
    checkpoint.adopt(network, adm.renamed(state, layout), adm_file)
    in_file = {tensor.data_ptr() for tensor in state.values()}
    copied = [name for name, weight in network.named_parameters() if weight.data_ptr() not in in_file]
    assert all(name.rsplit(".", 2)[1] in ("to_q", "to_k", "to_v") for name in copied)


@pytest.mark.parametrize("form", ["half", "double", "old format", "safetensors"])
def test_files_in_other_forms_load_the_same(form, adm_file, tmp_path):
    """Half precision rounds the weights; they run in float32 all the same."""
    state, path = torch.load(adm_file, weights_only=True), tmp_path / "other.pt"
    if form == "half":
        state = {key: value.half() for key, value in state.items()}
        torch.save({key: value.float() for key, value in state.items()}, tmp_path / "rounded.pt")
        adm_file = tmp_path / "rounded.pt"
    if form == "double":
        state = {key: value.double() for key, value in state.items()}
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form != "old format")
    x, t = draw(2, 3, 16, 16), torch.tensor([10.0, 700.0])
    found, expected = (load("adm", file, head_channels=32) for file in (path, adm_file))
    assert adm.describe(path=path, head_channels=32) == adm.describe(path=adm_file, head_channels=32)
    assert {weight.dtype for weight in found.network.parameters()} == {torch.float32}
    assert torch.equal(found(x, t), expected(x, t))


# Classes.


def test_one_class_for_all_is_that_class_for_each(conditional_file):
    path, head_channels, x, t, _, _ = conditional_file
    one = load("adm", path, head_channels=head_channels, label=4)
    each = load("adm", path, head_channels=head_channels)
    each.labels = torch.tensor([4, 4])
    assert torch.equal(one(x, t), each(x, t))
    each.labels = torch.tensor([4, 5])
    assert torch.equal(one(x, t)[0], each(x, t)[0])
    assert not torch.equal(one(x, t)[1], each(x, t)[1])


def test_a_conditional_prior_needs_a_class_for_every_image(conditional_file):
    path, head_channels, x, t, _, _ = conditional_file
    prior = load("adm", path, head_channels=head_channels)
    with pytest.raises(SpecError, match=r"label.*prior\.label"):
        prior(x, t)
    prior.labels = torch.tensor([1])
    with pytest.raises(SpecError, match="1 given for 2 images"):
        prior(x, t)


@pytest.mark.parametrize("labels", [[0, 10], [-1, 0], [0.0, 1.0], [[0, 1]]])
def test_labels_that_are_no_classes_are_refused(labels, conditional_file):
    prior = load("adm", conditional_file[0], head_channels=conditional_file[1])
    with pytest.raises(SpecError, match="labels"):
        prior.labels = torch.tensor(labels)


def test_labels_are_checked_without_loading(conditional_file, adm_file):
    path, head_channels, *_ = conditional_file
    assert adm.describe(path=path, head_channels=head_channels, label=9).classes == 10
    with pytest.raises(SpecError, match="label: must be from 0 to 9"):
        adm.describe(path=path, head_channels=head_channels, label=10)
    with pytest.raises(SpecError, match="knows no classes"):
        adm.describe(path=adm_file, head_channels=32, label=0)
    with pytest.raises(SpecError, match="knows no classes"):
        load("adm", adm_file, head_channels=32).labels = torch.tensor([0])


# Wrappings of training scripts.


def other(state):
    """Weights of the same network that are not those to sample with."""
    return {key: value + 1 for key, value in state.items()}


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


WRAPPED = {
    "DataParallel": (lambda s: prefixed("module.", s), "weights in 'module'"),
    "compiled": (lambda s: prefixed("_orig_mod.", s), "weights in '_orig_mod'"),
    "both": (lambda s: prefixed("module._orig_mod.", s), "weights in 'module._orig_mod'"),
    "swa_utils": (
        lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.", s)},
        "weights in 'module'",
    ),
    "state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "weights in 'state_dict'"),
    "Lightning": (
        lambda s: {"state_dict": {**prefixed("model.", s), "loss.w": torch.ones(3)}, "global_step": 9},
        "weights in 'state_dict.model', without 1 entries beside it",
    ),
    "latent diffusion": (
        lambda s: {"state_dict": prefixed("model.diffusion_model.", s)},
        "weights in 'state_dict.model.diffusion_model'",
    ),
    "ema": (lambda s: {"ema": s}, "averaged weights in 'ema'"),
    "model and ema": (lambda s: {"model": other(s), "ema": s, "opt": {}}, "averaged weights in 'ema'"),
    "ema compiled": (
        lambda s: {"model": prefixed("module.", other(s)), "ema": prefixed("_orig_mod.", s)},
        "averaged weights in 'ema._orig_mod'",
    ),
    "BasicSR": (lambda s: {"params": other(s), "params_ema": s}, "averaged weights in 'params_ema'"),
    "ema-pytorch": (
        lambda s: {
            "model": other(s),
            "ema": {
                **prefixed("online_model.", other(s)),
                **prefixed("ema_model.", s),
                "step": torch.tensor(1),
            },
        },
        "averaged weights in 'ema.ema_model'",
    ),
    "torch_ema": (
        lambda s: {"net": other(s), "ema": {"decay": 0.9, "shadow_params": list(s.values())}},
        "averaged weights in 'ema'",
    ),
    "in one table": (lambda s: prefixed("ema.", s) | other(s), "averaged weights in 'ema'"),
    "Adam": (
        lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        "weights in 'model'",
    ),
    "plain": (dict, ""),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrapped_weights_are_those_to_sample_with(wrapping, adm_file, tmp_path):
    wrap, said = WRAPPED[wrapping]
    state = torch.load(adm_file, weights_only=True)
    torch.save(wrap(state), tmp_path / "x.pt")
    described = adm.describe(path=tmp_path / "x.pt", head_channels=32)
    assert described.said == said
    layout, found = adm.opened(tmp_path / "x.pt", Told(32), None)
    assert layout == described
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_what_was_read_of_a_wrapped_file_is_said(adm_file, tmp_path):
    torch.save({"ema": torch.load(adm_file, weights_only=True)}, tmp_path / "x.pt")
    spec = {"name": "adm", "path": str(tmp_path / "x.pt"), "head_channels": 32}
    assert priors.examine(spec, (3, 32, 32)).title.endswith("parameters, averaged weights in 'ema'")
    x, t = draw(1, 3, 16, 16), torch.tensor([10.0])
    expected = load("adm", adm_file, head_channels=32)(x, t)
    assert torch.equal(load("adm", tmp_path / "x.pt", head_channels=32)(x, t), expected)


@pytest.mark.parametrize(
    ("wrap", "weights", "message"),
    [
        (lambda s: {"a": s, "b": other(s)}, "a", r"weights: .*'a' or 'b'"),
        (lambda s: {"ema_0.999": s, "ema_0.99": other(s), "model": s}, "ema_0.999", r"weights: .*'ema_0\.99"),
        (
            lambda s: {"model": s, "ema": {"x": torch.ones(3)}},
            "model",
            r"average 'ema' in a form .*weights: 'm",
        ),
        (
            lambda s: {"state_dict": prefixed("model.", s) | {"model_ema.outbias": torch.ones(3)}},
            "state_dict.model",
            r"average 'state_dict\.model_ema'",
        ),
    ],
    ids=["two networks", "two averages", "another average", "LitEma"],
)
def test_where_the_average_is_not_known_a_parameter_decides(wrap, weights, message, adm_file, tmp_path):
    state = torch.load(adm_file, weights_only=True)
    torch.save(wrap(state), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        adm.describe(path=tmp_path / "x.pt", head_channels=32)
    _, found = adm.opened(tmp_path / "x.pt", Told(32), weights)
    assert all(torch.equal(found[key], value) for key, value in state.items())
    with pytest.raises(CheckpointError, match=r"weights: .*no table 'c'; it has"):
        adm.opened(tmp_path / "x.pt", Told(32), "c")


def test_the_tables_of_deepinv_lie_beside_the_weights(adm_file, tmp_path, caplog):
    state, a = torch.load(adm_file, weights_only=True), DDPM().a(torch.arange(1000.0).double()).float()
    tables = {"sqrt_alphas_cumprod": a, "sqrt_1m_alphas_cumprod": (1 - a**2).sqrt()}
    torch.save(state | tables, tmp_path / "x.pt")
    layout, found = adm.opened(tmp_path / "x.pt", Told(32), None)
    assert found.keys() == state.keys()
    assert layout.said == "without 'sqrt_alphas_cumprod' and 'sqrt_1m_alphas_cumprod'"
    assert not caplog.records
    torch.save(state | tables | {"sqrt_alphas_cumprod": torch.ones(1000)}, tmp_path / "x.pt")
    adm.opened(tmp_path / "x.pt", Told(32), None)
    assert "'sqrt_alphas_cumprod' is not that of its betas" in caplog.text


def test_an_average_of_a_flow_by_name_lacks_only_what_is_not_trained(flow_file, tmp_path):
    content = torch.load(flow_file, weights_only=True)
    _, expected = rectified_flow.opened(flow_file, None)
    average = {key: value for key, value in expected.items() if key != "all_modules.0.W"}
    torch.save({"model": content["model"], "ema": average}, tmp_path / "x.pt")
    layout, found = rectified_flow.opened(tmp_path / "x.pt", None)
    assert layout.said == "averaged weights in 'ema'"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_file_that_holds_itself_is_read_once(adm_file, tmp_path):
    content = {"state_dict": torch.load(adm_file, weights_only=True)}
    content["again"] = content
    torch.save(content, tmp_path / "x.pt")
    assert adm.describe(path=tmp_path / "x.pt", head_channels=32).said == "weights in 'state_dict'"


# Rectified flow.


def test_rectified_flow_starts_where_the_released_sampler_does(flow_file):
    prior, x = load("rectified_flow", flow_file), draw(1, 3, 16, 16)
    u = prior(x, torch.zeros(1))
    assert torch.isfinite(u).all()
    assert torch.equal(u, prior(x, torch.tensor([1e-3])))


def test_networks_for_images_from_0_to_1_predict_the_same_image(flow_file):
    """The prediction on [-1, 1] is x + (1 − t) v on [0, 1], rescaled, at the x that the network sees."""
    prior = load("rectified_flow", flow_file, centered=False)
    network = load("rectified_flow", flow_file)  # of 2 x − 1, with the velocity on [0, 1]
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    a, s = (value.float().view(-1, 1, 1, 1) for value in (prior.path.a(t), prior.path.s(t)))
    image, noise, column = draw(2, 3, 16, 16), draw(2, 3, 16, 16, seed=1), t.float().view(-1, 1, 1, 1)
    seen = column * (image + 1) / 2 + (1 - column) * noise
    expected = 2 * (seen + (1 - column) * network(2 * seen - 1, t.float())) - 1
    p, q = (v.float().view(-1, 1, 1, 1) for v in data_prediction(prior.path, "v", t))
    x = a * image + s * noise
    torch.testing.assert_close(p * x + q * prior(x, t.float()), expected, rtol=1e-4, atol=1e-4)
    ratio = torch.log(prior.path.a(t)) - torch.log(prior.path.s(t))
    torch.testing.assert_close(prior.path.time_of(ratio), t)


def test_without_an_average_the_trained_weights_are_used_and_a_message_says_so(flow_file, tmp_path, caplog):
    content = torch.load(flow_file, weights_only=True)
    content["ema"]["shadow_params"] = [
        value for key, value in content["model"].items() if not key.endswith(("sigmas", "all_modules.0.W"))
    ]
    torch.save(content, tmp_path / "same.pth")
    torch.save({"model": content["model"]}, tmp_path / "model.pth")
    bare = {key.removeprefix("module."): value for key, value in content["model"].items()}
    torch.save(bare, tmp_path / "bare.pth")
    x, t = draw(1, 3, 16, 16), torch.tensor([0.5])
    expected = load("rectified_flow", tmp_path / "same.pth")(x, t)
    assert not caplog.records
    for name in ("model.pth", "bare.pth"):
        with caplog.at_level(logging.WARNING):
            assert torch.equal(load("rectified_flow", tmp_path / name)(x, t), expected)
        assert f"{name} has no moving average" in caplog.text


# Refusals.


def damage(change, state):
    """A state dict, changed in one way."""
    convolution = next(key for key in state if key.endswith(("out_layers.3.weight", "Conv_1.weight")))
    if change == "missing":
        del state[convolution]
    elif change == "shape":
        state[convolution] = state[convolution][:1]
    elif change == "integers":
        state[convolution] = state[convolution].int()
    elif change == "more":
        state["classifier.weight"] = torch.zeros(3)
    elif change == "NaN":
        state[convolution][0, 0, 0, 0] = torch.nan
    elif change == "infinity":
        state[convolution][0, 0, 0, 0] = -torch.inf
    elif change == "object":
        state["step"] = 100
    return state, convolution


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "no '{}'"),
        ("shape", "'{}' has shape .1, .* expected"),
        ("integers", "'{}' is of type torch.int32"),
        ("more", "unexpected 'classifier.weight'"),
        ("NaN", "damaged: .* holds NaN or infinity"),
        ("infinity", "damaged: .* holds NaN or infinity"),
        ("object", "'step' is 'int'"),
    ],
)
@pytest.mark.parametrize("name", ["adm", "rectified_flow"])
def test_damaged_state_dicts_are_refused_by_key(name, change, message, adm_file, flow_file, tmp_path):
    source = adm_file if name == "adm" else flow_file
    content = torch.load(source, weights_only=True)
    state, key = damage(change, content if name == "adm" else content["model"])
    torch.save(state, tmp_path / "x.pt")
    parameters = {"head_channels": 32} if name == "adm" else {}
    message = message.format(key.removeprefix("module.").replace(".", r"\."))
    with pytest.raises(CheckpointError, match=message):
        load(name, tmp_path / "x.pt", **parameters)
    if change not in ("NaN", "infinity"):
        with pytest.raises(CheckpointError, match=message):
            DESCRIBE[name](path=tmp_path / "x.pt", **parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ema: ema.pop("shadow_params"), "'shadow_params'"),
        (lambda ema: ema["shadow_params"].pop(), "'shadow_params' of"),
        (lambda ema: ema["shadow_params"].reverse(), r"'ema' does not fit .*all_modules\.1\.weight"),
    ],
)
def test_an_average_that_does_not_fit_is_refused(change, message, flow_file, tmp_path):
    content = torch.load(flow_file, weights_only=True)
    change(content["ema"])
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=message):
        load("rectified_flow", tmp_path / "x.pth")


class Code:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("name", ["adm", "rectified_flow"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>404", "no checkpoint: it begins with b'<!DOCTYPE html>"),
        (b"", "cannot be read"),
        (pickle.dumps({"model": Code()}, 2), "never code"),
        (None, "no file"),
    ],
    ids=["web page", "empty", "code", "missing"],
)
def test_other_files_are_refused(name, content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(name, tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:d81e48e4\nsize 454867325\n"


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "pointer of Git LFS.*git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b"GGUF" + bytes(100), "a GGUF file"),
    ],
    ids=["pointer", "Keras", "GGUF"],
)
def test_files_of_other_kinds_are_called_what_they_are(content, message, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load("adm", tmp_path / name)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_network_is_no_damaged_file(protocol, tmp_path):
    """EDM's files are pickles of whole networks, of torch_utils.persistence with their source code."""
    network = {"ema": torch.nn.Conv2d(3, 8, 3), "loss_fn": None}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(network, protocol))
    with pytest.raises(CheckpointError, match=r"'torch\.nn\.modules\.conv\.Conv2d', and only.*never code"):
        load("adm", tmp_path / "x.pkl")
    edm = b"\x80\x04\x8c\x03ema\x8c\x17torch_utils.persistence\x8c\x1b_reconstruct_persistent_obj\x93."
    (tmp_path / "x.pkl").write_bytes(edm)
    with pytest.raises(CheckpointError, match=r"torch_utils.*\(a network of EDM or StyleGAN"):
        load("adm", tmp_path / "x.pkl")


def test_torchscript_is_code(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/constants.pkl", b"")
        archive.writestr("x/data.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load("adm", tmp_path / "x.pt")


def test_code_inside_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"input_blocks.0.0.weight": Code()}, "x.pt")
    with pytest.raises(CheckpointError, match=r"refers to .*never code"):
        load("adm", tmp_path / "x.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_truncated_files_are_refused(kept, adm_file, tmp_path):
    content = adm_file.read_bytes()
    (tmp_path / "x.pt").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load("adm", tmp_path / "x.pt", head_channels=32)


def test_checkpoints_of_another_architecture_are_refused(adm_file, flow_file, tmp_path):
    with pytest.raises(CheckpointError, match="no plain state dict: 'optimizer' is 'dict'"):
        load("adm", flow_file)
    with pytest.raises(CheckpointError, match=r"no NCSN\+\+.*'all_modules\.2\.weight'"):
        load("rectified_flow", adm_file)
    with pytest.raises(CheckpointError, match=r"no guided-diffusion UNet: no 'time_embed"):
        load("adm", NATURAL)
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="no state dict but 'list'"):
        load("adm", tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"input_blocks.2.0.op.weight": (32, 32, 3, 3)},
            r"resembles: 'input_blocks\.3\.0\.in_layers\.2\.weight' has shape",
        ),
        (
            {"input_blocks.1.0.emb_layers.1.weight": (32, 128)},
            r"'input_blocks\.1\.0\.emb_layers\.1\.bias' has",
        ),
        ({"input_blocks.0.0.weight": (32, 6, 3, 3)}, r"'input_blocks\.0\.0\.weight' has shape \(32, 6"),
        ({"out.2.weight": (1, 32, 3, 3)}, "1 output channels"),
        ({"middle_block.1.qkv.weight": (64, 64, 1)}, r"'middle_block\.1\.qkv\.weight' has shape"),
    ],
    ids=["resampling", "no scale-shift", "upsampler", "outputs", "attention"],
)
def test_other_variants_of_guided_diffusion_are_refused_by_key(change, message, adm_file, tmp_path):
    state = torch.load(adm_file, weights_only=True)
    torch.save(state | {key: torch.zeros(shape) for key, shape in change.items()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        adm.describe(path=tmp_path / "x.pt", head_channels=32)


def test_channels_per_head_must_be_known_and_fit(adm_file):
    with pytest.raises(SpecError, match=r"head_channels: .*none of the published.*give 16 or 32 or 64"):
        load("adm", adm_file)
    with pytest.raises(SpecError, match=r"head_channels: must divide .* 64 \(got 48\)"):
        load("adm", adm_file, head_channels=48)
    with pytest.raises(SpecError, match=r"prior\.head_channels"):
        load("adm", adm_file, head_channels=0)
