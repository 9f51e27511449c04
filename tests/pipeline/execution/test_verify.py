"""Verify, repair, retry, and ending in good order."""

import json
import os
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from kit.jobs import digests, execute, forked, kintsugi, rows, write_job
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.execution import committed, directory
from kintsugi.pipeline.execution.commit import read_commit
from kintsugi.pipeline.execution.committed import counts_of, read_commits, read_counts
from kintsugi.pipeline.execution.directory import commit_file, data_file
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.verify import Finding, verify
from kintsugi.pipeline.storage.records import MAX_RECORD, SUMS, sealed, unsealed


def test_all_that_lies_in_a_run_has_a_name_in_directory(finished):
    begun = {*directory.KEPT, SUMS}
    assert {path.name for path in finished.folder.iterdir() if path.is_file()} == begun
    assert {path.name for path in finished.folder.iterdir() if path.is_dir()} <= {*directory.FOLDERS}


HARMS = {
    "none": lambda record, data: None,
    "no record": lambda record, data: record.unlink(),
    "no rows": lambda record, data: data.unlink(),
    "cut rows": lambda record, data: os.truncate(data, 100),
    "a torn record": lambda record, data: record.write_text('{"unit":'),
    "a record without end": lambda record, data: os.truncate(record, MAX_RECORD + 1),
    "features that are gone": lambda record, data: rewrite(record, features_bytes=7),
    "a linked record": lambda record, data: (
        record.rename(record.parent.parent / "moved") and record.symlink_to(record.parent.parent / "moved")
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_listing_says_of_each_unit_what_its_files_say(finished, harm, monkeypatch):
    """Also one of counts that were remembered before."""
    monkeypatch.setattr(committed, "FEWEST", 1)
    monkeypatch.setattr(committed, "SETTLED", -1)
    units = [unit.unit for unit in finished.units()]
    assert finished.progress().units == len(units)
    HARMS[harm](commit_file(finished.folder, units[1]), data_file(finished.folder, units[1]))
    listed = dict(read_commits(finished.folder, units, finished.config_hash))
    assert [unit for unit, found in listed.items() if found is None] == ([] if harm == "none" else units[1:2])
    counted = read_counts(finished.folder, units, finished.config_hash)
    assert list(counted) == [(unit, counts_of(found)) for unit, found in listed.items()]
    for unit, found in listed.items():
        try:
            assert read_commit(finished.folder, unit, finished.config_hash) == found
        except JobError:  # which says what is wrong with a link, or a file that is too large
            assert harm in ("a record without end", "a linked record")
            assert found is None


def findings(run: Run) -> dict[str | None, str]:
    return {f.unit and f.unit.unit: f.what for f in verify(run) if isinstance(f, Finding)}


def rewrite(path: Path, **fields) -> None:
    path.write_bytes(sealed(json.loads(unsealed(path.read_bytes())) | fields))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def resaved(run: Run, unit: str, change) -> None:
    """Rows changed by somebody who also mends the record."""
    import hashlib

    file, record = data_file(run.folder, unit), commit_file(run.folder, unit)
    pq.write_table(change(pq.read_table(file)), file)
    content = file.read_bytes()
    rewrite(record, data_bytes=len(content), data_sha256=hashlib.sha256(content).hexdigest())


DAMAGE = {
    "torn record": (lambda r, u: commit_file(r, u).write_text('{"unit": "0000'), "torn, of another job"),
    "record of another unit": (
        lambda r, u: commit_file(r, u).write_bytes(commit_file(r, "00002-0000000").read_bytes()),
        "torn, of another job",
    ),
    "record of another job": (lambda r, u: rewrite(commit_file(r, u), config_hash="0" * 64), "another job"),
    "no data": (lambda r, u: data_file(r, u).unlink(), "no data"),
    "cut data": (lambda r, u: os.truncate(data_file(r, u), 1000), "another size"),
    "a flipped bit": (lambda r, u: flip(data_file(r, u)), "is not the file that was committed"),
    "another count": (
        lambda r, u: rewrite(commit_file(r, u), failed=2),
        "its commit record says 2",
    ),
    "another prior": (lambda r, u: rewrite(commit_file(r, u), prior_sha256="0" * 64), "another prior"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_named_and_repaired(finished, make_job, kind):
    damage, words = DAMAGE[kind]
    before = digests(finished)
    damage(finished.folder, "00001-0000000")
    assert list(findings(finished)) == ["00001-0000000"]
    assert words in findings(finished)["00001-0000000"]
    result = kintsugi("verify", finished.folder)
    assert result.exit_code == 1
    assert words in result.output.replace("\n", " ")
    assert "A rerun does 1 units, 3 samples, once --repair has dropped" in result.output.replace("\n", " ")
    assert kintsugi("verify", finished.folder, "--repair").exit_code == 0
    assert findings(finished) == {}
    assert [unit.unit for unit in open_or_plan(make_job()).outstanding()] == ["00001-0000000"]
    assert digests(execute(make_job())) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.take([1, 0, 2]),
        lambda t: t.take([0, 0, 2]),
        lambda t: t.slice(1),
        lambda t: t.drop(["psnr"]),
    ],
    ids=["order", "doubled", "lost", "column"],
)
def test_rows_that_are_not_the_plans_are_found(finished, change):
    resaved(finished, "00000-0000000", change)
    assert list(findings(finished)) == ["00000-0000000"]


def test_rows_from_before_a_metric_existed_are_whole(finished):
    resaved(finished, "00000-0000000", lambda t: t.drop(["total_variation", "vif"]))
    assert findings(finished) == {}


def test_a_whole_run_has_no_findings_and_an_unfinished_one_says_what_is_left(finished):
    result = kintsugi("verify", finished.folder)
    assert result.exit_code == 0
    assert "6 of 6 units are as committed, 12 samples. A rerun does nothing." in result.output
    commit_file(finished.folder, "00002-0000003").unlink()  # its rows alone are no commit
    result = kintsugi("verify", finished.folder)
    assert result.exit_code == 0
    assert "A rerun does 1 units, 1 samples." in result.output


def test_what_repair_cannot_mend_stays_a_finding(finished, shards, tmp_path):
    (finished.folder / "data" / "99999-0000000.parquet").write_bytes(b"foreign")
    assert findings(finished) == {None: "data/99999-0000000.parquet belongs to no unit of the plan"}
    assert kintsugi("verify", finished.folder, "--repair").exit_code == 1
    assert (finished.folder / "data" / "99999-0000000.parquet").exists(), "nothing foreign is deleted"


# ---- samples that failed


@pytest.mark.slow
def test_failed_samples_are_retried_and_nothing_else(make_job, job_file, monkeypatch):
    """Rows that were good stay the same bytes; those that failed are restored as in a run without fault."""
    calm = execute(
        make_job(
            output=str(job_file.parent / "calm"),
            compute={"batch_size": 1, "unit_size": 3, "cpus_per_actor": 1},
        )
    )
    job = make_job(compute={"batch_size": 1, "unit_size": 3, "cpus_per_actor": 1})
    write_job(job_file, job)
    original, restored = Stage.in_batches, []

    def run(self, samples, work):
        if "image_001" in [sample.key for sample in samples] and not restored:
            raise RuntimeError("a transient fault")
        return original(self, samples, work)

    with monkeypatch.context() as faulty:
        faulty.setattr(Stage, "in_batches", run)
        assert kintsugi("run", job_file, "--address", "none").exit_code == 2
    assert kintsugi("run", job_file, "--address", "none").exit_code == 2, "a rerun alone keeps failures"
    monkeypatch.setattr(
        Stage, "in_batches", lambda s, of, work: restored.extend(x.key for x in of) or original(s, of, work)
    )
    result = kintsugi("run", job_file, "--address", "none", "--retry-failed")
    assert result.exit_code == 0
    assert restored == ["image_001"]
    assert "1 failed samples in 1 units again" in result.output
    assert digests(Run.open(Path(job.output))) == digests(calm)
    commits = [commit for _, commit in Run.open(Path(job.output)).commits()]
    assert all(seconds > 0 for commit in commits for seconds in commit.sample_seconds)


@pytest.mark.slow
def test_a_retry_does_nothing_but_what_failed(job_file, make_job):
    with pytest.raises(JobError, match="--retry-failed: there is no run in"):
        kintsugi("run", job_file, "--address", "none", "--retry-failed")
    assert not Path(make_job().output).exists()
    run = execute(make_job())
    unit = next(run.units())
    commit_file(run.folder, unit.unit).unlink()
    result = kintsugi("run", job_file, "--address", "none", "--retry-failed")
    assert result.exit_code == 0
    assert "0 failed samples in 0 units again" in result.output
    assert "3 samples are still to be done: the same command without --retry-failed" in result.output
    assert [left.unit for left in run.outstanding()] == [unit.unit]


@pytest.mark.slow
def test_a_retry_that_is_killed_loses_nothing(make_job, monkeypatch):
    """Between the new rows and their record the unit counts as not done; a rerun does it."""
    job = make_job()
    original = Stage.in_batches

    def faulty(self, samples, work):
        if "image_001" in [sample.key for sample in samples]:
            raise RuntimeError("a transient fault")
        return original(self, samples, work)

    with monkeypatch.context() as context:
        context.setattr(Stage, "in_batches", faulty)
        run = execute(job)
    units = list(run.with_failures())
    with monkeypatch.context() as context:

        def dies(*args):
            raise KeyboardInterrupt

        context.setattr("kintsugi.pipeline.execution.commit.asdict", dies)  # between rows and record
        with pytest.raises(KeyboardInterrupt):
            list(in_process([Part(run, units, failed_only=True)], Live()))
    assert [unit.unit for unit in open_or_plan(job).outstanding()] == ["00000-0000000"]
    found = rows(execute(job))
    assert [row["key"] for row in found] == [f"image_{i:03d}" for i in range(12)]
    assert {row["status"] for row in found} == {"ok"}


# ---- ending in good order


def test_a_job_that_is_asked_to_stop_finishes_its_unit(make_job):
    job, live = make_job(), Live()
    run = open_or_plan(job)
    commits = in_process([Part(run, list(run.outstanding()))], live)
    next(commits)
    live.stopping = True
    assert list(commits) == []
    assert run.progress().units == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "count"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_signals_end_the_job_in_good_order(make_job, tmp_path, number, count):
    """One signal: the unit in hand is committed. Two: it is not. Either way the exit code is 130."""
    slow = make_job(
        compute={"batch_size": 1, "unit_size": 4, "cpus_per_actor": 1},
        sampler={"name": "conjugate", "steps": 12, "w": 1},
    )
    job_file, said = write_job(tmp_path / "job.yaml", slow), tmp_path / "said"
    child = forked(said, "run", job_file, "--address", "none")
    folder = Path(slow.output)
    wait_until(lambda: list((folder / "commits").glob("*.json")))
    time.sleep(0.1)  # so that the next unit is in hand
    before = len(list((folder / "commits").glob("*.json")))
    for _ in range(count):
        os.kill(child, number)
        time.sleep(0.3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    after = len(list((folder / "commits").glob("*.json")))
    assert after == before + (count == 1), said.read_text()
    assert "samples are committed; the same command continues" in said.read_text()
    assert not list(folder.glob("**/.*.tmp"))


def wait_until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_unit_whose_samples_are_many_megabytes_is_read_back(make_job, tmp_path, monkeypatch):
    """Parquet writes lists of 2 GiB in one group of rows and cannot read them; the bound is lower here."""
    from kintsugi.pipeline.execution import commit

    monkeypatch.setattr(commit, "ROW_GROUP", 2000)
    shard = write_tar(tmp_path / "s.tar", [(f"{n}.png", encode(picture(n, 8))) for n in range(3)])
    data = {"kind": "measurements", "shards": str(shard), "size": SIZE}
    run = execute(make_job(data=data, metrics=[], restoration={"samples_per_image": 2}))
    groups = pq.ParquetFile(data_file(run.folder, next(run.units()).unit)).metadata
    assert groups.num_row_groups == groups.num_rows == 3
    write_restored(run)
    assert findings(run) == {}
    assert all(len(row["samples"]) == 2 for row in rows(run))


def test_a_changed_data_file_is_told_in_words_by_every_command(finished, job_file):
    flip(data_file(finished.folder, next(finished.units()).unit))
    for command in (["run", job_file, "--address", "none"], ["report", finished.folder]):
        with pytest.raises(JobError, match=r"not the file that was committed.*verify .* --repair"):
            kintsugi(*command)


def test_a_retried_unit_keeps_the_time_and_the_place_of_the_rows_it_keeps(make_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.png", encode(picture(0))), ("b.png", b"no image")])
    job = make_job(data={"shards": str(shard), "size": SIZE})
    run = execute(job)
    unit = next(run.units()).unit
    record = commit_file(run.folder, unit)
    before = json.loads(record.read_text())
    rewrite(record, made_by=before["made_by"] | {"host": "elsewhere"})
    list(in_process([Part(run, list(run.with_failures()), failed_only=True)], Live()))
    after = json.loads(record.read_text())
    assert after["seconds"]["sample"] == before["seconds"]["sample"]
    assert after["seconds"]["total"] > before["seconds"]["total"]
    assert after["made_by"] == before["made_by"] | {"host": f"elsewhere, {before['made_by']['host']}"}
