"""A run is of one job and of the files that it names; one job at a time plans in an output."""

import json
import os
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from kit.jobs import digests, execute
from kit.shards import SIZE, encode, measured, picture, tar_of_arrays, write_tar

from kintsugi.errors import JobError
from kintsugi.operators.masks import SUFFIXES
from kintsugi.pipeline.execution import claim, identity
from kintsugi.pipeline.execution.claim import claimed
from kintsugi.pipeline.execution.directory import FILES, KEPT
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.execution.verify import verify
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import file_sizes
from kintsugi.pipeline.storage.location import Location, at
from kintsugi.pipeline.storage.publish import publish, this_host

HALF = np.indices((SIZE, SIZE))[1] < SIZE // 2


def write_mask(path: Path, known: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, m=known)
    else:
        path.write_bytes(encode(np.uint8(255) * known))
    return path


def inpainting(mask: Path, *, composed: bool = False) -> dict:
    spec = {"name": "inpaint", "mask": str(mask), "known": "white"}
    return {"operator": {"name": "compose", "operators": [{"name": "denoise"}, spec]} if composed else spec}


@pytest.mark.parametrize(("suffix", "composed"), [(".png", False), (".npz", True)])
def test_a_run_is_not_continued_with_another_mask(make_job, tmp_path, suffix, composed):
    assert suffix in SUFFIXES
    mask = write_mask(tmp_path / f"m{suffix}", HALF)
    job = make_job(degradation=inpainting(mask, composed=composed))
    before = digests(run := execute(job))
    (run.folder / "commits" / "00001-0000000.json").unlink()
    content = mask.read_bytes()
    write_mask(mask, ~HALF)
    field = r"degradation\.operator\.operators\.1\.mask" if composed else r"degradation\.operator\.mask"
    with pytest.raises(JobError, match=rf"begun with other files.*\n  {field}: SHA-256 \w+ → \w+$"):
        open_or_plan(job)
    with pytest.raises(JobError, match=rf"a file changed while the run went on:\n  {field}"):
        Worker(job, run.folder, "cpu")
    mask.write_bytes(content)
    assert digests(execute(job)) == before


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".npy", ".mat"])
def test_a_run_is_not_continued_with_another_kernel(make_job, tmp_path, suffix):
    def write(kernel: np.ndarray) -> None:
        if suffix == ".npy":
            np.save(path, kernel)
        else:
            scipy.io.savemat(path, {"f": kernel})

    path, kernel = tmp_path / f"k{suffix}", np.random.default_rng(0).random((5, 5))
    write(kernel)
    job = make_job(degradation={"operator": {"name": "blur", "kernel": str(path), "boundary": "valid"}})
    run = execute(job)
    assert (
        identity.recorded(run.folder)["degradation.operator.kernel"] == sha256(path.read_bytes()).hexdigest()
    )
    (run.folder / "commits" / "00001-0000000.json").unlink()
    write(kernel.T)
    with pytest.raises(JobError, match=r"begun with other files.*\n  degradation\.operator\.kernel: SHA-256"):
        open_or_plan(job)


def test_a_run_of_an_earlier_version_has_its_files_from_now_on(make_job, tmp_path):
    mask = write_mask(tmp_path / "m.png", HALF)
    job = make_job(degradation=inpainting(mask))
    run = execute(job)
    for name in (FILES, records.SUMS):
        (run.folder / name).unlink()
    assert open_or_plan(job).progress().units == run.summary.units
    assert "files.json" in records.stated_sums(run.folder, KEPT), "and their checksums"
    write_mask(mask, ~HALF)
    with pytest.raises(JobError, match=r"degradation\.operator\.mask"):
        open_or_plan(job)


def test_a_mask_is_mended_where_the_driver_was_killed_before_the_run_was_one(make_job, tmp_path):
    mask = write_mask(tmp_path / "m.png", HALF)
    job = make_job(degradation=inpainting(mask))
    run = open_or_plan(job)
    (run.folder / "job.yaml").unlink()
    write_mask(mask, ~HALF)
    run = execute(job)
    assert identity.recorded(run.folder) == identity.of_specs(job)
    (run.folder / "job.yaml").unlink()
    write_mask(mask, HALF)
    with pytest.raises(JobError, match="begun with other files"):  # there are rows made with them
        open_or_plan(job)


