"""What `auto` is in a run: decided when it is begun, recorded, and the same for whoever continues it."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from kit.shards import SIZE

from kintsugi.errors import JobError
from kintsugi.pipeline.compute import Compute
from kintsugi.pipeline.execution import stage
from kintsugi.pipeline.execution.open import decided, open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import config_hash


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU, for those who ask; gives back what takes it out again."""

    def plug(there: bool, bf16: bool = True) -> None:
        device = "cuda" if there else "cpu"
        monkeypatch.setattr("kintsugi.pipeline.execution.open.default_device", lambda: device)
        monkeypatch.setattr("kintsugi.pipeline.compute.has_bf16", lambda device: bf16 and device == "cuda")

    return plug


@pytest.fixture
def job_of(make_job):
    return lambda **compute: make_job(compute={"batch_size": 2, "unit_size": 3} | compute)


def recorded(run: Run) -> dict:
    return yaml.safe_load((run.folder / "job.yaml").read_text())["compute"]


def test_on_a_cpu_a_run_is_the_one_it_was_before_there_was_auto(job_of, gpu):
    gpu(False)
    begun = open_or_plan(job_of(compile="auto"))
    assert (recorded(begun)["precision"], recorded(begun)["compile"]) == ("float32", None)
    stated = job_of(precision="float32")
    assert begun.config_hash == config_hash(stated) == config_hash(job_of())
    assert open_or_plan(stated).config_hash == begun.config_hash


def test_a_run_that_is_begun_on_a_gpu_stays_as_it_is_wherever_it_goes_on(job_of, gpu):
    gpu(True)
    begun = open_or_plan(job_of(compile="auto"))
    assert (recorded(begun)["precision"], recorded(begun)["compile"]) == ("bf16", "default")
    gpu(False)
    on_a_cpu = open_or_plan(job_of(compile="auto"))
    assert on_a_cpu.job == begun.job
    assert on_a_cpu.config_hash == begun.config_hash != config_hash(job_of())
    with pytest.raises(JobError, match=r"compute\.precision: 'bf16' → 'float32'"):
        open_or_plan(job_of(precision="float32", compile="auto"))


def test_a_run_of_before_goes_on_in_float32_on_a_gpu(job_of, gpu):
    begun = open_or_plan(job_of(precision="float32"))
    gpu(True)
    assert open_or_plan(job_of()).config_hash == begun.config_hash


@pytest.mark.parametrize(
    ("bf16", "compute", "precision"),
    [(True, {}, "bf16"), (False, {}, "float32"), (True, {"gpus_per_actor": 0}, "float32")]
    + [(True, {"precision": stated}, stated) for stated in ("float32", "fp16")],
)
def test_what_is_decided_is_what_the_run_computes_on(job_of, gpu, bf16, compute, precision):
    gpu(True, bf16)
    assert decided(job_of(**compute)).compute.precision == precision


def test_images_that_are_only_compared_are_so_on_any_machine(job_of, gpu):
    gpu(True)
    score = SimpleNamespace(compute=Compute(), is_score=True, model_copy=lambda update: update["compute"])
    assert decided(score).precision == "float32"


def test_a_prior_without_a_network_runs_as_it_is(make_job, monkeypatch):
    bare = SimpleNamespace(sha256="")
    monkeypatch.setattr(stage.priors, "load", lambda spec, device: bare)
    job = make_job(compute={"precision": "bf16"}, data={"shards": "x", "size": SIZE})
    assert stage.prior_of(job, torch.device("cpu")).prior is bare
