"""Several samples of images with their truth: what is measured, and that it is right where that is known."""

import io
import json

import numpy as np
import pytest
import torch
from kit.jobs import digests, execute, kintsugi, write_job
from kit.posterior import SHAPE, WHITE, Gaussian, Spec, natural_texture, white_noise
from kit.shards import picture
from kit.shards import samples as given
from PIL import Image
from pydantic import ValidationError
from scipy.stats import t

from kintsugi import operators, samplers
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.analysis.rows import committed, flat_schema
from kintsugi.pipeline.execution.commit import schema_of
from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.execution.samples import SHOWN, Samples
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.verify import Finding, verify
from kintsugi.pipeline.metrics.registry import CALIBRATION, COVERAGE, samples_column

EXACT = {**WHITE, "steps": 50, "order": 3}
CHURN = {**WHITE, "steps": 400, "churn": 20}
SIGMA_Y = 0.2


@pytest.fixture
def calibrate(make_job):
    """By column, the values of images of a Gaussian prior, each with samples given its own measurement."""

    def of(spec: Spec, gaussian: Gaussian, count: int, images: int = 250) -> dict[str, np.ndarray]:
        operator = operators.build({"name": "bicubic", "factor": 2}, SHAPE, dtype=torch.float64)
        generator = torch.Generator().manual_seed(7)
        truth = gaussian.draw(images, generator)
        y = operator.forward(truth)
        y = y + SIGMA_Y * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        noisy = {"operator": {"name": "bicubic", "factor": 2}, "sigma": SIGMA_Y / 2}
        job = make_job(degradation=noisy, restoration={"samples_per_image": count})
        samples = Samples(job, [str(i) for i in range(images)], y)
        problem = Prepared(operator, samplers.build(spec), gaussian.prior, SIGMA_Y, SIGMA_Y)
        while samples.wanted:
            samples.draw(problem)
        spread = samples.running.deviation.square().mean((1, 2, 3)).sqrt()
        found = {name: np.array(values) for name, values in samples.calibration(truth).items()}
        return found | {"spread": spread.numpy()}

    return of


def errors_of_coverage(found: dict[str, np.ndarray]) -> dict[str, float]:
    """How far coverage is from nominal, in standard errors over the images: their pixels are correlated."""
    return {
        name: (found[name].mean() - share) / (found[name].std(ddof=1) / len(found[name]) ** 0.5)
        for name, share in COVERAGE.items()
    }


def is_nominal(found: dict[str, np.ndarray], count: int) -> bool:
    assert max(map(abs, errors_of_coverage(found).values())) < 3.5
    assert found["z_mean"].mean() == pytest.approx(0, abs=0.025)
    assert found["z_rms"].mean() == pytest.approx(1, abs=0.025)
    expected = np.mean(found["spread"] ** 2) * (1 + 1 / count)
    return np.mean(found["error_rms"] ** 2) / expected == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("count", [4, 8])
def test_samples_of_a_white_prior_have_nominal_coverage(calibrate, count):
    """There the constant schedule draws from the posterior without noise between its steps, too."""
    assert is_nominal(calibrate(EXACT, white_noise(), count), count)


@pytest.mark.slow
def test_samples_of_a_correlated_prior_have_nominal_coverage(calibrate):
    """The stochastic sampler with the constant schedule: four samples of 150 textures."""
    assert is_nominal(calibrate(CHURN, natural_texture(), 4, images=150), 4)


def test_a_sampler_that_is_too_sure_is_found(calibrate):
    """ΠGDM's strength narrows what the samples leave open."""
    found = calibrate({"name": "conjugate", "w": 15, "steps": 20, "start": 1.0}, natural_texture(), 4)
    assert max(errors_of_coverage(found).values()) < -5
    assert found["z_rms"].mean() > 1.05
    assert np.mean(found["error_rms"] ** 2) > 1.1 * np.mean(found["spread"] ** 2) * 1.25


def read(run):
    columns = flat_schema(schema_of(run.job)).names
    names = [*columns, "restored", "samples", "deviation", "truth"]
    return [row for table, _ in committed(run, names) for row in table.to_pylist()]


def decoded(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)


@pytest.mark.slow
def test_rows_have_the_mean_s_metrics_and_those_of_each_sample(make_job, tmp_path):
    """The first sample is that of a job with one; of the others the stage alone, without rows, tells."""
    single = read(execute(make_job(images="all")))
    run = execute(make_job(images="all", restoration={"samples_per_image": 4}, output=str(tmp_path / "k")))
    found = read(run)
    assert not [found for found in verify(run) if isinstance(found, Finding)]
    for row, one in zip(found, single, strict=True):
        assert row["samples"][0] == one["restored"]
        assert len(row["samples"]) == SHOWN, "pictures do not grow with the samples"
        assert row["forwards"] == 4 * one["forwards"]
        truth, mean = decoded(row["truth"]), decoded(row["restored"])
        assert row["psnr"] == pytest.approx(-10 * np.log10(((truth - mean) ** 2).mean() / 255**2), abs=0.05)
        assert row["psnr"] > row["psnr_samples"], "a mean is nearer to the truth than what it is of"
        of_three = [-10 * np.log10(((truth - decoded(s)) ** 2).mean() / 255**2) for s in row["samples"]]
        assert min(of_three) - 1 < row["psnr_samples"] < max(of_three) + 1
        of_picture = np.sqrt(((truth - mean) ** 2).mean()) / 127.5
        assert row["error_rms"] > of_picture - 0.005, "what is beyond white is cut in the picture"
        assert 0 <= row["coverage_50"] <= row["coverage_90"] <= row["coverage_95"] <= 1
        deviation = np.load(io.BytesIO(row["deviation"])).astype(float)
        assert row["spread"] == pytest.approx(np.sqrt((deviation**2).mean()), rel=1e-3)
        assert set(one).isdisjoint({*CALIBRATION, "psnr_samples"})
        assert one["spread"] is None


