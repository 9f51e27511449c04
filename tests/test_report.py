"""The numbers: statistics against NumPy and SciPy, metrics against their definitions, HTML that escapes."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import SIZE, encode, picture, write_tar
from scipy import stats
from scipy.ndimage import gaussian_filter

from pipeline import score
from pipeline.aggregate import Mean, Summary
from pipeline.executors import Live, in_process
from pipeline.report import describe, write_report
from pipeline.run import open_or_plan


def report_of(job):
    run = open_or_plan(job)
    for _ in in_process(job, run.folder, run.outstanding(), Live()):
        pass
    html = write_report(run)
    return run, json.loads((html.parent / "metrics.json").read_text()), html.read_text()


def test_mean_and_interval_in_pieces_equal_scipys_on_the_whole():
    values = np.random.default_rng(0).normal(25, 3, 101)
    mean = Mean()
    for piece in np.split(values, [1, 2, 40, 97]):
        mean.add(piece)
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert mean.mean == pytest.approx(values.mean(), rel=1e-12)
    assert mean.deviation == pytest.approx(values.std(ddof=1), rel=1e-12)
    assert mean.interval() == pytest.approx((low, high), rel=1e-9)


def test_infinite_values_are_counted_and_left_out_of_the_mean():
    mean = Mean()
    mean.add(np.array([20.0, np.inf, 30.0]))
    assert (mean.mean, mean.n, mean.infinite) == (25.0, 2, 1)
    assert math.isnan(Mean(n=1, mean=3.0).interval()[0])


def test_a_mean_of_nothing_but_infinite_values_is_not_a_number(make_job):
    run = open_or_plan(make_job())
    summary = Summary(planned=1, units=1, means={"psnr": Mean(infinite=1)})
    assert describe(run, summary)["metrics"]["psnr"]["mean"] is None


def test_metrics_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    truth = torch.from_numpy(picture(3, 100)).permute(2, 0, 1)[None].float() / 127.5 - 1
    restored = truth + 0.1 * torch.from_numpy(rng.standard_normal(truth.shape, np.float32))
    values = score.score(["psnr", "ssim"], restored, truth)
    a, b = (((x.double() + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy() for x in (restored, truth))
    assert values["psnr"][0] == pytest.approx(-10 * np.log10(((a - b) ** 2).mean()), rel=1e-7)
    assert values["ssim"][0] == pytest.approx(ssim_of_wang(a, b), abs=1e-5)


def ssim_of_wang(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004 with the 11-pixel Gaussian window, borders mirrored."""

    def local_mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="mirror", truncate=3.5, axes=(0, 1))

    ma, mb = local_mean(a), local_mean(b)
    va, vb = local_mean(a * a) - ma**2, local_mean(b * b) - mb**2
    covariance = local_mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(index.mean())


def test_metrics_do_not_depend_on_the_batch():
    truth = torch.rand(3, 3, 200, 200) * 2 - 1
    restored = truth + 0.05 * torch.randn_like(truth)
    names = list(score.REGISTRY)
    together = score.score(names, restored, truth)
    for i in range(3):
        alone = score.score(names, restored[i : i + 1], truth[i : i + 1])
        assert {name: together[name][i] for name in names} == {name: alone[name][0] for name in names}


def test_ssim_in_float32_is_float64s_to_1e_5():
    from torchmetrics.functional.image import structural_similarity_index_measure

    truth = torch.from_numpy(picture(3, 100)).permute(2, 0, 1)[None].double() / 127.5 - 1
    restored = truth * 0.95
    value = score.score(["ssim"], restored, truth)["ssim"][0]
    exact = structural_similarity_index_measure((restored + 1) / 2, (truth + 1) / 2, data_range=1.0)
    assert value == pytest.approx(exact.item(), abs=1e-5)


def test_identical_images():
    x = torch.rand(1, 3, 200, 200) * 2 - 1
    values = score.score(list(score.REGISTRY), x, x)
    assert values == {"psnr": [math.inf], "ssim": [pytest.approx(1)], "ms_ssim": [pytest.approx(1)]}


def test_the_report_is_what_the_rows_say(make_job):
    run, metrics, html = report_of(make_job())
    rows = pq.read_table(run.folder / "report" / "rows.parquet")
    promised = "key shard status error seed seconds forwards vjps batch_size psnr ssim lpips residual"
    assert set(promised.split()) <= set(rows.column_names)
    psnr = rows["psnr"].to_numpy()
    low, high = stats.t.interval(0.95, 11, psnr.mean(), stats.sem(psnr))
    stated = metrics["metrics"]["psnr"]
    assert (stated["mean"], stated["low"], stated["high"]) == pytest.approx((psnr.mean(), low, high))
    assert metrics["samples"] == {"planned": 12, "done": 12, "ok": 12, "failed": 0}
    assert (metrics["cost"]["forwards"], metrics["cost"]["vjps"]) == (2, 2)
    assert sum(part["share"] for part in metrics["time"]["parts"].values()) == pytest.approx(1)
    assert f"{psnr.mean():.3f}" in html
    assert html.count("data:image/png;base64,") == 3 * 12
    for text in (metrics["config_hash"], metrics["provenance"]["prior_sha256"][0], torch.__version__[:4]):
        assert text in html


def test_a_partial_run_says_so(make_job):
    run = open_or_plan(make_job())
    commits = in_process(run.job, run.folder, run.outstanding(), Live())
    next(commits)
    html = write_report(run).read_text()
    assert "3 of 12 samples restored" in html
    assert "9 not done yet" in html


def test_keys_and_errors_are_escaped(make_job, tmp_path):
    key = '<img src=x onerror="alert(1)">'
    shard = write_tar(tmp_path / "s.tar", [(f"{key}.png", b"<script>"), ("fine.png", encode(picture(1)))])
    _, metrics, html = report_of(make_job(data={"shards": str(shard), "size": SIZE}))
    assert metrics["failures"]["first"][0]["key"] == key
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_the_report_needs_no_network(make_job):
    _, _, html = report_of(make_job())
    assert "http://" not in html
    assert "https://" not in html
    assert "<script" not in html
