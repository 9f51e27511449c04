"""Runs: every key one row, the same rows however the job was executed, resumption, refusal."""

import hashlib
import io
import json
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from kit.jobs import digests, execute, rows
from kit.samplers import BY_NETWORK, FEW, OF_LATENTS
from kit.shards import SIZE, encode, picture, samples, write_tar
from PIL import Image

from kintsugi import priors
from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.rows import committed
from kintsugi.pipeline.data import convert
from kintsugi.pipeline.execution import ledger, worker
from kintsugi.pipeline.execution import stage as restore
from kintsugi.pipeline.execution.cluster import actor_size, capacity
from kintsugi.pipeline.execution.commit import ROWS, read_commit, read_rows
from kintsugi.pipeline.execution.degrade import add_noise
from kintsugi.pipeline.execution.directory import commit_file, data_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.memory import largest_batch
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.job import config_hash
from kintsugi.pipeline.parts import Degradation
from kintsugi.priors.natural import NaturalPrior
from kintsugi.priors.natural_latent import NaturalLatentPrior
from kintsugi.samplers import KeyedNoise


def test_every_key_ends_as_exactly_one_row(finished):
    found = rows(finished)
    assert [row["key"] for row in found] == [f"image_{i:03d}" for i in range(12)]
    assert {row["status"] for row in found} == {"ok"}
    assert all(row["psnr"] > 13 and row["forwards"] == row["vjps"] == 1 for row in found)
    assert [row["label"] for row in found] == list(range(12))


def test_the_row_says_what_was_done(make_job):
    """Pixels and residual of a row equal those of the stage called directly."""
    job = make_job(compute={"batch_size": 1, "cpus_per_actor": 1})
    row = rows(execute(job))[0]
    (direct,) = Stage(job, "cpu").run(samples(["image_000"], [picture(0)]))
    restored = np.asarray(Image.open(io.BytesIO(row["restored"])))
    np.testing.assert_array_equal(restored, direct.restored)
    assert row["residual"] == direct.residual
    mse = np.mean((restored / 255.0 - picture(0) / 255.0) ** 2)
    assert row["psnr"] == pytest.approx(-10 * np.log10(mse), abs=0.02)  # the row's is not rounded to 8 bits


@pytest.mark.slow
def test_a_second_execution_writes_the_same_bytes(make_job, tmp_path):
    first, second = (execute(make_job(output=str(tmp_path / name))) for name in ("a", "b"))
    assert digests(first) == digests(second)


@pytest.mark.slow
def test_batch_size_changes_no_result(make_job, tmp_path):
    alone, together = (
        rows(
            execute(
                make_job(
                    output=str(tmp_path / str(batch)),
                    compute={"batch_size": batch, "unit_size": 4, "cpus_per_actor": 1},
                )
            )
        )
        for batch in (1, 4)
    )
    for one, many in zip(alone, together, strict=True):
        assert one["psnr"] == pytest.approx(many["psnr"], abs=1e-3)


def test_resuming_redoes_only_what_is_missing(make_job, finished):
    before = digests(finished)
    units = sorted((finished.folder / "commits").iterdir())
    kept = units[0].stat().st_mtime_ns
    units[1].unlink()  # no record: not done
    units[2].write_text(units[2].read_text()[:50])  # a torn record is no record
    victim = finished.folder / "data" / units[3].with_suffix(".parquet").name
    victim.unlink()  # a record without its data is no record
    again = open_or_plan(make_job())
    assert [u.unit for u in again.outstanding()] == [p.stem for p in units[1:4]]
    execute(make_job())
    assert digests(finished) == before
    assert units[0].stat().st_mtime_ns == kept
    assert not list(open_or_plan(make_job()).outstanding())


def test_a_data_file_that_was_changed_is_not_reported(finished):
    file = next((finished.folder / "data").iterdir())
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(JobError, match="not the file that was committed"):
        rows(finished)


def test_a_changed_job_is_refused_with_the_fields(make_job, finished):
    changed = make_job(sampler={"name": "conjugate", "steps": 3, "w": 15}, seed=7)
    with pytest.raises(JobError, match=r"sampler.steps: 1 → 3\n  seed: 0 → 7"):
        open_or_plan(changed)


def test_the_same_job_written_otherwise_is_the_same_job(make_job, finished):
    same = make_job(sampler={"name": "conjugate", "steps": 1, "w": 15.0, "start": None})
    assert config_hash(same) == config_hash(finished.job)
    assert not list(open_or_plan(same).outstanding())


