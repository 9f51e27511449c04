"""What needs no network stands beside every restoration: per sample, in every table, for runs old and new."""

import hashlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from kit.jobs import execute
from kit.shards import picture, samples
from PIL import Image
from typer.testing import CliRunner

from kintsugi import operators
from kintsugi.jobs.cli import app
from kintsugi.pipeline.analysis.aggregate import describe
from kintsugi.pipeline.analysis.compare import compare
from kintsugi.pipeline.analysis.compare_inputs import Input, can_be_ranked, differing_fields, open_inputs
from kintsugi.pipeline.analysis.compare_page import best_runs, runs_table, write_page
from kintsugi.pipeline.analysis.query import ask, rows_of
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.analysis.report.numbers import about_baselines
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution.commit import ROWS
from kintsugi.pipeline.execution.degrade import add_noise
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.verify import verify
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.registry import is_baseline
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.storage.location import at
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.lmmse import linear_mmse

KEYS = ["a", "b", "c"]
METRICS = ["psnr", "ssim", "total_variation"]
SAMPLER = {"name": "ddnm", "steps": 1, "start": 0.2}


def test_values_are_those_of_the_estimates_whatever_the_batch(make_job):
    job = make_job(metrics=METRICS, sampler=SAMPLER)
    images = [picture(i) for i in range(3)]
    stage = Stage(job, "cpu")
    operator = operators.build(job.degradation.operator, (3, 32, 32))
    scorer = Scorer(METRICS)
    for key, image, found in zip(KEYS, images, stage.run(samples(KEYS, images)), strict=True):
        alone = stage.run(samples([key], [image]))[0].metrics
        truth = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = add_noise(operator.forward(truth), None, job.degradation.gaussian, KeyedNoise(job.seed, [key]))
        pinv = operator.pinv(y)
        lmmse = linear_mmse(operator, operator.to_spectral(pinv), job.degradation.sigma_y)
        for baseline, estimate in (("pinv", pinv), ("lmmse", lmmse)):
            for name, (value,) in scorer(estimate, truth).items():
                column = f"{name}_{baseline}"
                assert found.metrics[column] == pytest.approx(value, rel=1e-6)
                assert alone[column] == pytest.approx(found.metrics[column], rel=1e-9)


def test_of_an_operator_that_is_no_matrix_there_is_the_surrogate_alone(make_job):
    job = make_job(
        metrics=METRICS, sampler=SAMPLER, degradation={"operator": {"name": "jpeg", "quality": 10}}
    )
    (found,) = Stage(job, "cpu").run(samples(["a"], [picture(0)]))
    assert {"psnr", "psnr_pinv", "ssim_pinv"} <= found.metrics.keys()
    assert not any(name.endswith("_lmmse") for name in found.metrics)
    none = {"metrics": {"psnr": {"baselines": {"pinv": {"improved": 0.25}}}}}
    assert about_baselines(none) == [
        "PSNR: H⁺y, which needs no network, does better on 75 % of the images",
        "there is no linear MMSE estimate: the operator is not linear",
    ]


@pytest.fixture
def finished(make_job):
    noise = {"operator": {"name": "denoise"}, "sigma": 0.2}
    return execute(make_job(metrics=["psnr", "ssim"], sampler=SAMPLER, degradation=noise))


@pytest.mark.slow
def test_report_terminal_and_compare_state_them(finished, tmp_path):
    said = CliRunner().invoke(app, ["report", str(finished.folder)], terminal_width=80).output
    assert "linear MMSE" in said
    folder = finished.folder / "report"
    rows = pq.read_table(folder / "rows.parquet")
    stated = json.loads((folder / "metrics.json").read_text())["metrics"]
    for name in ("psnr", "ssim"):
        assert stated[name]["baselines"].keys() == {"pinv", "lmmse"}
        for baseline, of in stated[name]["baselines"].items():
            own, other = (rows[column].to_numpy() for column in (name, f"{name}_{baseline}"))
            assert of["value"] == pytest.approx(other.mean())
            assert of["difference"]["value"] == pytest.approx((own - other).mean())
            assert of["difference"]["low"] < of["difference"]["value"] < of["difference"]["high"]
            assert of["improved"] == (own > other).mean()
    html = (folder / "report.html").read_text()
    assert "one is traded for the other" in html
    assert html.count('<tr class="beside">') == 4
    assert "| PSNR | linear MMSE |" in (folder / "report.md").read_text()

    found = compare(open_inputs([str(finished.folder)] * 2))
    assert [one.label for one in found.baselines] == ["H⁺y", "linear MMSE"]
    assert found.baselines[0].measures["psnr"][0] == stated["psnr"]["baselines"]["pinv"]["value"]
    against = [one for one in found.against if (one.measure, one.baseline) == ("psnr", "H⁺y")]
    assert [one.wins for one in against] == [stated["psnr"]["baselines"]["pinv"]["improved"]] * 2
    corrected = {one.measure: one.corrected for one in found.paired}
    assert corrected == {"psnr": 1, "ssim": 1, "residual": None}, "Holm's method is for what was asked for"
    assert [row[0] for row in runs_table(found).rows[:2]] == ["H⁺y", "linear MMSE"]
    lost = [one for one in found.against if one.wins < 0.5]
    assert len(lost) == sum("needs no network, does better" in line for line in found.warnings) > 0
    page = write_page(found, open_inputs([str(finished.folder)] * 2), at(str(tmp_path / "out")))
    assert "those between runs (2) and those with what needs no network (8)" in page.read_text()


