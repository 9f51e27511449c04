"""Metrics of other packages have columns as those that are built in, where the job names them."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kit.jobs import kintsugi, told
from kit.plugins import install_mine, write
from kit.shards import encode

import kintsugi as package
from kintsugi import testing
from kintsugi.errors import JobError, SpecError
from kintsugi.pipeline.analysis.rows import flat_schema
from kintsugi.pipeline.execution.commit import ROWS, rows_schema
from kintsugi.pipeline.execution.directory import FILES
from kintsugi.pipeline.execution.identity import of_weights
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.verify import verify
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.metrics import IMAGE, REGISTRY, images, registry
from kintsugi.pipeline.metrics.weights import Weights
from kintsugi.pipeline.storage.location import at


def finding(folder: str | Path) -> list[str]:
    return [each.what for each in verify(Run.open(at(folder))) if hasattr(each, "what")]


def test_the_metric_of_another_package_has_the_properties(mine):
    testing.check_metric("largest_error")


def test_rows_have_the_columns_that_the_job_names(mine):
    assert rows_schema(["fid", "psnr", "largest_error", "largest_error"]).names == [
        *ROWS.names[: ROWS.get_field_index("total_variation") + 1],
        "largest_error",
        *(name for name in ROWS.names if registry.is_baseline(name)),
        *("largest_error_pinv", "largest_error_lmmse"),
        *ROWS.names[ROWS.get_field_index("residual") :],
    ]
    assert rows_schema(["psnr", "fid"]) == rows_schema([]) == ROWS
    known = {*IMAGE, *filter(registry.is_baseline, ROWS.names), *registry.TAKEN}
    assert {*ROWS.names, *flat_schema(ROWS).names} <= known, "a new column has a name that no metric can have"


@pytest.mark.slow
def test_a_run_shows_the_metric_wherever_it_shows_measures(mine, make_job, tmp_path):
    job = make_job(metrics=["ssim", "largest_error"], images="all", output=str(tmp_path / "a"))
    run = package.run(job, limit=3)
    found = run.rows()
    assert {"largest_error", "largest_error_pinv", "largest_error_lmmse"} < set(found.column_names)
    row = found.to_pylist()[1]
    restored, truth = (np.asarray(run.picture(row["key"], of), float) / 255 for of in ("restored", "truth"))
    assert row["largest_error"] == pytest.approx(np.abs(restored - truth).max(), abs=3e-3)
    numbers = run.results()["metrics"]["largest_error"]
    assert numbers["mean"] == pytest.approx(np.mean(found["largest_error"].to_pylist()))
    assert numbers["baselines"]["pinv"]["n"] == 3
    report = Path(run.report)
    assert "largest error ↓" in report.with_name("report.md").read_text()
    html = report.read_text()
    assert "<dt>largest error ↓</dt><dd>Largest absolute error of a value, on [0, 1].</dd>" in html
    assert "largest error, best first" in html
    assert 'data-largest_error="' in html
    assert finding(job.output) == []
    asked = kintsugi("query", job.output, "select round(avg(largest_error), 6) from rows")
    assert f"{numbers['mean']:.6f}".rstrip("0") in asked.output
    other = make_job(metrics=["ssim", "largest_error"], sampler={"name": "ddim"}, output=str(tmp_path / "b"))
    package.run(other, limit=3)
    compared = kintsugi(
        "compare", job.output, other.output, "--by", "largest_error", "--out", str(tmp_path / "c")
    )
    assert compared.exit_code == 0, compared.output
    assert "largest error" in (tmp_path / "c" / "compare.md").read_text()
    assert Run.open(at(job.output)).job.metrics == ["ssim", "largest_error"]


def test_a_sweep_chooses_by_it(mine, make_job, tmp_path):
    job = make_job(metrics=["largest_error"], output=str(tmp_path / "base"))
    (tmp_path / "job.yaml").write_text(job.model_dump_json())
    swept = kintsugi(
        *(
            "sweep",
            tmp_path / "job.yaml",
            "--vary",
            "sampler.steps=1,2",
            "--by",
            "largest_error",
            "--tune",
            "4",
        ),
        *("--address", "none", "--out", tmp_path / "swept"),
    )
    assert swept.exit_code == 0, swept.output
    assert "largest_error" in (tmp_path / "swept" / "sweep.csv").read_text()
    assert "largest error" in swept.output


def test_images_of_another_method_are_scored_by_it(mine, tmp_path):
    for name, grey in (("restored", 110), ("true", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(encode(np.full((32, 32, 3), grey, np.uint8)))
    folders = tmp_path / "restored", tmp_path / "true"
    assert (
        kintsugi("score", *folders, "--metrics", "psnr,largest_error", "--out", tmp_path / "out").exit_code
        == 0
    )
    (value,) = package.open_run(tmp_path / "out").rows()["largest_error"].to_pylist()
    assert value == pytest.approx(10 / 255)
    assert finding(tmp_path / "out") == []


def test_a_run_records_its_package_and_its_weights(mine, make_job, monkeypatch, tmp_path):
    job = make_job(metrics=["largest_error"])
    package.run(job, limit=2)
    folder = at(job.output)
    assert json.loads((folder / FILES).read_bytes()) == {"metrics.largest_error": "kintsugi-mine==1.0"}
    listed = kintsugi("list", "metrics").output
    assert "plug-in of kintsugi-mine==1.0" in listed
    install_mine(monkeypatch, tmp_path / "newer", "1.1")
    with pytest.raises(
        JobError, match=r"metrics\.largest_error: plug-in kintsugi-mine==1\.0 → kintsugi-mine==1\.1"
    ):
        package.run(job, limit=2)
    weights = Weights("a network", "https://example.org/weights.pth")
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / weights.name).write_bytes(b"w")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    REGISTRY.loaded["largest_error"] = replace(IMAGE["largest_error"], weights=weights)
    assert of_weights(job) == {"metrics.largest_error.weights": weights.digest()}


def broken(patch, folder, value: str, name: str = "bad") -> None:
    """A package `broken` whose metric is an expression in its module."""
    names = "ImageMetric, SetMetric, plain"
    text = f"import torch\nfrom kintsugi.pipeline.metrics import {names}\nMETRIC = {value}\n"
    write(folder, "broken", "2.0", {"kintsugi.metrics": {name: "broken_package:METRIC"}})
    (folder / "broken_package.py").write_text(text)
    patch.syspath_prepend(folder)
    patch.setattr(REGISTRY, "loaded", {})
    patch.delitem(sys.modules, "broken_package", raising=False)


GIVES = 'ImageMetric("Bad", "lower", "It is bad.", plain(lambda a, b: {}))'


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("bad", "len", "is no ImageMetric or SetMetric or ClipMetric: broken_package:METRIC"),
        ("bad", "1 / 0", "cannot be imported: ZeroDivisionError"),
        (
            "bad",
            'ImageMetric("Bad", "max", "", plain(len))',
            r"cannot be imported: ValidationError.*'higher'",
        ),
        ("bad", 'ImageMetric("Bad", "lower", "", plain(len), smallest=64)', "images of at least 64 pixels"),
        ("seconds", GIVES.format(0.0), r"no metric can be named 'seconds'.*other column"),
        ("psnr_pinv", GIVES.format(0.0), "no metric can be named 'psnr_pinv'.*does not end"),
        ("PSNR-Y", GIVES.format(0.0), "no metric can be named 'PSNR-Y'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_work_starts(
    name, value, reason, make_job, monkeypatch, tmp_path
):
    broken(monkeypatch, tmp_path / "site", value, name)
    with pytest.raises(ValueError, match=rf"(?s)metrics: .*{reason}"):
        make_job(metrics=["psnr", name])
    (tmp_path / "job.yaml").write_text(
        "data: {shards: x.tar, size: 32}\ndegradation: {operator: {name: denoise}}\n"
        f"metrics: [{name}]\noutput: y\n"
    )
    code, said = told("plan", tmp_path / "job.yaml")
    assert (code, "metrics: " in said) == (1, True)


def test_what_cannot_be_loaded_ends_the_job_with_its_name(make_job, monkeypatch, tmp_path):
    broken(monkeypatch, tmp_path / "site", 'ImageMetric("Bad", "lower", "", lambda device: 1 / 0)')
    run = open_or_plan(make_job(metrics=["bad"]))
    with pytest.raises(JobError, match="metrics: bad cannot be loaded: ZeroDivisionError"):
        Worker(run.job, run.folder, "cpu")


@pytest.mark.parametrize(
    ("gives", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (in the metric bad)"),
        ("a", "ValueError: it gives (1, 3, 32, 32), and not one number (in the metric bad)"),
        ("None", "ValueError: it gives NoneType, and not one number (in the metric bad)"),
        ("1e100", "ValueError: it gives 1e+100, which is beyond ±1e+90 (in the metric bad)"),
        ("torch.zeros(2) @ torch.zeros(3)", "RuntimeError: inconsistent tensor size"),
    ],
)
def test_what_fails_for_an_image_is_a_failed_row_that_names_it(gives, error, make_job, monkeypatch, tmp_path):
    broken(monkeypatch, tmp_path / "site", GIVES.format(gives))
    found = package.run(make_job(metrics=["psnr", "bad"]), limit=2).rows().to_pylist()
    assert [row["status"] for row in found] == ["failed"] * 2
    assert all(row["error"].startswith(error) and "(in the metric bad)" in row["error"] for row in found)


def test_a_value_that_is_not_defined_is_counted_beside_the_mean(make_job, monkeypatch, tmp_path):
    broken(monkeypatch, tmp_path / "site", GIVES.format("float('nan')"))
    run = package.run(make_job(metrics=["psnr", "bad"]), limit=2)
    assert run.rows()["status"].to_pylist() == ["ok", "ok"]
    assert (run.results()["metrics"]["bad"]["n"], run.results()["metrics"]["bad"]["undefined"]) == (0, 2)


@pytest.mark.parametrize(
    ("value", "property_"),
    [
        (GIVES.format("-(a - b).abs().mean()"), "less than range says"),
        (GIVES.format("(a - b).abs().mean()").replace("lower", "higher"), "with more noise it is"),
        (GIVES.format("torch.rand(())"), "the same images again"),
        (GIVES.format("(a.sub_(b)).abs().mean()"), "it changes the images"),
        (GIVES.format("(a - b).abs().mean() / (a - b).abs().min()"), "has no finite value"),
    ],
    ids=["range", "direction", "random", "in place", "infinite"],
)
def test_a_metric_that_is_wrong_is_found(value, property_, monkeypatch, tmp_path):
    broken(monkeypatch, tmp_path / "site", value)
    with pytest.raises(AssertionError, match=property_):
        testing.check_metric("bad")


def test_a_set_metric_of_another_package_is_one(monkeypatch, tmp_path, make_job):
    far = "Estimate(float(abs(a.features.mean(0, float) - b.features.mean(0, float)).mean()), a.n)"
    value = f"SetMetric('Gap', 'lower', 'Of the means.', 'patches', lambda a, b: {far})"
    value += "\nfrom kintsugi.pipeline.metrics.distances import Estimate"
    broken(monkeypatch, tmp_path / "site", value)
    testing.check_metric("bad")
    run = package.run(make_job(metrics=["bad"]), limit=3)
    assert run.results()["sets"]["bad"]["value"] > 0
    assert "Gap ↓" in Path(run.report).with_name("report.md").read_text()
    before = run.results()["sets"]["bad"]["warnings"]
    (tmp_path / "site" / "broken-2.0.dist-info").rename(tmp_path / "site" / "broken-2.1.dist-info")
    metadata = tmp_path / "site" / "broken-2.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("2.0", "2.1"))
    assert kintsugi("report", run.folder).exit_code == 0
    again = package.open_run(run.folder).results()["sets"]["bad"]
    (warning,) = set(again["warnings"]) - set(before)
    assert "metrics.bad: plug-in broken==2.0 → broken==2.1" in warning


def test_a_metric_that_is_built_in_is_one_file(make_job, monkeypatch, tmp_path):
    """As the one of CONTRIBUTING, beside those in `pipeline/metrics/images/`."""
    page = Path(__file__).parents[3] / "CONTRIBUTING.md"
    (code,) = (b.partition("```")[0] for b in page.read_text().split("```python\n") if "METRIC = " in b)
    assert code.count("\n") <= 40
    (tmp_path / "of_the_page.py").write_text(code)
    monkeypatch.setattr(images, "__path__", [*images.__path__, str(tmp_path)])
    found = images.find()
    assert set(found) == {*IMAGE, "of_the_page"}
    monkeypatch.setitem(REGISTRY.builtin, "of_the_page", found["of_the_page"])
    testing.check_metric("of_the_page")
    assert "of_the_page" in kintsugi("list", "metrics").output
    assert "of_the_page" in package.run(make_job(metrics=["of_the_page"]), limit=2).rows().column_names


def test_an_unknown_metric_is_told_with_those_of_others(mine):
    with pytest.raises(SpecError, match=r"no metric 'mse'; choose from .*largest_error, .*psnr"):
        registry.check(["mse"], 32, True, "truth")
