"""The scripts of examples/ are short, and do what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest

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
