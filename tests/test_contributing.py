"""The worked examples of CONTRIBUTING.md work, each by the entry with which it ends."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

import kintsugi
from kintsugi.checkpoint import CheckpointError
from kintsugi.registry import construct
from kintsugi.samplers import KeyedNoise

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the examples define."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    assert max(block.count("\n") for block in blocks) <= 40
    names: dict[str, Any] = {"__name__": "contributing"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_sampler_operator_and_prior_restore(page, tmp_path):
    shape, file = (3, 16, 16), tmp_path / "gain.safetensors"
    save_file({"gain": torch.tensor(0.5)}, file)
    operator = construct("operator", page["OPERATORS"], {"name": "interlaced", "every": 4}, shape).float()
    prior = construct("prior", page["PRIORS"], {"name": "scaled", "path": str(file)}, "cpu")
    sampler = construct("sampler", page["SAMPLERS"], {"name": "replace", "steps": 3, "project": True})
    y = operator.forward(torch.rand(2, *shape, generator=torch.manual_seed(0)) * 2 - 1)
    restored = sampler(prior, operator, y, KeyedNoise(0, ["a", "b"]))
    assert restored.forwards == 3
    assert torch.allclose(operator.forward(restored.image), y, atol=1e-6)
    assert (y[:, :, ::4] != 0).all()
    assert (y[:, :, 1::4] == 0).all()
    save_file({"other": torch.tensor(0.5)}, file)
    with pytest.raises(CheckpointError, match="has no 'gain'"):
        construct("prior", page["PRIORS"], {"name": "scaled", "path": str(file)}, "cpu")


def test_the_metric_measures(page):
    measure = page["METRIC"].load(torch.device("cpu"))
    assert float(measure(torch.full((1, 3, 8, 8), 0.75), torch.full((1, 3, 8, 8), 0.5))) == 0.25


def test_the_command_counts(page, make_job):
    run = kintsugi.run(make_job(), limit=2)
    app = typer.Typer()
    app.command()(page["COMMANDS"][0])
    assert "2 samples" in CliRunner().invoke(app, [str(run.folder)], catch_exceptions=False).output
