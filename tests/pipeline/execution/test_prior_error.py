"""The prior's error of restored images: measured where the prior is, and its network forwards told apart."""

from pathlib import Path

import numpy as np
import pytest
import torch

import kintsugi
from kintsugi import priors
from kintsugi.samplers.inversion import EVALUATIONS, there_and_back


def test_a_row_has_the_error_of_its_restored_image(make_job):
    run = kintsugi.run(make_job(metrics=["psnr", "prior_error"], images="all"), limit=2)
    prior = priors.load({"name": "natural"})
    for row in run.rows().to_pylist():
        picture = np.array(run.picture(row["key"], "restored"), np.float32)
        image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1
        expected = (there_and_back(prior, image).image.clamp(-1, 1) - image).abs().mean().item() / 2
        assert row["prior_error"] == pytest.approx(expected, abs=3e-4)
        assert row["prior_error"] > 2e-3
        assert row["prior_error_pinv"] is row["prior_error_lmmse"] is None
        assert row["psnr_pinv"] is not None
        assert row["forwards"] == 1, "the sampler's alone"
    results = run.results()
    assert results["metrics"]["prior_error"]["n"] == 2
    assert results["cost"] == {"forwards": 1, "vjps": 1, "measuring": EVALUATIONS}
    said = f"{EVALUATIONS} evaluations more by which it is measured"
    for page in (Path(run.report), Path(run.report).with_name("report.md")):
        assert said in page.read_text()


def test_each_of_several_samples_has_it_and_no_batch_changes_it(make_job, tmp_path):
    fields = {"metrics": ["prior_error"], "restoration": {"samples_per_image": 2}}
    jobs = [
        make_job(
            **fields, compute={"batch_size": size, "cpus_per_actor": 1}, output=str(tmp_path / f"{size}")
        )
        for size in (1, 3)
    ]
    alone, together = (kintsugi.run(job, limit=3).rows().to_pydict() for job in jobs)
    assert jobs[0].measuring == 3 * EVALUATIONS
    for name in ("prior_error", "prior_error_samples"):
        assert alone[name] == pytest.approx(together[name], abs=1e-6)
    assert alone["prior_error"] != pytest.approx(alone["prior_error_samples"], abs=1e-5)


def test_a_job_that_measures_nothing_by_the_prior_says_nothing_of_it(make_job):
    assert make_job(metrics=["psnr", "noise"]).measuring == 0


def test_images_without_their_prior_are_refused_it(tmp_path):
    with pytest.raises(ValueError, match=r"metrics: prior_error asks the job's prior, .* leave it out"):
        kintsugi.pipeline.job.Job.model_validate(
            {
                "data": {"kind": "restored", "shards": "a", "truth": "b"},
                "metrics": ["prior_error"],
                "output": str(tmp_path),
            }
        )
