"""Networks of EDM and EDM2: by figures of their release, and from pickles in which nothing runs."""

import json
import tracemalloc

import pytest
import torch
from kit.edm import GOLDEN, Persistent, images, make, save_pickle, weights, write_pickle
from safetensors.torch import save_file

from kintsugi import priors
from kintsugi.errors import SpecError
from kintsugi.priors.base import data_prediction, evaluations_of
from kintsugi.priors.formats.edm_convert import main
from kintsugi.priors.formats.edm_network import METADATA
from kintsugi.testing import check_prior

LABELS = torch.tensor([3, 7])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("edm")


@pytest.fixture(scope="module", params=GOLDEN)
def made(request, folder):
    return request.param, make(folder, request.param)


def denoised(prior, x, sigma):
    """x̂₀ of x₀ + σ z, by the prior's own path, and the time."""
    t = prior.path.time_of(-sigma.double().log())
    a = prior.path.a(t).float().view(-1, 1, 1, 1)
    p, q = (part.float().view(-1, 1, 1, 1) for part in data_prediction(prior.path, "eps", t))
    return p * (a * x) + q * prior(a * x, t.float())


@torch.no_grad()
def test_it_is_the_release(made):
    name, spec = made
    golden, prior = GOLDEN[name], priors.load(spec)
    if prior.classes:
        prior.labels = LABELS
    sigma = torch.tensor(golden["sigma"])
    x = images(golden["settings"]["img_channels"], sigma)
    found = denoised(prior, x, sigma)
    torch.testing.assert_close(
        found.flatten()[::131][:8], torch.tensor(golden["x0"]), rtol=1e-5, atol=2e-5 * x.abs().max().item()
    )
    assert (found - x).norm() > 0.1 * x.norm()


@pytest.mark.parametrize("name", ["ncsnpp-skip", "adm", "iddpm", "edm2"])
def test_it_has_the_properties_of_every_prior(name, folder):
    spec, of = make(folder, name), GOLDEN[name]["settings"]
    found = priors.describe(spec)
    assert found.image_channels == of["img_channels"]
    assert found.multiple == 2 ** (len(of["channel_mult"]) - 1)
    check_prior(spec | ({"label": 1} if of.get("label_dim") else {}))


@torch.no_grad()
def test_guidance_is_by_no_class_where_that_was_trained(folder):
    spec, golden = make(folder, "ncsnpp"), GOLDEN["ncsnpp"]
    sigma = torch.tensor(golden["sigma"])
    x, guided = images(3, sigma), priors.load(spec | {"cfg": 3.0})
    guided.labels = LABELS
    without, given = (torch.tensor(golden[key]) for key in ("x0_without_class", "x0"))
    expected = without + 3 * (given - without)
    assert (given - without).abs().max() > 1e-2
    torch.testing.assert_close(
        denoised(guided, x, sigma).flatten()[::131][:8], expected, rtol=1e-4, atol=1e-4
    )
    assert evaluations_of(guided) == 2
    with pytest.raises(SpecError, match=r"prior.cfg: .*label_dropout 0"):
        priors.describe(make(folder, "adm") | {"cfg": 2.0})
    with pytest.raises(SpecError, match=r"prior.label: must be from 0 to 9"):
        priors.describe(spec | {"label": 10})
    with pytest.raises(SpecError, match=r"prior.cfg: the network knows no classes"):
        priors.describe(make(folder, "ddpmpp") | {"cfg": 2.0})


# The conversion.


class Called:
    """What an attacker writes."""

    def __init__(self, function, *arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(2, 6))
def test_nothing_in_a_pickle_runs(tmp_path, protocol, capsys):
    trace = tmp_path / "trace"
    code = f"open({str(trace)!r}, 'w')"
    golden = GOLDEN["ddpmpp"]
    beside = {"augment_pipe": Called(exec, code), "dataset_kwargs": Called(eval, code)}
    path = save_pickle(tmp_path / "x.pkl", "EDMPrecond", golden["settings"], code, protocol, **beside)
    assert main([str(path), str(tmp_path / "x.safetensors")]) == 0
    assert "EDMPrecond of 0.3 M" in capsys.readouterr().out
    assert not trace.exists()
    assert priors.describe({"name": "edm", "path": str(tmp_path / "x.safetensors")}).parameters > 300_000


