"""Kintsugi from Python: what it costs to import, runs, and images in memory."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from kit.shards import picture, write_tar
from PIL import Image
from rich.console import Console

import kintsugi
from kintsugi import JobError
from kintsugi.jobs.display import Display
from kintsugi.pipeline.data.pictures import array_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.run import Progress

FAST = {"name": "conjugate", "steps": 1}
DOCS = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_import_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; started = time.perf_counter(); import kintsugi; "
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'typer'} & sys.modules.keys(); "
        "print(time.perf_counter() - started, *heavy)"
    )
    said = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in said) < 0.1
    assert {len(words) for words in said} == {1}, said


@pytest.mark.slow
def test_the_examples_of_the_docs_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    assert "dB, 95 % interval" in capsys.readouterr().out


@pytest.fixture
def done(make_job) -> kintsugi.Run:
    """The run of a job on four images."""
    return kintsugi.run(make_job(images="all"), limit=4)


def test_a_run_says_what_came_out(done):
    rows = done.rows().to_pylist()
    assert len(rows) == 4
    assert done.report.is_file()
    assert done.results()["samples"] == {"planned": 4, "done": 4, "ok": 4, "failed": 0}
    assert done.results()["metrics"]["psnr"]["mean"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    again = kintsugi.open_run(done.folder)
    key = rows[-1]["key"]
    for kind in ("restored", "truth"):
        assert again.picture(key, kind).tobytes() == done.picture(key, kind).tobytes()
    assert done.picture(key) != done.picture(rows[0]["key"]), "pictures are of the sample that is named"
    with pytest.raises(JobError, match="no sample 'nobody' is done"):
        done.picture("nobody")
    with pytest.raises(JobError, match="no kind 'spectrum'"):
        done.picture(key, "spectrum")
    with pytest.raises(JobError, match="not a run directory"):
        kintsugi.open_run(done.folder / "data")


def test_a_run_shows_itself_without_writing(done):
    assert repr(done).splitlines()[0] == f"{done.folder}: 4 of 4 samples, 0 failed"
    assert re.search(r"psnr +\d+\.\d", repr(done))
    assert re.search(r"<tr><td>psnr</td><td>\d", done._repr_html_())
    (done.folder / "report" / "rows.parquet").unlink()
    assert len(repr(done).splitlines()) == 1, "measures that are not of now are not shown"
    assert not (done.folder / "report" / "rows.parquet").exists()
    assert done.results()["samples"]["done"] == 4
    assert (done.folder / "report" / "rows.parquet").exists()


def test_what_a_notebook_shows_is_escaped(make_job, tmp_path):
    run = kintsugi.run(make_job(output=str(tmp_path / "<script>")), limit=2)
    assert "<script>" not in run._repr_html_()
    assert "&lt;script&gt;: 2 of 2 samples" in run._repr_html_()


def test_a_job_is_a_file_a_dict_or_a_job_and_fields_are_set(make_job, tmp_path):
    job = make_job()
    fields = job.model_dump() | {"output": tmp_path / "from a dict"}
    run = kintsugi.run(fields, sets={"data.limit": 2, "sampler": FAST})
    assert (run.job.data.limit, run.job.sampler, len(run.rows())) == (2, FAST, 2)
    assert fields["output"] == tmp_path / "from a dict", "what is given stays as it is"
    assert fields["data"]["limit"] is None
    for sets, message in (
        ({"sampler.w": "much"}, "sampler.w: .*valid number"),
        ({"data.size.x": 1}, r"sets\['data.size.x'\]: 'size' is a value"),
    ):
        with pytest.raises(JobError, match=message):
            kintsugi.run(job, sets=sets)
    with pytest.raises(JobError, match=r"no job file 'quickstar'.*did you mean quickstart"):
        kintsugi.run("quickstar")


@pytest.mark.slow
def test_an_interrupt_finishes_the_unit_in_hand_and_the_same_call_goes_on(make_job, monkeypatch):
    job, add = make_job(), Display.add
    before = signal.getsignal(signal.SIGINT)

    def interrupt(self, commit):
        add(self, commit)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Display, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        kintsugi.run(job)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is before
    begun = kintsugi.open_run(job.output)
    some = len(begun.rows())
    assert 0 < some < begun._run.summary.samples
    assert len(kintsugi.run(job).rows()) == begun._run.summary.samples


def test_a_notebook_has_a_bar(monkeypatch):
    shown = Mock()
    notebook = ModuleType("IPython.display")
    notebook.HTML, notebook.display = str, Mock(return_value=shown)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    display = Display(Console(force_jupyter=True), 10, Progress(1, 4, 0), Live(workers=1))
    with display.running():
        pass
    assert shown.update.call_args.args[0].startswith('<progress max="10" value="4"></progress> 4/10')


# ---- images in memory


@pytest.mark.slow
def test_a_tensor_restored_is_the_rows_of_a_run(make_job, tmp_path):
    """Same seed, keys, and batches: the same bytes, also of an image larger than a tile."""
    generator = torch.Generator().manual_seed(0)
    keys = ["a", "b", "c"]
    y = torch.rand(3, 3, 40, 48, generator=generator) * 2 - 1
    shard = write_tar(
        tmp_path / "y.tar",
        [(f"{key}.npy", array_file(each.numpy())) for key, each in zip(keys, y, strict=True)],
    )
    sampler = {"name": "ddnm", "steps": 2}
    fields = {
        "data": {"shards": str(shard), "kind": "measurements"},
        "degradation": {"operator": {"name": "bicubic", "factor": 2}, "sigma": 0.1},
        "sampler": sampler,
        "seed": 7,
        "output": str(tmp_path / "run"),
    }
    run = kintsugi.run(fields)
    restored = kintsugi.restore(
        y, {"name": "bicubic", "factor": 2}, sampler=sampler, sigma=0.1, keys=keys, seed=7
    )
    assert restored.shape == (3, 3, 80, 96)
    levels = ((restored + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for key, each in zip(keys, levels, strict=True):
        assert (np.asarray(run.picture(key)) == each).all()
    with pytest.raises(JobError, match="there is no truth of 'a': the job keeps no such pictures"):
        run.picture("a", "truth")
    other = kintsugi.restore(y[:1], {"name": "bicubic", "factor": 2}, sampler=sampler, sigma=0.1, seed=8)
    assert not torch.equal(other[0], restored[0]), "the seed is used"


@pytest.mark.slow
def test_each_kind_comes_back_and_is_the_same_image():
    array = np.stack([picture(0), picture(1)])
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2) / 127.5 - 1
    pictures = [Image.fromarray(each) for each in array]

    def restore(images):
        return kintsugi.restore(images, "denoise", sampler=FAST, sigma=0.1)

    bytes_ = restore(array)
    assert (bytes_.dtype, bytes_.shape) == (np.uint8, array.shape)
    assert not (bytes_ == array).all(), "something was restored"
    listed = restore(pictures)
    assert all((np.asarray(each) == of).all() for each, of in zip(listed, bytes_, strict=True))
    assert (np.asarray(restore(pictures[0])).astype(int) - bytes_[0]).__abs__().max() <= 1, "a batch of one"
    for kind in (np.float32, np.float64):
        floats = restore((array / 255).astype(kind))
        assert floats.dtype == kind
        assert np.abs(floats * 255 - bytes_).max() <= 0.51
    of_tensor = restore(tensor.double())
    assert of_tensor.dtype == torch.float64
    clipped = ((of_tensor + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(clipped - bytes_).max() <= 0.51


def test_pictures_of_several_sizes_and_modes():
    grey = Image.fromarray(picture(0)).convert("L")
    wide = Image.fromarray(picture(1)).resize((48, 32))
    found = kintsugi.restore([grey, wide, grey], {"name": "bicubic", "factor": 2}, sampler=FAST)
    assert [(each.mode, each.size) for each in found] == [
        ("RGB", (64, 64)),
        ("RGB", (96, 64)),
        ("RGB", (64, 64)),
    ]
    assert kintsugi.restore([], "denoise") == []


@pytest.mark.slow
def test_a_measurement_that_is_no_image_is_a_tensor():
    from kintsugi import operators

    spec = {"name": "compressed_sensing"}
    y = operators.build(spec, (3, 256, 256)).forward(torch.zeros(1, 3, 256, 256))
    assert kintsugi.restore(y, spec, sampler=FAST).shape == (1, 3, 256, 256)
    with pytest.raises(JobError, match="is no image; give a tensor"):
        kintsugi.restore(Image.fromarray(picture(0)), spec)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 32, 32, 3), 200.0), r"values from 200 to 200, far outside of \[0, 1\]"),
        (np.full((1, 32, 32, 3), -1.0), r"far outside of \[0, 1\]"),
        (torch.full((1, 3, 32, 32), 0.5), "nothing darker than mid-grey"),
        (torch.full((1, 3, 32, 32), -128.0), r"far outside of \[-1, 1\]"),
        (np.full((1, 32, 32, 3), np.nan), "NaN"),
        (np.zeros((32, 32, 3), np.uint8), r"arrays are \(B, H, W, C\)"),
        (np.zeros((1, 32, 32, 3), np.int64), "int64"),
        (torch.zeros(3, 32, 32), r"tensors are \(B, C, H, W\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "of floating point"),
        ("image.png", "str, not a PIL image"),
        ([np.zeros((32, 32, 3))], "list, not a PIL image"),
    ],
)
def test_what_is_no_image_or_on_another_range_is_refused(images, message):
    with pytest.raises(JobError, match=message):
        kintsugi.restore(images, "denoise", sampler=FAST)


def test_specs_that_do_not_fit_are_named():
    image = Image.fromarray(picture(0))
    for options, message in (
        ({"sampler": "magic"}, "sampler.name: no sampler 'magic'"),
        ({"prior": {"name": "adm"}}, "prior.path: missing"),
        ({"sigma": -1}, "degradation.sigma: .*greater than or equal to 0"),
        ({"keys": ["a", "b"]}, "keys: 2, of 1 images"),
    ):
        with pytest.raises(JobError, match=message):
            kintsugi.restore(image, "denoise", **options)
    with pytest.raises(JobError, match="no prior 'magic'"):
        kintsugi.load_prior("magic")