def test_a_mask_that_changes_while_a_worker_meets_another_size_ends_the_job(make_job, tmp_path):
    """The operator of each size is built from the file when the first sample of that size comes."""
    mask = write_mask(tmp_path / "m.png", HALF)
    arrays = [measured(picture(0, side), {"name": "denoise"}) for side in (32, 64)]
    shard = tar_of_arrays(tmp_path / "s.tar", arrays)
    job = make_job(
        data={"kind": "measurements", "shards": str(shard), "size": SIZE},
        degradation=inpainting(mask),
        metrics=[],
        compute={"batch_size": 1, "unit_size": 1, "cpus_per_actor": 1},
    )
    run = open_or_plan(job)
    commits = in_process([Part(run, list(run.outstanding()))], Live())
    assert next(commits).failed == 0
    write_mask(mask, ~HALF)
    with pytest.raises(JobError, match="changed while the run went on"):
        next(commits)
    assert run.progress().rows == 1


@pytest.fixture
def references(tmp_path, monkeypatch):
    """Statistics and images to compare with, and no network: nothing is computed of them here."""
    monkeypatch.setattr("kintsugi.pipeline.execution.open.refuse_missing", lambda metrics, reference: None)
    np.savez(tmp_path / "r.npz", mu=np.zeros(2))
    (tmp_path / "r").mkdir()
    for i in range(2):
        (tmp_path / "r" / f"{i}.bmp").write_bytes(encode(picture(i), "BMP"))
    write_tar(tmp_path / "r.tar", [(f"{i}.bmp", encode(picture(i), "BMP")) for i in range(2)])
    return tmp_path


@pytest.mark.parametrize("name", ["r.npz", "r", "r.tar"])
def test_a_run_is_not_continued_with_another_reference(make_job, references, name):
    """Of images it is their contents that count: these files keep their names and sizes."""
    job = make_job(metrics=["fid"], reference=str(references / name))
    open_or_plan(job)
    assert set(identity.recorded(at(job.output))) == {"reference"}
    np.savez(references / "r.npz", mu=np.ones(2))
    (references / "r" / "1.bmp").write_bytes(encode(picture(7), "BMP"))
    write_tar(references / "r.tar", [(f"{i}.bmp", encode(picture(7 * i), "BMP")) for i in range(2)])
    with pytest.raises(JobError, match=r"begun with other files.*\n  reference: SHA-256"):
        open_or_plan(job)


def test_a_reference_without_metrics_of_sets_is_none_of_the_runs_files(make_job, references):
    job = make_job(reference=str(references / "r.npz"))
    open_or_plan(job)
    assert identity.recorded(at(job.output)) == {}


def test_a_run_is_not_continued_with_other_weights_of_a_metric(make_job, tmp_path, monkeypatch):
    found = iter(["a" * 64, "b" * 64])
    monkeypatch.setattr("kintsugi.pipeline.execution.open.refuse_missing", lambda metrics, reference: None)
    monkeypatch.setattr("kintsugi.pipeline.metrics.weights.Weights.digest", lambda self: next(found))
    job = make_job(metrics=["lpips"])
    open_or_plan(job)
    with pytest.raises(JobError, match=rf"\n  metrics\.lpips: SHA-256 {'a' * 64} → {'b' * 64}"):
        open_or_plan(job)


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "[" * 100_000], ids=str.__len__)
def test_nonsense_for_the_record_of_files_is_named(make_job, content):
    run = open_or_plan(make_job())
    (run.folder / FILES).write_text(content)
    with pytest.raises(JobError, match=r"files\.json"):
        open_or_plan(make_job())


# ---- claims


@pytest.fixture
def two(make_job, place):
    """Two jobs for one output."""
    return [make_job(output=str(place / "run"), degradation=degradation(sigma)) for sigma in (0.02, 0.1)]


SOMEBODYS = f"claim-{'0' * 8}-1-{'a' * 8}.json"


