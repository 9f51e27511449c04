"""Networks of score_sde, and of rectified flow where they are DDPM++: against plain references."""

import math

import pytest
import torch
from kit.networks import Weights, draw, ncsnpp_reference

from kintsugi import priors
from kintsugi.errors import SpecError
from kintsugi.priors.formats import ncsnpp
from kintsugi.priors.formats.layout import in_file
from kintsugi.priors.paths import SubVariancePreserving, log_snr
from kintsugi.testing import check_prior

SHAPES = ((16, 32, 32), 1, {1})
DDPMPP = {"fourier": False, "down": None, "up": None, "scaled": False}
NCSNPP = {"fourier": False, "down": "residual", "up": None, "scaled": False}
LEVELS = torch.logspace(math.log10(50), -2, 100, dtype=torch.float64)
"""Of the VE SDE: σ on [0, 1], from 50 to 0.01."""


def save(path, sigma_or_t, seen, levels=LEVELS, shapes=SHAPES, **options):
    """A file, and what the bare network says of x (2, 3, 16, 16) that it is given."""
    weights, x = Weights(), draw(2, 3, 16, 16) * (1 + sigma_or_t).view(-1, 1, 1, 1)
    output = ncsnpp_reference(weights, x, seen, *shapes, **options)
    fixed = "all_modules.0.W"
    average = [value for key, value in weights.items() if key != fixed]
    model = {f"module.{key}": value for key, value in weights.items()} | {"module.sigmas": levels}
    torch.save({"model": model, "ema": {"shadow_params": average, "decay": 0.999}}, path)
    return x, output


def loaded(path, **fields):
    return priors.load({"name": "score_sde", "path": str(path)} | fields)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"down": "residual", "up": None}], ids=["skips", "residual"])
def test_of_the_ve_sde_it_gives_the_score_on_images_from_0_to_1(options, tmp_path):
    """score = −z/σ of (x + 1)/2, with half the σ of [-1, 1]; the network maps to [-1, 1] itself."""
    sigma = torch.tensor([0.4, 30.0])
    x, score = save(tmp_path / "x.pth", sigma, sigma / 2, **options)
    prior = loaded(tmp_path / "x.pth")
    expected = -(sigma / 2).view(-1, 1, 1, 1) * score
    assert (prior(x, sigma) - expected).norm() < 1e-5 * expected.norm()
    assert prior.path.noise_time == pytest.approx(100)
    least = prior(x, torch.zeros(2))
    assert torch.equal(least, prior(x, torch.full((2,), 0.02)))


@torch.no_grad()
def test_of_the_discrete_ve_sde_labels_count_levels_from_the_largest(tmp_path):
    label = torch.tensor([10.0, 80.0])
    sigma = 2 * LEVELS[label.long()].float()
    x, output = save(tmp_path / "x.pth", sigma, label, **NCSNPP)
    prior = loaded(tmp_path / "x.pth", sde="ve")
    assert (prior(x, sigma) + output).norm() < 2e-4 * output.norm()  # whose labels are rounded by float32


@torch.no_grad()
@pytest.mark.parametrize("sde", ["vp", "subvp"])
@pytest.mark.parametrize("options", [DDPMPP, NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_of_the_vp_sdes_it_gives_epsilon(sde, options, tmp_path):
    t = torch.tensor([0.3, 0.9])
    x, epsilon = save(tmp_path / "x.pth", t, 999 * t, base=16, shapes=((32, 16), 2, {0, 1}), **options)
    prior = loaded(tmp_path / "x.pth", sde=sde)
    assert (prior(x, t) - epsilon).norm() < 1e-5 * epsilon.norm()
    a, s = prior.path.a(t.double()), prior.path.s(t.double())
    assert torch.allclose(s**2 if sde == "vp" else s, 1 - a**2)


def test_the_sub_vp_path_has_its_derivatives_and_times():
    path, t = SubVariancePreserving(), torch.tensor([1e-4, 0.1, 0.5, 0.99], dtype=torch.float64)
    leaf = t.clone().requires_grad_()
    for of, derivative in ((path.a, path.da), (path.s, path.ds)):
        (expected,) = torch.autograd.grad(of(leaf).sum(), leaf)
        torch.testing.assert_close(derivative(t), expected)
    torch.testing.assert_close(path.time_of(log_snr(path, t)), t, rtol=1e-9, atol=0)


@torch.no_grad()
def test_ddpmpp_of_rectified_flow_gives_velocity(tmp_path):
    """That of CIFAR-10: it sees 999 t, and divides by nothing."""
    t = torch.tensor([0.3, 0.9])
    x, velocity = save(tmp_path / "x.pth", t, 999 * t, **DDPMPP)
    prior = priors.load({"name": "rectified_flow", "path": str(tmp_path / "x.pth")})
    assert (prior(x, t) - velocity).norm() < 1e-5 * velocity.norm()


@pytest.mark.parametrize("options", [{}, DDPMPP, NCSNPP], ids=["skips", "ddpmpp", "ncsnpp"])
def test_it_has_the_properties_of_every_prior(options, tmp_path):
    save(tmp_path / "x.pth", torch.ones(2), torch.ones(2), **options)
    spec = {"name": "score_sde", "path": str(tmp_path / "x.pth")} | ({"sde": "vp"} if options else {})
    check_prior(spec)
    assert f"of the {'VP' if options else 'VE'} SDE" in priors.examine(spec, (3, 16, 16)).title


@pytest.mark.parametrize(
    ("layout", "millions"),
    [
        (
            ncsnpp.Layout((128, 256, 256, 256), 4, (1,), 128, 3, True, "residual", "standard"),
            62.8,
        ),
        (
            ncsnpp.Layout((128, 256, 256, 256), 8, (1,), 128, 3, True, "residual", "standard"),
            107.6,
        ),
        (
            ncsnpp.Layout((128, 256, 256, 256), 4, (1,), 128, 3, False, "standard", "standard"),
            61.8,
        ),
    ],
    ids=["ncsnpp", "ncsnpp deep", "ddpmpp"],
)
def test_published_layouts_are_inferred(layout, millions):
    """Those of CIFAR-10; EDM's paper gives 62 M of NCSN++ and DDPM++ alike."""
    assert ncsnpp.infer(in_file(ncsnpp.entries(layout)), "x") == layout
    assert layout.parameters / 1e6 == pytest.approx(millions, abs=0.1)


def test_what_no_file_tells_is_asked_for(tmp_path):
    path = tmp_path / "x.pth"
    save(path, torch.ones(2), torch.ones(2), **NCSNPP)
    with pytest.raises(SpecError, match=r"prior\.sde: the file does not tell .*give vp, subvp or ve"):
        loaded(path)
    save(path, torch.ones(2), torch.ones(2))
    with pytest.raises(SpecError, match=r"prior\.sde: the network has Fourier features"):
        loaded(path, sde="vp")
    save(path, torch.ones(2), torch.ones(2), levels=torch.ones(100))
    with pytest.raises(SpecError, match="no table of noise levels"):
        loaded(path)
    save(path, torch.ones(2), torch.ones(2), shapes=((16, 24), 1, {1}))
    with pytest.raises(SpecError, match="24 channels are no multiple of the first 16"):
        loaded(path)
