"""Runs with a prior of latents: counts, the bound, resuming, and what is refused before there is a run."""

import csv
import json

import diffusers
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from kit.jobs import digests, execute, kintsugi, rows
from kit.latents import make_kl, save_latent, seeded
from kit.shards import encode, picture, write_tar

from kintsugi import priors
from kintsugi.errors import JobError
from kintsugi.interface import run as run_job
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.job import Job

SIDE = 16
OF_AUTOENCODER = ("decodes", "encodes", "autoencoder_vjps")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    unet = seeded(
        diffusers.UNet2DModel,
        in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
    return save_latent(tmp_path_factory.mktemp("latent"), unet, make_kl(), scheduler)


@pytest.fixture
def job(folder, tmp_path):
    write_tar(tmp_path / "in.tar", [(f"{i}.png", encode(picture(i, SIDE))) for i in range(5)])
    return {
        "data": {"shards": str(tmp_path / "in.tar"), "size": SIDE},
        "degradation": {"operator": {"name": "inpaint", "mask": "random"}, "sigma": 0.05},
        "prior": {"name": "diffusers", "path": str(folder)},
        "sampler": {"name": "latino", "steps": 3},
        "metrics": ["psnr"],
        "compute": {"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }


COUNTS = {  # forwards, vjps, then of the autoencoder, with 3 steps
    "latino": (3, 0, 3, 3 + 2, 0),
    "flowdps": (3, 0, 3 * 3 + 1, 1, 3 * 3),
    "psld": (3, 3, 3 + 1, 1 + 3, 2 * 3),
    "dps": (3, 3, 2 * 3 + 1, 1, 3),
}


@pytest.mark.parametrize("name", COUNTS)
def test_rows_say_what_network_and_autoencoder_were_asked_for(job, name):
    run = execute(Job.model_validate(job | {"sampler": {"name": name, "steps": 3}}))
    stored = pq.read_table(sorted((run.folder / "data").iterdir())[0]).to_pylist()
    for row in stored:
        assert tuple(row[of] for of in ("forwards", "vjps", *OF_AUTOENCODER)) == COUNTS[name]


def test_the_bound_is_the_truth_encoded_and_decoded(job, folder):
    run = run_job(job)
    autoencoder = priors.load(job["prior"]).autoencoder
    for row in run.rows().to_pylist():
        truth = torch.from_numpy(picture(int(row["key"]), SIDE)).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            again = autoencoder.decode(autoencoder.encode(truth)).clamp(-1, 1)
        squared = ((again - truth) / 2).square().mean()
        assert row["round_trip"] == pytest.approx(-10 * squared.log10().item(), abs=1e-3)
    results = run.results()
    assert results["cost"] == {"forwards": 3, "vjps": 0, "decodes": 3, "encodes": 5, "autoencoder_vjps": 0}
    assert results["metrics"]["round_trip"]["n"] == 5
    page = run.report.read_text()
    assert "3 passes by the decoder and 5 passes by the encoder" in page
    assert "autoencoder alone, PSNR" in page


def test_an_interrupted_run_ends_with_the_same_bytes_and_a_batch_changes_no_row(job, tmp_path):
    whole = execute(Job.model_validate(job))
    before = digests(whole)
    last = sorted(before)[-1]
    (whole.folder / "data" / last).unlink()
    (whole.folder / "commits" / last.replace(".parquet", ".json")).unlink()
    assert digests(execute(Job.model_validate(job))) == before
    single = job | {"output": str(tmp_path / "single"), "compute": {"batch_size": 1, "cpus_per_actor": 1}}
    for one, other in zip(rows(whole), rows(execute(Job.model_validate(single))), strict=True):
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-3)


def test_images_of_any_size_go_through_tiles_of_latents(job, tmp_path):
    """Measurements larger than `data.size`: the network sees tiles, and the result agrees with y."""
    write_tar(tmp_path / "in.tar", [("a.png", encode(picture(0, 40))), ("b.png", encode(picture(1, 21)))])
    data = {"kind": "measurements", "shards": str(tmp_path / "in.tar"), "size": SIDE}
    change = {
        "data": data,
        "degradation": {"operator": {"name": "average_pool", "factor": 2}},
        "metrics": [],
        "restoration": {"overlap": 8},
    }
    for row in rows(execute(Job.model_validate(job | change))):
        assert row["status"] == "ok", row["error"]
        assert row["residual"] < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampler": {"name": "conjugate"}}, r"^sampler\.name: Conjugate works on pixels, .* latino"),
        (
            {"prior": {"name": "natural"}},
            r"^sampler\.name: Latino is for a prior of latents, .* covariance",
        ),
        ({"metrics": ["psnr", "prior_error"]}, r"^metrics: prior_error is for a prior of pixels"),
        ({"data": {"size": SIDE, "channels": 1}}, r"^prior: its autoencoder is for images of 3 channels"),
        ({"data": {"size": 18}}, r"^prior: .* divisible by 4"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_before_there_is_a_run(job, tmp_path, change, message):
    if "data" in change:
        change = {"data": job["data"] | change["data"]}
    with pytest.raises(JobError, match=message):
        run_job(job | change)
    assert not (tmp_path / "run" / "job.yaml").exists()


def test_calibrate_measures_decoded_predictions(job, tmp_path):
    """And `latino` takes the table, of this prior alone."""
    write_tar(tmp_path / "in.tar", [(f"{i}.png", encode(picture(i, SIDE))) for i in range(20)])
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job | {"data": job["data"] | {"subset": {"fraction": 0.5}}}))
    result = kintsugi("calibrate", file, "--images", "8", "--out", tmp_path / "errors")
    assert result.exit_code == 0, result.output
    spec = f"sampler={{name: latino, steps: 2, covariance: {tmp_path}/errors/errors.json}}"
    run = execute(load_job(str(file), [spec, "data.subset=null"]))
    assert all(row["status"] == "ok" for row in rows(run))


def test_a_comparison_counts_the_autoencoder_beside_the_network(job, tmp_path):
    for name, steps in (("latino", 2), ("dps", 3)):
        run_job(job | {"sampler": {"name": name, "steps": steps}, "output": str(tmp_path / name)})
    out = tmp_path / "comparison"
    result = kintsugi("compare", tmp_path / "latino", tmp_path / "dps", "--out", out)
    assert result.exit_code == 0, result.output
    table = list(csv.DictReader((out / "runs.csv").read_text().splitlines()))
    counts = {one["run"]: [one[name] for name in ("forwards", *OF_AUTOENCODER)] for one in table}
    assert counts["latino"] == ["2", "2", "3", "0"]
    assert counts["dps"] == ["3", "7", "1", "3"]
    assert "what an autoencoder does is not among network evaluations" in (out / "compare.html").read_text()
    stated = json.loads((tmp_path / "dps" / "report" / "metrics.json").read_text())["protocol"]
    assert stated["start"]["sigma"] is None, "it is where the prior's path ends"
    assert stated["evaluations"] == {
        "forwards": 3, "vjps": 3, "total": 6, "decodes": 7, "encodes": 1, "autoencoder_vjps": 3
    }  # fmt: skip


def test_coefficients_of_extrapolation_are_not_learned_on_latents(job, tmp_path):
    write_tar(tmp_path / "in.tar", [(f"{i}.png", encode(picture(i, SIDE))) for i in range(20)])
    file = tmp_path / "job.yaml"
    data = job["data"] | {"subset": {"fraction": 0.5}}
    file.write_text(yaml.safe_dump(job | {"data": data, "sampler": {"name": "dps", "steps": 2}}))
    with pytest.raises(JobError, match=r"^--extrapolate: .* the prior is of latents"):
        kintsugi("sweep", file, "--extrapolate", "--tune", "4", "--out", tmp_path / "sweep")
