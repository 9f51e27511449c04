"""Runs on Ray: the same rows as in process, and what becomes of a job whose actors die or do not start."""

import os
import sys
from pathlib import Path

import pytest
from kit.jobs import digests, execute, rows
from kit.shards import encode, picture

from kintsugi.errors import JobError
from kintsugi.jobs.files import load_job
from kintsugi.pipeline.execution import crew
from kintsugi.pipeline.execution.actors import RayWorker, on_ray
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.job import Job
from kintsugi.samplers.external import CONSENT


def test_two_actors_and_no_ray_give_the_same_rows(make_job, mine, tmp_path, ray_cluster):
    """With a network, with plug-ins that are installed, and with a mask and a noise level for each image."""
    masks = [{"name": "inpaint", "mask": {"draw": "random", "keep": [0.2, 0.8]}}, {"name": "interlaced"}]
    job = make_job(
        degradation={
            "operator": {"name": "compose", "operators": masks},
            "sigma": {"draw": "uniform", "low": 0.01, "high": 0.1},
        },
        sampler={"name": "replace", "steps": 2, "eta": 0.1},
        metrics=["psnr", "largest_error"],
        compute={"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1, "actors": 2},
    )
    here = execute(job)
    there = execute(job.model_copy(update={"output": str(tmp_path / "ray")}), on_ray, None)
    assert digests(here) == digests(there)
    assert {row["status"] for row in rows(there)} == {"ok"}
    assert len({(row["operator_0_mask"], row["sigma"]) for row in rows(there)}) == 12


def test_consent_to_commands_goes_to_the_actors_of_a_ray_that_was_started_without(
    make_job, monkeypatch, ray_cluster
):
    monkeypatch.setenv(CONSENT, "1")
    copy = "import shutil, sys; shutil.copytree(*sys.argv[1:], dirs_exist_ok=True)"
    command = [sys.executable, "-S", "-c", copy, "{measurements}", "{restored}"]
    there = execute(
        make_job(
            degradation={"operator": {"name": "denoise"}, "sigma": 0.02},
            sampler={"name": "external", "command": command},
            compute={"batch_size": 4, "unit_size": 12, "cpus_per_actor": 1, "actors": 1},
        ),
        on_ray,
        None,
    )
    assert {row["error"] for row in rows(there)} == {None}


def test_images_that_are_scored_have_the_same_rows(tmp_path, ray_cluster):
    for folder, change in (("restored", 40), ("truth", 0)):
        (tmp_path / folder).mkdir()
        for number in range(5):
            (tmp_path / folder / f"{number}.png").write_bytes(encode(picture(number) // 2 + change))
    data = {"kind": "restored", "shards": str(tmp_path / "restored"), "truth": str(tmp_path / "truth")}
    compute = {"unit_size": 2, "cpus_per_actor": 1, "actors": 1}
    values = {"data": data, "compute": compute, "metrics": ["psnr", "ssim", "swd"]}
    here, there = (Job.model_validate(values | {"output": str(tmp_path / name)}) for name in ("a", "b"))
    assert digests(execute(here)) == digests(execute(there, on_ray, None))


def test_a_unit_that_kills_its_workers_is_given_up_and_the_rest_done(station):
    class Deadly(RayWorker):
        def process(self, run, task):
            if task.unit.unit == "00001-0000000":
                os._exit(1)  # no exception, no goodbye
            return super().process(run, task)

    station.run_with(Deadly, "deadly", attempts=1)
    found = rows(Run.open(station.base / "deadly"))
    assert [row["key"] for row in found] == [f"image_{i:04d}" for i in range(12)]
    failed = [row for row in found if row["status"] == "failed"]
    assert [row["key"] for row in failed] == ["image_0006", "image_0007", "image_0008"]
    assert failed[0]["error"] == "the worker's process died"


def test_runs_share_actors_of_which_one_dies_at_the_beginning_of_the_next(station):
    class Mortal(RayWorker):
        def process(self, run, task):
            before = Path(run.folder).with_name("died")
            if run.folder.endswith("second") and not before.exists():
                before.touch()
                os._exit(1)
            return super().process(run, task)

    notes = station.run_with(Mortal, "first", "second", "third", actors=2)
    assert sum("attempt 1" in note for note in notes) == 1
    for name in ("first", "second", "third"):
        station.check(name)


def test_workers_that_cannot_start_end_the_job(station, monkeypatch):
    class Broken(RayWorker):
        def __init__(self, run, device):
            raise JobError("no weights at /nowhere")

    monkeypatch.setattr(crew, "pause", lambda attempt: 0.1)
    with pytest.raises(JobError, match=r"cannot start.*no weights at /nowhere"):
        station.run_with(Broken, "broken")


def test_a_later_run_whose_workers_cannot_start_blames_no_sample(station):
    class Unlicensed(RayWorker):
        def __init__(self, run, device):
            super().__init__(run, device)
            of = self.workplace.of

            def refuse(job, folder):
                if folder.name == "unlicensed":
                    raise RuntimeError("no licence")
                return of(job, folder)

            self.workplace.of = refuse

    runs = [open_or_plan(load_job(str(station.job(name)), [])) for name in ("licensed", "unlicensed")]
    parts = [Part(run, list(run.units())[:1]) for run in runs]
    with pytest.raises(JobError, match="unlicensed: its workers cannot start: RuntimeError: no licence"):
        list(on_ray(parts, Live(), station.address, Unlicensed))
    assert (station.commits("licensed"), station.commits("unlicensed")) == (1, 0)


def test_actors_without_room_do_not_hold_the_job_up(station):
    """Another job has one of the two cores: the actor that waits for it is not waited for."""
    import ray

    @ray.remote(num_cpus=1)
    class Other:
        def here(self):
            return True

    other = Other.remote()
    ray.get(other.here.remote())
    assert station.run("roomless", actors=2) == 0
    ray.kill(other)
    station.check("roomless")