@pytest.mark.parametrize(
    "pattern", ["in/*.tar", "in/{0..1}.tar", "./in/../in/0.tar", "{in/0,in/1}.tar", "in"]
)
def test_a_job_with_relative_shards_continues_from_anywhere(make_job, tmp_path, monkeypatch, pattern):
    """By its file in the run, and as it was given, with relative or absolute shards."""
    start, elsewhere = tmp_path / "set [1]", tmp_path / "elsewhere" / "x"
    elsewhere.mkdir(parents=True)
    for i in range(2):
        write_tar(start / "in" / f"{i}.tar", [(f"{i}.png", encode(picture(i)))])
        (start / "in" / f"{i}.png").write_bytes(encode(picture(i)))
    monkeypatch.chdir(start)
    job = make_job(data={"shards": pattern, "size": SIZE})
    run = execute(job)
    again = open_or_plan(job)
    monkeypatch.chdir(elsewhere)
    recorded = Run.open(run.folder)
    up = [f"{here}/{pattern}" for here in (start, "../../set [1]") if not pattern.startswith("{")]
    others = [make_job(data={"shards": shards, "size": SIZE}) for shards in up]
    for other in (again, recorded, *map(open_or_plan, (recorded.job, *others))):
        assert other.config_hash == run.config_hash
        assert not list(other.outstanding())
    with pytest.raises(JobError, match=r"another job|no such file"):
        open_or_plan(job)


def test_a_run_that_was_begun_with_relative_shards_in_its_file_continues(make_job, tmp_path, monkeypatch):
    """Earlier versions wrote them so, and commit records name the configuration by them."""
    write_tar(tmp_path / "in" / "a.tar", [("a.png", encode(picture(0)))])
    monkeypatch.chdir(tmp_path)
    job = make_job(data={"shards": "in/*.tar", "size": SIZE})
    with monkeypatch.context() as earlier:
        earlier.setattr("kintsugi.pipeline.execution.open.from_root", lambda patterns: patterns)
        execute(job)
    for shards in ("in/*.tar", f"{tmp_path}/in/*.tar"):
        run = open_or_plan(make_job(data={"shards": shards, "size": SIZE}))
        assert run.config_hash == config_hash(job)
        assert not list(run.outstanding())


def test_shards_that_joined_a_glob_are_not_ignored(make_job, tmp_path):
    for name in ("a", "b"):
        shard = write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", encode(picture(0)))])
        if name == "a":
            job = make_job(data={"shards": f"{tmp_path}/*.tar", "size": SIZE})
            execute(job)
    with pytest.raises(JobError, match=rf"planned with other shards.*\n  {shard}"):
        open_or_plan(job)


def test_an_output_that_cannot_be_written_is_refused_at_once(make_job, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JobError, match="output: cannot write"):
        open_or_plan(make_job(output=str(tmp_path / "file" / "run")))


def test_actors_may_change_between_executions(make_job, finished):
    more = make_job(compute={"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1, "actors": 7})
    assert open_or_plan(more).folder == finished.folder


def test_a_shard_that_changed_is_refused(make_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(picture(0)))])
    job = make_job(data={"shards": str(shard), "size": SIZE})
    execute(job)
    write_tar(shard, [("a.png", encode(picture(0))), ("b.png", encode(picture(1, 64)))])
    with pytest.raises(JobError, match="changed since the plan"):
        open_or_plan(job)


def test_failed_samples_are_rows_and_the_rest_is_done(make_job, tmp_path):
    contents = [encode(picture(0)), b"nonsense", encode(picture(2, 40)), encode(picture(3))]
    shard = write_tar(tmp_path / "mixed.tar", [(f"{i}.png", c) for i, c in enumerate(contents)])
    found = rows(execute(make_job(data={"shards": str(shard), "size": SIZE})))
    assert [row["status"] for row in found] == ["ok", "failed", "failed", "ok"]
    assert found[1]["error"].startswith("UnidentifiedImageError: cannot identify image file: none of PNG, ")
    assert "data.fit=resize_crop" in found[2]["error"]
    assert found[1]["psnr"] is None


@pytest.mark.slow
def test_a_sample_that_breaks_the_sampler_fails_alone(make_job, monkeypatch):
    """A batch that raises is done again one by one."""
    original = Stage.in_batches

    def run(self, samples, work):
        if "image_001" in [sample.key for sample in samples]:
            raise RuntimeError("poison")
        return original(self, samples, work)

    monkeypatch.setattr(Stage, "in_batches", run)
    found = rows(execute(make_job()))
    assert [row["key"] for row in found if row["status"] == "failed"] == ["image_001"]
    assert next(r for r in found if r["status"] == "failed")["error"] == "RuntimeError: poison"