def test_what_a_row_says_of_its_samples_is_computed_from_all_of_them(make_job):
    """From the samples as the scorer sees them, by NumPy and the t-distribution of SciPy."""
    image = picture(3)
    stage = Stage(make_job(restoration={"samples_per_image": 5}), "cpu")
    seen, scores, scorer = [], [], stage.scorer

    class Spy:
        needs_prior = False

        def __call__(self, restored, truth, *more):
            seen.append(restored[0].double().numpy())
            values = scorer(restored, truth, *more)
            scores.append({name: of[0] for name, of in values.items()})
            return values

    stage.scorer = Spy()
    (found,) = stage.run(given(["a"], [image]))
    samples, mean = np.stack(seen[:5]), seen[5]
    truth = image.transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(mean, samples.mean(0), atol=1e-5)
    for name in ("psnr", "ssim"):
        each = [values[name] for values in scores[:5]]
        assert found.metrics[samples_column(name)] == pytest.approx(np.mean(each))
        assert found.metrics[name] == scores[5][name], "the row's metric is that of the mean"
        assert max(each) not in found.metrics.values(), "the best of them is nowhere"
    deviation = samples.std(0, ddof=1)
    assert found.several.spread == pytest.approx(np.sqrt((deviation**2).mean()), rel=1e-5)
    assert found.metrics["error_rms"] == pytest.approx(np.sqrt(((truth - mean) ** 2).mean()), rel=1e-5)
    for name, share in COVERAGE.items():
        low, high = t.interval(share, 4, samples.mean(0), deviation * np.sqrt(1.2))
        assert found.metrics[name] == pytest.approx(((low <= truth) & (truth <= high)).mean(), abs=2e-3)
    assert len(found.several.samples) == SHOWN


def test_an_image_alone_has_the_values_that_it_has_in_a_batch(make_job):
    job = make_job(restoration={"samples_per_image": 3}, compute={"batch_size": 4, "cpus_per_actor": 1})
    keys, images = ["a", "b", "c"], [picture(i) for i in range(3)]
    together = Stage(job, "cpu").run(given(keys, images))
    for key, image, one in zip(keys, images, together, strict=True):
        (alone,) = Stage(job, "cpu").run(given([key], [image]))
        for name in (*CALIBRATION, "psnr_samples", "ssim_samples"):
            assert one.metrics[name] == pytest.approx(alone.metrics[name], abs=2e-3), name
        assert one.several.spread == pytest.approx(alone.several.spread, rel=1e-4)


@pytest.mark.slow
def test_resuming_gives_the_same_bytes(make_job):
    job = make_job(restoration={"samples_per_image": 2})
    run = execute(job)
    before = digests(run)
    next((run.folder / "commits").iterdir()).unlink()
    assert digests(execute(job)) == before


def test_pixels_that_the_measurement_fixes_do_not_count(make_job):
    """Without noise the known half is exact in all samples: it says nothing of what they leave open."""
    job = make_job(
        degradation={"operator": {"name": "inpaint", "mask": "half"}},
        sampler={"name": "conjugate", "steps": 3, "project": True},
        restoration={"samples_per_image": 4},
    )
    (found,) = Stage(job, "cpu").run(given(["a"], [picture(5)]))
    truth = torch.from_numpy(picture(5)).permute(2, 0, 1)[None].float() / 127.5 - 1
    deviation = torch.from_numpy(found.several.deviation)[None].double()
    open_ = (deviation[0] > 1e-3).double().mean().item()
    assert 0.4 < open_ < 0.6
    assert truth.shape == deviation.shape
    everything = 1 - open_ + open_ * found.metrics["coverage_50"]
    assert found.metrics["coverage_50"] < everything - 0.2


def test_other_settings_of_restorations_are_for_measurements(make_job):
    for other in ({"format": "jpeg"}, {"overlap": 3}, {"format": "png16", "samples_per_image": 2}):
        with pytest.raises(
            ValidationError, match=r"restoration: is for data\.kind=measurements; leave it out"
        ):
            make_job(restoration=other)


@pytest.mark.slow
def test_the_report_states_the_calibration_and_no_best_sample(make_job, tmp_path):
    job = make_job(restoration={"samples_per_image": 4})
    write_job(tmp_path / "job.yaml", job)
    result = kintsugi("run", tmp_path / "job.yaml", "--address", "none")
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run" / "report"
    html, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["calibration"]
    rows = read(execute(job))
    errors, spreads = (np.array([row[name] for row in rows]) for name in ("error_rms", "spread"))
    expected = np.sqrt((errors**2).mean() / (spreads**2).mean() / 1.25)
    assert found["ratio"]["value"] == pytest.approx(expected)
    assert found["ratio"]["low"] < expected < found["ratio"]["high"]
    assert sum(group["n"] for group in found["groups"]) == 12
    assert [group["spread"] for group in found["groups"]] == sorted(g["spread"] for g in found["groups"])
    for words in ("coverage of the 90 % interval", "RMS z-score", "error / spread √(1 + 1/K)"):
        assert words in html
    assert "coverage of the 90 % interval" in text
    assert "PSNR of each sample, dB ↑" in html
    assert html.count('aria-label="observed against nominal coverage"') == 1
    assert html.count('aria-label="error against spread"') == 1
    assert 'alt="image_000: sample 3"' in html


def test_a_run_with_one_sample_says_nothing_of_it(finished):
    html = write_report(finished).read_text()
    assert "Calibration" not in html
    assert "calibration" not in json.loads((finished.folder / "report" / "metrics.json").read_text())
