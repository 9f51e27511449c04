"""`kintsugi sweep --extrapolate`: from a job to a job with coefficients, on disjoint images."""

from pathlib import Path

import pytest
import yaml
from kit.jobs import execute, kintsugi, rows
from kit.shards import encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import config_hash
from kintsugi.samplers import learning

SIDE = 16


@pytest.fixture(scope="module")
def job_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extrapolation")
    members = [(f"{i:02d}.png", encode(picture(i, SIDE))) for i in range(12)]
    write_tar(folder / "in.tar", [*members, ("bad.png", b"no image")])
    job = {
        "data": {"shards": f"{folder}/in.tar", "size": SIDE, "subset": {"fraction": 0.6}},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}},
        "sampler": {"name": "ddnm", "steps": 2, "start": 0.5},
        "metrics": ["psnr"],
        "compute": {"batch_size": 3, "unit_size": 6, "cpus_per_actor": 1},
        "output": str(folder / "run"),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def rows_of(run: Run) -> dict[str, float]:
    return {row["key"]: row["psnr"] for row in rows(run) if row["status"] == "ok"}


def sweep(job_file: Path, out: Path, *more: str):
    return kintsugi(
        "sweep", job_file, "--extrapolate", "--tune", "9", "--address", "none", "--out", out, *more
    )


def test_without_trials_the_job_gets_its_coefficients(job_file, tmp_path):
    result = sweep(job_file, tmp_path / "out", "--texture", "0")
    assert result.exit_code == 0, result.output
    assert "extrapolation of 2 steps, learned from" in result.output
    best, given = load_job(str(tmp_path / "out" / "best.yaml"), []), load_job(str(job_file), [])
    found = best.sampler["extrapolate"]
    assert [[len(part) for part in row] for row in found] == [[1, 1], [2, 2]]
    assert best.data.subset.part == "evaluate"
    assert config_hash(best) != config_hash(given)
    assert "--texture 0` from" in (tmp_path / "out" / "best.yaml").read_text()
    first = (tmp_path / "out" / "best.yaml").read_bytes()
    assert sweep(job_file, tmp_path / "out", "--texture", "0").exit_code == 0
    assert (tmp_path / "out" / "best.yaml").read_bytes() == first
    learned, plain = (
        rows_of(execute(best.model_copy(update={"output": str(tmp_path / name), "sampler": sampler})))
        for name, sampler in (("learned", best.sampler), ("plain", given.sampler))
    )
    assert learned.keys() == plain.keys()
    assert sum(learned.values()) > sum(plain.values()), "of images that it was not learned from"


def test_with_trials_the_chosen_settings_are_learned_for(job_file, tmp_path):
    result = sweep(job_file, tmp_path / "out", "--vary", "sampler.eta=0.2,0.9")
    assert result.exit_code in (0, 2), result.output
    best = load_job(str(tmp_path / "out" / "best.yaml"), [])
    assert best.sampler["eta"] in (0.2, 0.9)
    assert len(best.sampler["extrapolate"]) == 2
    assert (tmp_path / "out" / "sweep.csv").exists()


def test_learning_can_be_interrupted(job_file, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learning, "best", stop)
    assert sweep(job_file, tmp_path / "out").exit_code == 130
    assert not (tmp_path / "out" / "best.yaml").exists()
    monkeypatch.undo()
    assert sweep(job_file, tmp_path / "out").exit_code == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "sampler={name: conjugate}"), "--extrapolate: 'conjugate' does not go.*ddnm"),
        (("--set", "sampler.steps=51"), "more than 50"),
        (("--vary", "sampler.extrapolate=0,0.3"), "--vary sampler.extrapolate: is what --extrapolate learns"),
        (("--vary", "sampler={name: ddnm, steps: 2},{name: pigdm}"), "'pigdm' does not go"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_runs(job_file, tmp_path, more, message):
    with pytest.raises(JobError, match=message):
        sweep(job_file, tmp_path / "out", *more)
    assert not (tmp_path / "out").exists()


def test_nothing_to_try_is_said(job_file):
    with pytest.raises(JobError, match=r"--vary: missing.*--extrapolate"):
        kintsugi("sweep", job_file)