@pytest.mark.slow
def test_a_result_that_is_not_finite_is_a_failed_row(make_job):
    job = make_job(sampler={"name": "conjugate", "steps": 2, "w": 0, "lam": 1e30})
    found = rows(execute(job))
    assert {row["status"] for row in found} == {"failed"}
    assert found[0]["error"].startswith("NotFinite")


def with_memory_for(monkeypatch, images, *, checkpointed=None):
    """Inject: batches of more than `images` run out of memory, or of `checkpointed` with recomputation."""
    original = NaturalPrior.__call__

    def call(self, x, t):
        recomputes = self.network.unet.is_gradient_checkpointing
        if len(x) > (checkpointed if recomputes and checkpointed is not None else images):
            raise torch.OutOfMemoryError("injected")
        return original(self, x, t)

    monkeypatch.setattr(NaturalPrior, "__call__", call)


def restore_pictures(stage, count=4):
    return stage.run(samples([f"image_{i:03d}" for i in range(count)], map(picture, range(count))))


def test_out_of_device_memory_halves_the_batch_and_remembers(make_job, monkeypatch):
    with_memory_for(monkeypatch, 1)
    stage = Stage(make_job(compute={"batch_size": 4, "cpus_per_actor": 1}), "cpu")
    assert [r.batch_size for r in restore_pictures(stage)] == [1] * 4
    assert stage.batch_size == 1
    assert stage.notes == [f"out of memory: batches of {n}, not compiled from now on" for n in (2, 1)]


LACKS = {
    "python": lambda: bytearray(1 << 50),
    "numpy": lambda: np.empty(1 << 50, np.uint8),
    "torch": lambda: torch.empty(1 << 50, dtype=torch.uint8),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "kind"),
    [("network", "python"), ("network", "torch"), ("unit", "torch"), ("decoding", "numpy")],
)
def test_memory_of_the_machine_that_is_lacking_for_a_while_is_waited_for(make_job, monkeypatch, place, kind):
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    left = iter(range({"network": 7, "unit": 2, "decoding": 3}[place]))

    def lacking(original):
        def call(*arguments):
            if next(left, None) is not None:
                LACKS[kind]()
            return original(*arguments)

        return call

    where = {
        "network": (NaturalPrior, "__call__"),
        "unit": (worker, "read_members"),
        "decoding": (convert.Images, "__call__"),
    }
    monkeypatch.setattr(*where[place], lacking(getattr(*where[place])))
    run = execute(make_job())
    assert {row["status"] for row in rows(run)} == {"ok"}
    assert [wait for wait in waits if wait][:2] == [1, 2]
    assert next(left, None) is None


def test_memory_that_does_not_come_back_is_waited_for_once(make_job, monkeypatch):
    """Then samples fail at once, until one succeeds: each would cost half a minute."""
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(NaturalPrior, "__call__", lambda *_: LACKS["torch"]())
    found = rows(execute(make_job()))
    assert all("can't allocate memory" in row["error"] for row in found)
    assert sum(waits) == 31


def test_a_job_without_the_memory_to_begin_ends_with_one_sentence(make_job, monkeypatch):
    job = make_job()
    run = open_or_plan(job)
    monkeypatch.setattr(restore.priors, "load", lambda *_, **__: LACKS["torch"]())
    with pytest.raises(JobError, match=r"out of memory: .* the same command continues"):
        list(in_process([Part(run, list(run.outstanding()))], Live()))


def test_the_user_hears_what_happened_to_a_worker(make_job, monkeypatch):
    with_memory_for(monkeypatch, 1)
    job = make_job()
    run, live = open_or_plan(job), Live()
    commits = list(in_process([Part(run, list(run.outstanding()))], live))
    assert live.notes == ["out of memory: batches of 1, not compiled from now on"]
    assert [commit.notes for commit in commits] == [tuple(live.notes), (), (), (), (), ()]
    assert read_commit(run.folder, commits[0].unit, run.config_hash) is not None


