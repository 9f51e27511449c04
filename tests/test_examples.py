"""The scripts of examples/ are short, and do what they say; so does the notebook."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

EXAMPLES = Path(__file__).parents[1] / "examples"
SAYS = {
    "compare_samplers": r"conjugate − ddnm: [+-]\d+\.\d\d dB, better on \d+%",
    "deepinv_physics": r"(?P<before>\S+) dB became (?P<after>\S+) dB",
    "measurements": r"astronaut \(64, 64\)\ncoffee \(64, 64\)",
    "neural_codec": r"(?P<before>\S+) dB became (?P<after>\S+) dB",
    "own_operator": r"(?P<before>\S+) dB became (?P<after>\S+) dB",
    "restore_photograph": r"\(32, 32\) became \(128, 128\)",
    "run_job": r"(\w+ +ok \S+ dB, 2 evaluations\n){3}report: ",
}

GAIN = {"deepinv_physics": 4, "neural_codec": 2, "own_operator": 5}
"""dB, at least."""


def test_each_is_tested_and_has_at_most_thirty_lines():
    files = {file.stem: len(file.read_text().splitlines()) for file in EXAMPLES.glob("*.py")}
    assert files.keys() == SAYS.keys()
    assert max(files.values()) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_it_says_what_came_out(name, tmp_path, monkeypatch, capsys):
    if name == "deepinv_physics":
        pytest.importorskip("deepinv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    found = re.search(SAYS[name], capsys.readouterr().out)
    assert found
    if "after" in found.groupdict():
        assert float(found["after"]) > float(found["before"]) + GAIN[name]


def shown(code: str, names: dict[str, Any]) -> Any:
    """What a notebook shows below a cell: the value of its last line, if that is an expression.

    Jupyter's kernel would be 39 packages and 110 MB to test the same.
    """
    tree = ast.parse(code)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return last and eval(compile(last, "cell", "eval"), names)


@pytest.mark.slow
def test_the_notebook_is_stored_without_outputs_and_runs(tmp_path, monkeypatch, capsys):
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(notebook["cells"]) <= 12
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    values = [shown("".join(cell["source"]), names) for cell in cells]
    _, restored, run, _, pictures = values
    assert (restored.size, pictures.size) == ((384, 128), (576, 192))
    third = [restored.crop((x, 0, x + 128, 128)) for x in (0, 128, 256)]
    assert error(third[1], third[2]) < error(third[0], third[2])
    assert "psnr" in run._repr_html_()
    assert len(re.findall(r"\d dB, without a network \d", capsys.readouterr().out)) == 3


def error(a: Image.Image, b: Image.Image) -> int:
    """The sum of squared differences."""
    counts = ImageChops.difference(a, b).histogram()
    return sum(count * (i % 256) ** 2 for i, count in enumerate(counts))