def stored(count):
    return torch.zeros(count)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda: {"ema": torch.nn.Conv2d(3, 8, 3)}, "holds no network of EDM under 'ema'"),
        (list, "holds no network"),
        (lambda: Persistent("EDMPrecond", {"_parameters": {"w": 3}}, ""), "a weight of type 'int'"),
        (
            lambda: Persistent("EDMPrecond", {"_parameters": {"w": stored(1).expand(10**12)}}, ""),
            "more than the file",
        ),
        (
            lambda: Persistent("EDMPrecond", {"_parameters": {"w": stored(2)[1:].expand(3)}}, ""),
            "in 2 numbers",
        ),
        (lambda: Persistent("EDMPrecond", {"_init_kwargs": {"x": {1}}}, ""), "of type 'set'"),
        (lambda: Persistent("EDMPrecond", {"_modules": {"x": 3}}, ""), "a module that is none"),
        (lambda: Persistent("EDMPrecond", {"_init_args": 3}, ""), "not iterable"),
        (lambda: Persistent(3, {}, ""), "without the name of its class"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, says, capsys):
    write_pickle(tmp_path / "x.pkl", content())
    assert main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"RIFF" + data, len])
def test_damaged_pickles_are_refused(tmp_path, damage, capsys):
    path = save_pickle(tmp_path / "x.pkl", "EDMPrecond", GOLDEN["ddpmpp"]["settings"])
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged if isinstance(damaged, bytes) else b"")
    assert main([str(path), str(tmp_path / "x.safetensors")]) == 1
    assert "error: " in capsys.readouterr().err
    assert main([str(tmp_path / "none.pkl"), str(tmp_path / "x.safetensors")]) == 1


@pytest.mark.parametrize(
    ("bomb", "says"),
    [
        (b"\x80\x04Nr\xff\xff\xff\x7f.", "object 2147483647 of 2"),
        (b"\x80\x05\x96\x00\x00\x00\x00\x00\x40\x00\x00abc.", "expected 70368744177664 bytes"),
    ],
    ids=["memo", "length"],
)
def test_a_pickle_that_claims_memory_is_refused(bomb, says, tmp_path, capsys):
    """Before it is read: Python's unpickler would have 32 GB for the first."""
    (tmp_path / "x.pkl").write_bytes(bomb)
    assert main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")]) == 1
    assert says in capsys.readouterr().err


def shared(times, width=10, wrap=tuple):
    """What is `width` ** `times` of itself, in as many bytes as there are levels."""
    inner = wrap([])
    for _ in range(times):
        inner = wrap([inner] * width)
    return inner


def module(inner):
    return {"_modules": {str(number): one for number, one in enumerate(inner)}}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        (lambda: {"_init_kwargs": {"x": shared(12)}}, "more than 100000 characters"),
        (lambda: {"_init_kwargs": {"x": ["a" * 1000] * 1000}}, "more than 100000 characters"),
        (lambda: shared(12, wrap=module), "more than 10000 modules and weights"),
        (
            lambda: module([{"_parameters": dict.fromkeys(map(str, range(200)), stored(0))}] * 200),
            "modules and weights",
        ),
        (lambda: {"_modules": {"x" * 1000: {}}}, "without a name of at most 100"),
    ],
    ids=["arguments", "text", "modules", "weights", "names"],
)
def test_a_pickle_whose_parts_are_in_many_places_is_refused(tmp_path, attributes, says, capsys):
    write_pickle(tmp_path / "x.pkl", Persistent("EDMPrecond", attributes(), ""))
    assert (tmp_path / "x.pkl").stat().st_size < 500_000
    assert main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")]) == 1
    assert says in capsys.readouterr().err