def test_activations_are_recomputed_only_when_a_single_image_does_not_fit(make_job, monkeypatch):
    with_memory_for(monkeypatch, 0, checkpointed=1)
    stage = Stage(make_job(compute={"batch_size": 2, "cpus_per_actor": 1}), "cpu")
    assert [r.error for r in restore_pictures(stage)] == [None] * 4
    assert stage.loaded.prior.network.unet.is_gradient_checkpointing
    assert stage.notes[-1] == "out of memory: activations are computed twice from now on"
    with_memory_for(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        restore_pictures(stage)


@pytest.mark.parametrize("memory", [1, 2, 5, 37, 64, 100])
def test_the_largest_batch_is_found_to_an_eighth(memory):
    def rehearse(count):
        tried.append(count)
        if count > memory:
            raise torch.OutOfMemoryError("injected")

    tried: list[int] = []
    found = largest_batch(rehearse, 64, torch.device("cpu"))
    assert found <= min(memory, 64) <= found + max(1, found // 8)
    assert max(tried) <= 64
    assert len(tried) <= 12


@pytest.mark.parametrize("name", BY_NETWORK)
def test_a_batch_is_rehearsed_with_the_first_step_of_any_sampler(make_job, monkeypatch, name):
    calls = []
    kind, prior = (NaturalLatentPrior, "natural_latent") if name in OF_LATENTS else (NaturalPrior, "natural")
    original = kind.__call__
    monkeypatch.setattr(kind, "__call__", lambda s, x, t: calls.append(len(x)) or original(s, x, t))
    job = make_job(
        sampler={"name": name}, degradation={"operator": {"name": "denoise"}}, prior={"name": prior}
    )
    stage = Stage(job, "cpu")
    stage.rehearse(3)
    assert calls == [3, 3]


def test_a_batch_size_left_open_is_found_once_and_the_same_after_resumption(make_job, monkeypatch):
    monkeypatch.setattr(restore, "BATCH_ON_CPU", 3)
    job = make_job(compute={"batch_size": "auto", "unit_size": 3, "cpus_per_actor": 1})
    run = open_or_plan(job)
    next(in_process([Part(run, list(run.outstanding()))], Live()))
    assert json.loads((run.folder / "batch_size.json").read_text())["batch_size"] == 3
    monkeypatch.setattr(restore, "BATCH_ON_CPU", 1)
    assert {row["batch_size"] for row in rows(execute(job))} == {1, 3}  # the last of four is alone


def test_identical_images_have_infinite_psnr(make_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(np.full((SIZE, SIZE, 3), 255, np.uint8)))])
    job = make_job(
        data={"shards": str(shard), "size": SIZE},
        degradation={"operator": {"name": "denoise"}},
        sampler={"name": "conjugate", "steps": 5, "w": 30},
        metrics=["psnr"],
    )
    assert rows(execute(job))[0]["psnr"] > 40


@pytest.mark.slow
def test_storage_that_fails_is_not_a_failed_row(make_job, tmp_path, monkeypatch):
    """A shard that cannot be opened fails the attempt; nothing is committed."""
    monkeypatch.setattr(ledger, "pause", lambda attempt: 0.01)
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(picture(0)))])
    job = make_job(data={"shards": str(shard), "size": SIZE})
    run = open_or_plan(job)
    units = list(run.outstanding())
    shard.rename(tmp_path / "away.tar")
    with pytest.raises(JobError, match=r"storage: .*No such file.*the same command continues"):
        list(in_process([Part(run, units)], Live()))
    assert run.progress().units == 0
    (tmp_path / "away.tar").rename(shard)
    assert {row["status"] for row in rows(execute(job))} == {"ok"}


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"name": "conjugate", "start": 5}, "sampler.start: 5.0 is outside"),
        ({"name": "conjugate", "start": 0.1, "end": 0.2}, "sampler.start, end: .* not lead from noise"),
        ({"name": "ddnm", "project": True}, "sampler.project: .*noise"),
    ],
)
def test_sampler_settings_that_do_not_fit_are_found_before_any_sample(make_job, sampler, message):
    with pytest.raises(JobError, match=message):
        Stage(make_job(sampler=sampler), "cpu")


@pytest.mark.parametrize("name", BY_NETWORK)
def test_a_job_runs_with_every_sampler(make_job, name):
    sampler = {"name": name, "steps": 2, "start": 0.4, **FEW.get(name, {})}
    data = make_job().data.model_dump() | {"limit": 2}
    prior = {"name": "natural_latent" if name in OF_LATENTS else "natural"}
    found = rows(execute(make_job(data=data, sampler=sampler, prior=prior)))
    assert [row["status"] for row in found] == ["ok"] * 2
    assert all(row["forwards"] == 2 or name in ("cdim", "sitcom") for row in found), "as they need"


