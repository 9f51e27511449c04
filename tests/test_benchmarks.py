"""The benchmark for a GPU runs, on a network of a test's size, and writes its table into the docs."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_on_a_cpu_and_writes_its_table(gpu, tmp_path):
    page = tmp_path / "checkpoints.md"
    page.write_text((ROOT / "docs" / "checkpoints.md").read_text())
    before, after = (page.read_text().split(mark)[i] for mark, i in zip(gpu.MARKS, (0, 1), strict=True))
    gpu.main(device="cpu", tiny=True, batch=1, modes="1", repeats=1, peak=0.001, write=page)
    text = page.read_text()
    assert text.startswith(before + gpu.MARKS[0])
    assert text.endswith(gpu.MARKS[1] + after)
    _, _, *rows = [
        line.strip("| ").split(" | ") for line in text[len(before) :].splitlines() if line[:1] == "|"
    ]
    assert rows[0][:3] == ["tiny", "bf16", "1"]
    assert float(rows[0][4]) > 0
    assert rows[0][5].endswith("%")


def test_a_page_without_the_marks_is_left_as_it_is(gpu, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match=r"no line <!-- benchmarks/gpu\.py -->"):
        gpu.put(page, "table")
    assert page.read_text() == "text"


def test_operations_of_a_derivative_are_counted(gpu):
    """Of the 10 passes of 5 steps 5 are backward, each of about as many operations as a forward."""
    prior = gpu.RandomPrior(gpu.TINY["tiny"], "cpu")
    both, forwards = (gpu.operations(gpu.restore(prior, 32, 1, "cpu", s)) for s in gpu.SAMPLERS.values())
    assert both == pytest.approx(2 * forwards, rel=0.15)
