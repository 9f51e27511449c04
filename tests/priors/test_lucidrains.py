"""Networks of denoising-diffusion-pytorch: against a reference, with the file's noise and goal."""

import pytest
import torch
from kit.networks import draw, make_lucidrains

from kintsugi import priors
from kintsugi.errors import SpecError
from kintsugi.testing import check_prior

BETAS = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)
ALPHA_BAR = (1 - BETAS).cumprod(0)
LABELS = torch.tensor([20.0, 70.0])


def make(folder, objective="pred_v", channels=3, betas=BETAS, **options):
    x = draw(2, channels, 16, 16)
    path, output = make_lucidrains(folder, "model-1", objective, betas, x, LABELS, **options)
    return {"name": "lucidrains", "path": str(path)}, x, output


@torch.no_grad()
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("clipped", [False, True])
def test_it_gives_epsilon_whatever_it_predicts(objective, clipped, tmp_path):
    """By the images that a prediction stands for: x₀ + its noise."""
    spec, x, output = make(tmp_path, objective, clipped=clipped)
    prior = priors.load(spec)
    a, s = (level[LABELS.long()].sqrt().float().view(-1, 1, 1, 1) for level in (ALPHA_BAR, 1 - ALPHA_BAR))
    # v = a z − s x₀ with x = a x₀ + s z, solved for z.
    expected = {"pred_noise": output, "pred_x0": (x - a * output) / s, "pred_v": a * output + s * x}[
        objective
    ]
    assert (prior(x, LABELS) - expected).norm() < 1e-5 * expected.norm()
    torch.testing.assert_close(
        prior.path.a(LABELS.double()) ** 2, ALPHA_BAR[LABELS.long()], rtol=1e-5, atol=0
    )
    assert f"{objective}, 100 betas, averaged weights" in priors.examine(spec, (3, 16, 16)).title


@torch.no_grad()
@pytest.mark.parametrize("options", [{"groups": 8}, {"twice": True}, {"channels": 1}], ids=str)
def test_older_files_and_other_variants_are_the_reference(options, tmp_path):
    spec, x, output = make(tmp_path, "pred_noise", **options)
    assert (priors.load(spec)(x, LABELS) - output).norm() < 1e-5 * output.norm()
    assert priors.describe(spec).image_channels == options.get("channels", 3)
    assert priors.describe(spec).multiple == 2


def test_it_has_the_properties_of_every_prior(tmp_path):
    check_prior(make(tmp_path)[0])


def changed(path, change):
    content = torch.load(path, weights_only=True)
    for table in (content["model"], content["ema"]):
        change(table)
    torch.save(content, path)


def without(name):
    def change(table):
        for key in [key for key in table if key.endswith(name)]:
            del table[key]

    return change


def renamed(old, new):
    def change(table):
        for key in [key for key in table if old in key]:
            table[key.replace(old, new)] = table.pop(key)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("loss_weight"), r"prior\.objective: .*give pred_noise, pred_x0 or pred_v"),
        (without("betas"), r"no betas between 0 and 1.*GaussianDiffusion"),
        (without("mid_attn.mem_kv"), r"no 'mid_attn\.mem_kv' of 4 dimensions"),
        (without("block2.proj.bias"), r"is not the Unet it resembles: no 'downs\.0\.0\.block2\.proj\.bias'"),
        (renamed("to_qkv", "fn.fn.to_qkv"), r"before 1\.9"),
    ],
    ids=["goal", "betas", "attention", "bias", "old"],
)
def test_what_is_missing_is_said(change, says, tmp_path):
    spec, *_ = make(tmp_path)
    changed(spec["path"], change)
    with pytest.raises(SpecError, match=says):
        priors.describe(spec)


def test_the_goal_can_be_told_and_groups_must_fit(tmp_path):
    spec, _, _ = make(tmp_path, "pred_noise")
    assert "pred_v, " in priors.describe(spec | {"objective": "pred_v"}).said
    spec, _, _ = make(tmp_path, "pred_noise", groups=8)
    with pytest.raises(SpecError, match=r"prior\.groups: must divide"):
        priors.describe(spec | {"groups": 5})
