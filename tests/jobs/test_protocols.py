"""Experiments of the literature as job files: each can be run, and what it cites has a source."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from kit.jobs import kintsugi

from kintsugi import operators, samplers
from kintsugi.jobs.files import load_job, ready_jobs

PROTOCOLS = {name: path for name, path in ready_jobs().items() if path.parent.name == "protocols"}
DOCS = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
REVISION = re.compile(r"\b[0-9a-f]{7}\b")


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_is_a_job_whose_parts_can_be_built(name):
    job = load_job(name, [])
    assert job.output == f"runs/{name}"
    assert job.data.size == 256
    assert job.prior["name"] == "adm", "the network is that of the paper"
    samplers.build(job.sampler)
    degradation = job.degradation.typical((32, 32))
    operator = operators.build(degradation.operator, (3, 32, 32))
    assert operator.forward(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_names_paper_and_code_and_every_number_a_source(name):
    text = PROTOCOLS[name].read_text()
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert re.search(r"\d{4}\.\d{5}", comments[1]), "the paper"
    assert REVISION.search(comments[1]), "the revision of the code that was read"
    assert f"`{name.removesuffix('-noisy')}`" in DOCS
    for row in load_job(name, []).published:
        assert re.search(r"\d{4}\.\d{5}", row.source)
        for value in row.values.values():
            assert f"{value:.3f}" in DOCS, "all published numbers are in one table"


def test_the_noise_of_each_protocol_is_that_of_its_paper_on_its_own_range():
    """On [-1, 1]: the released code of LLE doubles its σ, that of DPS and DAPS adds it as it is."""
    wanted = {"lle": 0.1, "cpigdm": 0.1, "dps": 0.05, "daps": 0.05, "inversebench": 0.05}
    for name in PROTOCOLS:
        paper = name.partition("-")[0]
        noisy = paper not in ("lle", "cpigdm") or name.endswith("-noisy")
        expected = wanted[paper] * noisy * (2 if name.endswith("-phase") else 1)
        assert math.isclose(load_job(name, []).degradation.sigma_y, expected), name


def test_a_noisy_protocol_differs_from_its_noiseless_one_in_the_noise_alone():
    for name in PROTOCOLS:
        if name.startswith("lle-") and name.endswith("-noisy"):
            noisy, clean = (
                yaml.safe_load(PROTOCOLS[each].read_text()) for each in (name, name.removesuffix("-noisy"))
            )
            del noisy["degradation"]["sigma"]
            assert noisy["degradation"] == clean["degradation"]
            assert noisy["sampler"] == clean["sampler"]


@pytest.mark.parametrize("name", ["lle-deblur-noisy", "daps-phase"])
def test_a_protocol_is_planned_with_images_and_a_network_of_a_test(name):
    sets = ["data.shards=builtin:scikit-image", "data.size=32", "data.limit=2", "prior={name: natural}"]
    sets += ["metrics=[psnr]"]  # the paper's needs weights
    result = kintsugi("plan", name, "--no-timing", *(part for each in sets for part in ("--set", each)))
    assert result.exit_code == 0, result.output
    assert re.search(r"samples\W+2\b", result.output)


def test_the_blur_of_lle_is_wide_along_the_rows():
    """As H_small1 σ 1 on the left and H_small2 σ 20 on the right of the image in the released code."""
    spec = load_job("lle-deblur", []).degradation.operator
    operator = operators.build(spec, (1, 64, 64))
    point = torch.zeros(1, 1, 64, 64)
    point[..., 32, 32] = 1
    spread = operator.adjoint(operator.forward(point))[0, 0]
    rows, columns = spread.abs().sum(1), spread.abs().sum(0)
    assert (columns > 1e-2).sum() > (rows > 1e-2).sum()