@pytest.mark.slow
def test_different_degradations_have_no_common_ranking(finished, tmp_path):
    fields = finished.job.model_dump(mode="json")
    fields["degradation"]["sigma"] = 0.1
    run = execute(Job.model_validate(fields | {"output": str(tmp_path / "other")}))
    inputs = open_inputs([str(finished.folder), str(run.folder)])
    found = compare(inputs)
    assert not found.ranked
    assert found.paired == []
    assert best_runs(found) == {}
    assert "no common ranking" in found.warnings[0]
    assert found.baselines[0].label == f"H⁺y of {finished.folder.name}"
    write_page(found, inputs, at(str(tmp_path / "out")))
    assert "Pareto front" not in (tmp_path / "out" / "frontier.svg").read_text()


def test_a_degradation_is_what_it_does_and_not_how_it_is_written(make_job, tmp_path):
    def run(name, operator, files=None, **noise):
        folder = tmp_path / name
        folder.mkdir()
        if files is not None:
            (folder / "files.json").write_text(json.dumps(files))
        job = make_job(degradation={"operator": operator, **noise})
        return SimpleNamespace(job=job, folder=folder)

    blur, field = {"name": "anisotropic_blur"}, "degradation.operator.mask"
    short = run("short", {"name": "compose", "operators": [blur, {"name": "bicubic"}]}, sigma=0.2)
    parts = [blur | {"sigmas": [20, 1]}, {"name": "bicubic", "factor": 4}]
    long = run("long", {"name": "compose", "operators": parts}, sigma=0.4, sigma_range="[-1,1]")
    assert differing_fields(short, long) == []
    noisier = run("noisier", {"name": "compose", "operators": parts}, sigma=0.4)
    assert differing_fields(long, noisier) == [("degradation.sigma on [-1, 1]", 0.4, 0.8)]

    one, other = tmp_path / "one.png", tmp_path / "other.png"
    for file in (one, other):
        Image.fromarray(np.pad(np.zeros((16, 16), np.uint8), 8, constant_values=255)).save(file)
    sums = {field: "a" * 64}
    masked = [{"name": "inpaint", "mask": str(file), "known": "white"} for file in (one, other)]
    here = run("here", masked[0], sums)
    assert differing_fields(here, run("there", masked[1], sums)) == [], "the same mask, elsewhere"
    swapped = run("swapped", masked[0], {field: "b" * 64})
    assert differing_fields(here, swapped) == [(field, "a" * 64, "b" * 64)]
    assert differing_fields(here, run("old", masked[0])) == [], "as far as is known"

    def entry(of):
        return Input("", tmp_path, of, {})

    assert can_be_ranked([entry(None), entry(short), entry(long)])
    assert not can_be_ranked([entry(None), entry(short), entry(here)])


def test_rows_of_earlier_versions_have_none_and_are_whole(finished):
    for unit, _ in finished.commits():
        data, record = (
            finished.folder / folder / f"{unit.unit}.{suffix}"
            for folder, suffix in (("data", "parquet"), ("commits", "json"))
        )
        kept = [name for name in ROWS.names if not is_baseline(name)]
        pq.write_table(pq.read_table(data).select(kept), data)
        content = data.read_bytes()
        sums = {"data_bytes": len(content), "data_sha256": hashlib.sha256(content).hexdigest()}
        values = json.loads(record.read_text()) | sums
        del values["sha256"]  # which they had none of
        record.write_text(json.dumps(values))
    assert all(isinstance(each, Unit) for each in verify(finished))
    assert "restored less this" not in write_report(finished).read_text()
    assert compare(open_inputs([str(finished.folder)] * 2)).baselines == []
    rows = finished.folder / "report" / "rows.parquet"
    table = pq.read_table(rows)
    without = table.drop_columns(list(filter(is_baseline, ROWS.names)))
    pq.write_table(without, rows)  # as it was made then, with its metadata
    with rows_of(finished.folder) as whole, ask(whole, "select psnr_pinv from rows") as (_, found):
        assert set(found) == {(None,)}


def test_values_that_are_infinite_or_not_defined_are_counted():
    values = ([20.0, 30.0, 40.0], [math.nan, math.inf, 10.0])
    own, other = (pa.chunked_array([of], pa.float64()) for of in values)
    good, keys = pa.chunked_array([[True] * 3]), pa.chunked_array([KEYS])
    (found,) = describe(own, good, keys, "psnr", {"pinv": other}).baselines.values()
    assert (found.n, found.infinite, found.undefined, found.value) == (2, 1, 1, 55)
    assert (found.difference.n, found.difference.value, found.improved) == (2, (-70 + 30) / 2, 0.5)
    assert np.isfinite([found.difference.low, found.difference.high]).all()
