"""`kintsugi calibrate`: a table of a prior's errors, and a job that uses it."""

import json

import pytest
import torch
import yaml
from kit.jobs import execute, kintsugi, rows
from kit.shards import encode, picture, write_tar

from kintsugi import priors
from kintsugi.errors import JobError
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.execution.directory import FILES
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.paths import RectifiedFlow, VariancePreserving
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.calibrate import HIGHEST, LOWEST, Calibration
from kintsugi.samplers.errors import frequencies_of, read_table
from kintsugi.testing import draw

SIDE = 16


@pytest.fixture(scope="module")
def job_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    write_tar(folder / "in.tar", [(f"{i:02d}.png", encode(picture(i, SIDE))) for i in range(14)])
    job = {
        "data": {"shards": f"{folder}/in.tar", "size": SIDE, "subset": {"fraction": 0.7}},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}, "sigma": 0.05},
        "metrics": ["psnr"],
        "compute": {"batch_size": 4, "cpus_per_actor": 1},
        "output": str(folder / "run"),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


@pytest.mark.parametrize("path", [VariancePreserving(), RectifiedFlow()], ids=["vp", "flow"])
def test_the_errors_of_a_wiener_filter_are_those_of_the_closed_form(path):
    """Of white images: their variance times σ² / (1 + σ²), at all frequencies alike."""
    calibration = Calibration(StandardNormal(path, "x0"), 12)
    for batch in range(40):
        keys = [f"{batch}-{i}" for i in range(20)]
        calibration.add(draw(20, 3, 12, 16, seed=batch), KeyedNoise(0, keys))
    table = calibration.table("0" * 64, "float32")
    sigmas = torch.tensor(table.sigmas, dtype=torch.float64)
    assert (table.sigmas[0], table.sigmas[-1]) == pytest.approx((LOWEST, HIGHEST))
    assert table.images == 800
    found = (
        torch.tensor(table.variances, dtype=torch.float64) * (1 + sigmas**2)[:, None] / sigmas[:, None] ** 2
    )
    assert (found - 1).abs().max() < 0.15, "2,400 draws at the least"
    at = frequencies_of(12, 16)
    assert (table(1.0, at) / 0.5 - 1).abs().max() < 0.15


def test_a_table_is_made_of_the_images_for_tuning_and_used_by_the_job(job_file, tmp_path):
    out = tmp_path / "errors"
    result = kintsugi("calibrate", job_file, "--images", "8", "--out", out)
    assert result.exit_code == 0, result.output
    assert "sampler.covariance=" in result.output
    table = read_table(out / "errors.json")
    assert (table.images, table.size, table.precision) == (8, SIDE, "float32")
    assert table.prior == priors.load({"name": "natural"}).sha256
    first = (out / "errors.json").read_bytes()
    assert kintsugi("calibrate", job_file, "--images", "8", "--out", out).exit_code == 0
    assert (out / "errors.json").read_bytes() == first

    spec = f"sampler={{name: covariance, steps: 2, covariance: {out}/errors.json}}"
    job = load_job(str(job_file), [spec, f"output={tmp_path}/run", "data.subset=null"])
    run = execute(job)
    assert all(row["status"] == "ok" for row in rows(run))
    assert "sampler.covariance" in json.loads((run.folder / FILES).read_text())
    (out / "errors.json").write_bytes(first.replace(b'"images":8', b'"images":9'))
    with pytest.raises(JobError, match=r"sampler\.covariance"):
        execute(job)
    (out / "errors.json").unlink()
    with pytest.raises(JobError, match=r"sampler\.covariance: .* cannot be read"):
        execute(job.model_copy(update={"output": str(tmp_path / "other")}))


def test_the_job_may_name_the_table_that_is_to_be_made_and_too_few_images_are_refused(job_file, tmp_path):
    """A table of another prior is replaced by the command that its refusal names."""
    path = tmp_path / "errors.json"
    sampler = ("--set", f"sampler={{name: covariance, covariance: {path}}}")
    with pytest.raises(JobError, match=r"\d images for tuning, and 8 are needed: raise data.subset.fraction"):
        kintsugi("calibrate", job_file, "--out", tmp_path, *sampler, "--set", "data.subset.fraction=0.2")
    assert not path.exists()
    for images in (8, 9):
        assert (
            kintsugi("calibrate", job_file, "--images", str(images), "--out", tmp_path, *sampler).exit_code
            == 0
        )
        assert read_table(path).images == images
    assert list(tmp_path.iterdir()) == [path], "it leaves something else there"


def test_predictions_that_are_not_finite_make_no_table(job_file, tmp_path, monkeypatch):
    def add(self, *_):
        self.sums.fill_(float("nan"))
        self.counts.fill_(1)

    monkeypatch.setattr(Calibration, "add", add)
    with pytest.raises(JobError, match=r"prior: errors are not finite, or 0; try compute\.precision=float32"):
        kintsugi("calibrate", job_file, "--images", "8", "--out", tmp_path)
    assert not list(tmp_path.iterdir())
