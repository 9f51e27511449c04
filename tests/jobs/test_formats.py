"""The quickstart with a prior of every format, from files made here."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from kit.edm import make as make_edm
from kit.jobs import kintsugi
from kit.networks import make_adm, make_lucidrains, make_ncsnpp
from kit.pipelines import save
from PIL import Image

import kintsugi as product
from kintsugi import priors

BETAS = torch.linspace(1e-3, 0.2, 100, dtype=torch.float64)


def lucidrains(folder):
    x = torch.zeros(1, 3, 8, 8)
    return {"path": str(make_lucidrains(folder, "model", "pred_v", BETAS, x, torch.ones(1))[0])}


def adm(folder):
    path, head_channels, *_ = make_adm(folder, "plain")
    return {"path": str(path), "head_channels": head_channels}


FORMATS = {
    "natural": lambda folder: {},
    "adm": adm,
    "edm": lambda folder: make_edm(folder, "ddpmpp"),
    "edm of EDM2, with a class": lambda folder: make_edm(folder, "edm2") | {"label": 3},
    "edm, guided": lambda folder: make_edm(folder, "ncsnpp") | {"label": 3, "cfg": 2},
    "rectified_flow": lambda folder: {"path": str(make_ncsnpp(folder, "narrow")[0])},
    "score_sde": lambda folder: {"path": str(make_ncsnpp(folder, "narrow", levels=(50.0, 0.01))[0])},
    "lucidrains": lucidrains,
    "diffusers": lambda folder: {"path": str(save(folder / "ddpm", diffusers.DDPMScheduler()))},
}
"""What a user types beside the name of the format, which is the first word."""


def setting(value) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {setting(item)}" for key, item in value.items()) + "}"
    return str(value)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_every_format_is_here():
    of_latents = {"natural_latent"}
    assert {name.partition(",")[0].split()[0] for name in FORMATS} == priors.BUILTIN.keys() - of_latents


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_quickstart_runs_with_it(name, images, tmp_path):
    prior = {"name": name.partition(",")[0].split()[0]} | FORMATS[name](tmp_path)
    sets = [
        f"prior={setting(prior)}",
        "sampler.covariance=wiener",  # that of the quickstart is of the embedded prior
        "sampler.steps=2",
        f"data={{shards: {images}, size: 16}}",
        "metrics=[psnr]",
        f"output={tmp_path / 'run'}",
    ]
    arguments = ["quickstart", *(part for each in sets for part in ("--set", each))]
    done = kintsugi("run", *arguments, "--address", "none")
    assert done.exit_code == 0, done.output
    rows = product.open_run(tmp_path / "run").rows().to_pylist()
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert {row["forwards"] for row in rows} == {4 if prior.get("cfg") else 2}
    assert all(np.isfinite(row["psnr"]) for row in rows)
