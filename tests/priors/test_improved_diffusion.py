"""Networks of improved-diffusion, and those of guided-diffusion that are alike: what no file tells."""

import math

import pytest
import torch
from kit.networks import Weights, adm_reference, draw

from kintsugi import priors
from kintsugi.errors import SpecError
from kintsugi.priors.formats import adm
from kintsugi.priors.formats.adm_training import CONDITIONAL, UNCONDITIONAL, Told, Training
from kintsugi.priors.formats.layout import in_file
from kintsugi.testing import check_prior

SHAPES = (32, (1, 2), 1, {1}, 16)
FIELDS = {
    "like ImageNet 64": ({"convolved": True, "heads": 4}, {"heads": 4, "schedule": "cosine", "steps": 4000}),
    "like LSUN": (
        {"convolved": True, "heads": 1, "modulated": False},
        {"heads": 1, "schedule": "linear"},
    ),
    "without rescaling": (
        {"convolved": True, "heads": 2},
        {"heads": 2, "schedule": "cosine", "steps": 4000, "rescaled": False},
    ),
    "cosine of guided-diffusion": ({"heads": 2}, {"heads": 2, "schedule": "cosine"}),
}


def save(path, options, x, seen, classes=None):
    weights = Weights()
    epsilon = adm_reference(weights, x, seen, *SHAPES, classes, 6, torch.tensor([3, 1]), **options)[:, :3]
    torch.save(dict(weights), path)
    return epsilon


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("classes", [None, 5])
def test_it_is_the_reference(name, classes, tmp_path):
    options, fields = FIELDS[name]
    x, t = draw(2, 3, 16, 16), torch.tensor([17.0, 523.25])
    seen = t / 4 if fields.get("steps") == 4000 and fields.get("rescaled", True) else t
    expected = save(tmp_path / "x.pt", options, x, seen, classes)
    spec = {"name": "adm", "path": str(tmp_path / "x.pt")} | fields
    prior = priors.load(spec)
    if classes:
        prior.labels = torch.tensor([3, 1])
    with torch.no_grad():
        assert (prior(x, t) - expected).norm() < 1e-5 * expected.norm()
    assert prior.path.noise_time == fields.get("steps", 1000) - 1
    if classes is None:
        check_prior(spec)


def test_the_noise_is_that_of_the_papers():
    """ᾱ of cosine betas (2102.09672, equation 17) but for its end; linear betas for any number."""
    labels = torch.tensor([0.0, 100, 2000, 3900], dtype=torch.float64)
    of = [math.cos((s / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (0.0, *(labels + 1).tolist())]
    a = Training("cosine", 4000).path().a(labels)
    torch.testing.assert_close(a**2, torch.tensor(of[1:], dtype=torch.float64) / of[0])
    a = Training("linear", 4000).path().a(labels)
    betas = torch.linspace(0.25e-4, 0.005, 4000, dtype=torch.float64)
    torch.testing.assert_close(a**2, (1 - betas).cumprod(0)[labels.long()])


@pytest.mark.parametrize("conditional", [False, True])
def test_published_layouts_need_no_fields_and_say_their_noise(conditional):
    sizes = []
    for signature, known in (CONDITIONAL if conditional else UNCONDITIONAL).items():
        classes, kind = 1000 if conditional else None, {"convolved": signature[4], "modulated": signature[5]}
        layout = adm.Layout(*signature[:4], classes, 6, known, **kind)
        assert adm.infer(in_file(adm.entries(layout)), "x", Told()) == layout
        told = adm.infer(in_file(adm.entries(layout)), "x", Told(None, None, "linear", 1000, True))
        assert told.known.training == Training()
        sizes.append(round(layout.parameters / 1e6))
    # M of the papers: ADM's ImageNet 64 and 128 (296, 422), and of improved-diffusion 270, 100, 50 and 100.
    assert sizes == ([296, 422, 273] if conditional else [121, 53, 114])
    assert Training("cosine", 4000).said == "cosine betas, 4000 labels"


def test_q_k_and_v_in_thirds_are_those_of_the_reference():
    """The order of ADM's ImageNet 64, for which no field asks."""
    weights, x, t = Weights(), draw(1, 3, 16, 16), torch.tensor([30.0])
    expected = adm_reference(weights, x, t, *SHAPES, None, 6, None, thirds=True)
    layout = adm.Layout(32, (32, 64), 1, (1,), None, 6, adm.Known(16, thirds=True))
    network = adm.build(layout)
    network.load_state_dict(adm.renamed(weights, layout), assign=True)
    found = network.eval()(x, t, return_dict=False)[0]
    assert (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"heads": 4}, r"prior\.schedule: the file is of improved-diffusion.*give linear or cosine"),
        ({"schedule": "cosine"}, r"prior\.head_channels: .*or heads"),
        ({"heads": 3, "schedule": "cosine"}, r"prior\.heads: must divide .* 64 \(got 3\)"),
        ({"heads": 4, "head_channels": 16, "schedule": "cosine"}, r"prior\.heads: the channels per head"),
        ({"heads": 4, "schedule": "sigmoid"}, r"prior\.schedule"),
        ({"heads": 4, "schedule": "linear", "steps": 20}, r"prior\.steps"),
    ],
)
def test_what_no_file_tells_is_asked_for(fields, says, tmp_path):
    save(tmp_path / "x.pt", {"convolved": True, "heads": 4}, draw(2, 3, 16, 16), torch.tensor([1.0, 2.0]))
    with pytest.raises(SpecError, match=says):
        priors.describe({"name": "adm", "path": str(tmp_path / "x.pt")} | fields)