def test_bytes_of_older_protocols_are_made_only_where_they_are_used(tmp_path, capsys):
    """A thousand times of one megabyte: 1 GB, of which nothing is a weight."""
    text = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    call = b"c_codecs\nencode\nq\x00" + text + b"X\x06\x00\x00\x00latin1\x86q\x01R"
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02](" + call + b"h\x00h\x01R" * 1000 + b"e.")
    tracemalloc.start()
    returned = main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert returned == 1
    assert peak < 1 << 24
    assert "holds no network" in capsys.readouterr().err


def test_a_compressed_storage_is_refused(tmp_path, monkeypatch, capsys):
    """Torch would read what it unpacks to: a thousand times the file."""
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda obj, file, **_: save(obj, file))  # as no release of it
    write_pickle(tmp_path / "x.pkl", Persistent("EDMPrecond", {"_parameters": {"w": stored(9)}}, ""))
    assert main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")]) == 1
    assert "a storage that is a zip" in capsys.readouterr().err


def test_a_pickle_that_nests_for_ever_is_refused(tmp_path):
    inner = {}
    for _ in range(100):
        inner = {"_modules": {"x": inner}}
    write_pickle(tmp_path / "x.pkl", Persistent("EDMPrecond", inner, ""))
    assert main([str(tmp_path / "x.pkl"), str(tmp_path / "x.safetensors")]) == 1


def refused(tmp_path, kind="EDMPrecond", encoder=None, state=None, about=None, **changes):
    """What is said of a converted file in which something is changed."""
    settings = GOLDEN["ddpmpp"]["settings"]
    about = about or json.dumps({"class": kind, "settings": settings | changes, "encoder": encoder})
    state = weights("EDMPrecond", settings) if state is None else state
    save_file(state, tmp_path / "x.safetensors", {METADATA: about})
    with pytest.raises(SpecError) as error:
        priors.describe({"name": "edm", "path": str(tmp_path / "x.safetensors")})
    return str(error.value)


def test_files_that_do_not_fit_are_refused_with_the_reason(tmp_path):
    assert "is of a class 'Generator'" in refused(tmp_path, "Generator")
    assert "latent network of EDM2, behind 'StabilityVAEEncoder'" in refused(
        tmp_path, "Precond", "StabilityVAEEncoder"
    )
    assert "model_type: 'DiT'; one of SongUNet" in refused(tmp_path, model_type="DiT")
    assert "model_channels: Input should be less" in refused(tmp_path, model_channels=10**9)
    assert "r_mlp: Extra inputs are not permitted" in refused(tmp_path, r_mlp=4)
    assert "makes no network" in refused(tmp_path, model_channels=6)
    assert "'model" not in (said := refused(tmp_path, model_channels=32))
    assert "is not the network that its metadata says: 'map_layer0.weight' has shape" in said
    assert "no 'map_layer0.weight'" in refused(tmp_path, state={"x": torch.ones(1)})


@pytest.mark.parametrize("value", [None, "x", [], {}])
def test_metadata_of_other_types_is_refused_by_file_and_field(tmp_path, value):
    of_iddpm = {"kind": "iDDPMPrecond", "model_type": "DhariwalUNet"}
    for field, others in (("img_channels", of_iddpm), ("model_type", {}), ("model_channels", {})):
        said = refused(tmp_path, **others | {field: value})
        assert f"x.safetensors': {field}: " in said
    for field, wrong in (("class", value), ("encoder", value or [3]), ("settings", value)):
        about = {"class": "EDMPrecond", "settings": {}, "encoder": None} | {field: wrong}
        assert "x.safetensors'" in refused(tmp_path, about=json.dumps(about))


def test_metadata_that_nests_for_ever_is_refused(tmp_path):
    nested = "[" * 200_000 + "]" * 200_000
    assert "does not say what its network was made with" in refused(tmp_path, about=nested)


def test_the_conversion_is_what_is_asked_for(tmp_path):
    path = save_pickle(tmp_path / "x.pkl", "EDMPrecond", GOLDEN["ddpmpp"]["settings"])
    with pytest.raises(SpecError, match=r"only tensors are read.*edm_convert"):
        priors.describe({"name": "edm", "path": str(path)})
    save_file({"x": torch.ones(1)}, tmp_path / "y.safetensors")
    with pytest.raises(SpecError, match=r"does not say what its network was made with.*edm_convert"):
        priors.describe({"name": "edm", "path": str(tmp_path / "y.safetensors")})
    with pytest.raises(SystemExit):
        main([str(path), str(tmp_path / "y.pt")])