def claims(folder: Location) -> list[str]:
    return [name for name in file_sizes(folder) if name.startswith("claim-")]


def degradation(sigma: float) -> dict:
    return {"operator": {"name": "average_pool", "factor": 4}, "sigma": sigma}


def while_planning(monkeypatch, then) -> None:
    """Call `then` in the middle of the next planning."""
    from kintsugi.pipeline.execution import open as opening

    original, calls = opening.plan, iter([then])

    def planned(*arguments):
        next(calls, lambda: None)()
        return original(*arguments)

    monkeypatch.setattr(opening, "plan", planned)


def test_another_job_is_refused_while_one_is_planned(two, monkeypatch):
    monkeypatch.setattr(claim, "PAUSE", 0.01)
    one, other = two
    messages = []

    def refused():
        with pytest.raises(JobError) as found:
            open_or_plan(other)
        messages.append(str(found.value))

    while_planning(monkeypatch, refused)
    run = open_or_plan(one)
    (message,) = messages
    assert "holds a run of another job, which process" in message
    assert f"delete {run.folder}/claim-{this_host()}-{os.getpid()}-" in message
    assert message.endswith("\n  degradation.sigma: 0.02 → 0.1")
    assert not claims(run.folder), "the run's own file says whose it is"
    with pytest.raises(JobError, match="holds a run of another job"):
        open_or_plan(other)


def test_the_same_job_may_be_planned_twice_at_once(two, monkeypatch):
    while_planning(monkeypatch, lambda: open_or_plan(two[0]))
    run = open_or_plan(two[0])
    assert not any(hasattr(found, "what") for found in verify(run))


def test_of_two_jobs_that_start_at_once_one_at_most_goes_on(two):
    """Neither may, if they see each other every time."""
    ended, refused = [], []

    def start(job):
        try:
            ended.append(open_or_plan(job))
        except JobError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(job,)) for job in two]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ended) <= 1
    assert all("holds a run of another job" in message for message in refused)
    assert not claims(at(two[0].output))


def test_a_plan_that_fails_leaves_the_output_to_the_job_that_is_mended(make_job, tmp_path):
    with pytest.raises(JobError, match="no such file"):
        open_or_plan(make_job(data={"shards": str(tmp_path / "none.tar"), "size": SIZE}))
    assert not claims(tmp_path / "run")
    assert open_or_plan(make_job()).summary.samples == 12


def test_a_claim_of_a_dead_driver_is_taken_over_and_one_of_elsewhere_named(two, place, monkeypatch):
    monkeypatch.setattr(claim, "PAUSE", 0.01)
    one, other = two
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with claimed(place / "run", one, "0" * 64):
        (held,) = claims(place / "run")
        content = (place / "run" / held).read_bytes()
    here, there = (f"claim-{host}-{dead.pid}-{'a' * 8}.json" for host in (this_host(), "0" * 8))
    for name in (here, there):
        with publish(place / "run" / name) as temporary:
            temporary.write_bytes(content)
    with pytest.raises(JobError, match=f"delete .*{there}"):
        open_or_plan(other)
    assert claims(place / "run") == [there]
    (place / "run" / there).unlink()
    assert open_or_plan(other).summary.samples == 12


def test_a_claim_that_a_killed_driver_left_in_its_run_is_removed(make_job):
    run = open_or_plan(make_job())
    (run.folder / SOMEBODYS).write_text("{}")
    open_or_plan(make_job())
    assert not claims(run.folder)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"job": 1}', b"[" * 100_000], ids=len)
def test_nonsense_for_a_claim_is_named(make_job, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SOMEBODYS).write_bytes(content)
    with pytest.raises(JobError, match=f"{SOMEBODYS} is not the claim of a job; delete it"):
        open_or_plan(make_job())


def test_a_claim_of_a_job_that_cannot_be_read_here_is_still_one(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "PAUSE", 0.01)
    other = {
        "job": {"new": 1},
        "prior_sha256": "0",
        "host": "h",
        "process": 1,
        "since": "s",
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SOMEBODYS).write_text(json.dumps(other))
    with pytest.raises(JobError, match="which process 1 on h has been planning since s"):
        open_or_plan(make_job())