@pytest.mark.parametrize(
    ("operator", "size", "mode"),
    [
        ({"name": "average_pool", "factor": 4}, (8, 8), "RGB"),
        ({"name": "colorize"}, (32, 32), "L"),
        ({"name": "compressed_sensing"}, (32, 32), "RGB"),
        ({"name": "phase_retrieval"}, (32, 32), "RGB"),
    ],
)
def test_the_picture_of_a_measurement_is_the_measurement_or_its_pseudo_inverse(
    make_job, operator, size, mode
):
    data = make_job().data.model_dump() | {"limit": 1}
    run = execute(make_job(data=data, degradation={"operator": operator}))
    (row,) = [row for table, _ in committed(run, ["measurement"]) for row in table.to_pylist()]
    measurement = Image.open(io.BytesIO(row["measurement"]))
    assert (measurement.size, measurement.mode) == (size, mode)


def test_poisson_noise_has_the_stated_number_of_photons():
    """At white the variance is 1/photons on [0, 1], at black there is none; mid-grey sets σ_y."""
    degradation = Degradation(operator={"name": "denoise"}, poisson=100.0)
    levels = torch.tensor([-1.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 200, 200)
    y = add_noise(levels, degradation.poisson, degradation.gaussian, KeyedNoise(0, ["a"]))
    deviation = y[0].flatten(1).std(1)
    torch.testing.assert_close(deviation, 2 * torch.tensor([0.0, 0.005, 0.01]) ** 0.5, rtol=0.02, atol=0)
    torch.testing.assert_close(y.mean((0, 2, 3)), levels[0, :, 0, 0], rtol=0, atol=3e-3)
    assert degradation.sigma_y == pytest.approx(deviation[1].item(), rel=0.02)
    assert Degradation(operator={}, poisson=100.0, sigma=0.1).sigma_y == pytest.approx(0.06**0.5)


@pytest.mark.slow
def test_poisson_noise_makes_rows_that_can_be_repeated(make_job, tmp_path):
    degradation = {"operator": {"name": "average_pool"}, "poisson": 50.0}
    jobs = [make_job(degradation=degradation, output=str(tmp_path / name)) for name in "ab"]
    one, other = (execute(job) for job in jobs)
    assert digests(one) == digests(other)
    assert {row["status"] for row in rows(one)} == {"ok"}


def test_a_commit_of_another_configuration_does_not_count(finished):
    unit = next(finished.units()).unit
    assert read_commit(finished.folder, unit, config_hash(finished.job)) is not None
    assert read_commit(finished.folder, unit, "0" * 64) is None


def test_commit_records_say_who_made_them(finished):
    record = json.loads(commit_file(finished.folder, next(finished.units()).unit).read_text())
    assert record["made_by"]["torch"] == torch.__version__.split("+")[0]
    assert len(record["prior_sha256"]) == 64
    seconds = record["seconds"]
    assert all(seconds[part] > 0 for part in ("forward", "vjp", "fetch", "decode", "degrade", "score"))
    assert seconds["forward"] + seconds["vjp"] < seconds["sample"] < seconds["total"]


def test_rows_have_the_promised_columns(finished):
    table = pq.read_table(next((finished.folder / "data").iterdir()))
    promised = "key shard status error seed forwards vjps batch_size psnr ssim lpips residual"
    assert set(promised.split()) <= set(table.column_names)


@pytest.mark.parametrize(
    ("nodes", "compute", "expected"),
    [
        ([{"CPU": 2}], {}, (1, 2, 0)),
        ([{"CPU": 1}], {}, (1, 1, 0)),
        ([{"CPU": 64}, {"CPU": 7}], {}, (35, 2, 0)),
        ([{"CPU": 96, "GPU": 8}], {}, (8, 2, 1)),
        ([{"CPU": 64}, {"CPU": 8, "GPU": 8}], {}, (8, 1, 1)),  # the head's cores do not help the GPU node
        ([{"CPU": 4, "GPU": 8}], {}, (8, 0.5, 1)),
        ([{"CPU": 16, "GPU": 2}, {"CPU": 16, "GPU": 1}], {"gpus_per_actor": 2}, (1, 2, 2)),
        ([{"CPU": 16, "GPU": 2}], {"gpus_per_actor": 0.5, "cpus_per_actor": 8}, (4, 4, 0.5)),
        ([{"CPU": 16, "GPU": 2}], {"gpus_per_actor": 0}, (8, 2, 0)),
    ],
)
def test_actors_fill_the_cluster(make_job, nodes, compute, expected):
    size = actor_size(make_job(compute=compute), nodes, Live())
    assert (capacity(size, nodes), size.cpus, size.gpus) == expected


def test_a_cluster_that_holds_no_actor_is_refused(make_job):
    with pytest.raises(JobError, match=r"gpus_per_actor.*1 GPUs and 4 CPU"):
        actor_size(make_job(compute={"gpus_per_actor": 2}), [{"CPU": 4, "GPU": 1}], Live())


# ---- the prior's file


@pytest.fixture
def pipeline_folder(tmp_path):
    """A tiny network saved by diffusers."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(32,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def test_a_checkpoint_is_recorded_and_may_move_but_not_change(make_job, pipeline_folder, tmp_path):
    run = execute(make_job(prior={"name": "diffusers", "path": str(pipeline_folder)}))
    recorded = json.loads((run.folder / "prior.json").read_text())
    weights = pipeline_folder / "unet" / "diffusion_pytorch_model.safetensors"
    commits = [commit for _, commit in run.commits()]
    assert {commit.prior_sha256 for commit in commits if commit} == {recorded["sha256"]}

    moved = pipeline_folder.rename(tmp_path / "elsewhere")
    job = make_job(prior={"name": "diffusers", "path": str(moved)})
    run = open_or_plan(job)
    assert run.progress().units == len(commits)
    content = safetensors.torch.load_file(moved / "unet" / weights.name)
    content["conv_in.bias"] += 1
    safetensors.torch.save_file(content, moved / "unet" / weights.name)
    with pytest.raises(JobError, match="begun with another prior"):
        open_or_plan(job)
    with pytest.raises(JobError, match="the file changed while the run went on"):
        next(in_process([Part(run, list(run.units()))], Live()))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"name": "adm", "path": "/nowhere/adm.pt"}, "path: no file '/nowhere/adm.pt'"),
        ({"name": "adm"}, "prior.path: missing; 'adm' needs it"),
        ({"name": "rectified_flow", "path": "/nowhere/flow.pth"}, "path: no file '/nowhere/flow.pth'"),
        ({"name": "diffusers", "path": "/nowhere/pipeline"}, "/nowhere/pipeline"),
    ],
)
def test_missing_weights_are_found_before_any_work(make_job, prior, message, tmp_path):
    with pytest.raises(JobError, match=message):
        open_or_plan(make_job(prior=prior))
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_prior_does_not_take_is_found_before_any_work(make_job, tmp_path):
    data = {"shards": "builtin:scikit-image", "size": 60}
    with pytest.raises(JobError, match=r"needs image sides divisible by 8 \(data.size\)"):
        open_or_plan(make_job(data=data))
    assert not (tmp_path / "run").exists()


class Conditional(NaturalPrior):
    """Shifts its prediction by the class, so that the class shows in the result."""

    classes, label, labels = 12, None, None

    def __call__(self, x, t):
        return super().__call__(x, t) + 0.01 * self.labels.view(-1, 1, 1, 1)


@pytest.mark.slow
def test_a_class_conditional_prior_is_told_the_class_of_every_sample(make_job, shards, monkeypatch):
    plain = rows(execute(make_job()))
    monkeypatch.setattr(priors, "load", lambda spec, device: Conditional())
    told = rows(execute(make_job(output=str(shards[0].parent / "told"))))
    same = [a["restored"] == b["restored"] for a, b in zip(plain, told, strict=True)]
    assert same == [row["label"] == 0 for row in plain]


def test_samples_without_a_class_fail_alone_where_the_prior_needs_one(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr(priors, "load", lambda spec, device: Conditional())
    members = [("a.png", encode(picture(0))), ("a.cls", b"3"), ("b.png", encode(picture(1)))]
    shard = write_tar(tmp_path / "s.tar", members)
    found = rows(execute(make_job(data={"shards": str(shard), "size": SIZE})))
    assert [row["status"] for row in found] == ["ok", "failed"]
    assert "no .cls; set prior.label" in found[1]["error"]


def test_rows_that_were_written_before_a_metric_was_added_are_read(finished):
    (unit, *_), file = finished.units(), data_file(finished.folder, next(finished.units()).unit)
    record = read_commit(finished.folder, unit.unit, finished.config_hash)
    before = pq.read_table(file).drop_columns(["vif"])
    pq.write_table(before, file)
    record = replace(record, data_sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    now = read_rows(finished.folder, record, ROWS.names)
    assert now.column_names == ROWS.names
    assert now["vif"].null_count == len(now)
    assert now.drop_columns(["vif"]).equals(before)
