"""restored/ is what the committed rows say, whatever happens to it."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from kit.jobs import execute, kintsugi, write_job
from kit.shards import SIZE, encode, picture, write_tar

from kintsugi.errors import JobError
from kintsugi.pipeline.execution import restored as export
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.verify import Finding, verify
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.storage.files import walk
from kintsugi.pipeline.storage.location import Location, at
from kintsugi.pipeline.storage.publish import publish


@pytest.fixture
def make_restoration(make_job, tmp_path):
    """A job on four measurements, in a tar or a folder, in units of two."""

    def make(kind: str, output: Location | None = None, **fields):
        members = [(f"sub/{i}.png", encode(picture(i, 8))) for i in range(4)]
        if kind == "tar":
            shard = write_tar(tmp_path / "s.tar", members)
        else:
            shard = tmp_path / "photos"
            for name, content in members:
                (shard / name).parent.mkdir(parents=True, exist_ok=True)
                (shard / name).write_bytes(content)
        values = {
            "data": {"kind": "measurements", "shards": str(shard), "size": SIZE},
            "degradation": {"operator": {"name": "average_pool", "factor": 4}},
            "sampler": {"name": "ddnm", "steps": 1},
            "metrics": [],
            "compute": {"batch_size": 2, "unit_size": 2, "cpus_per_actor": 1},
        }
        return make_job(**values | ({} if output is None else {"output": str(output)}) | fields)

    return make


def contents(run: Run) -> dict[str, bytes]:
    folder = run.folder / "restored"
    return {name: (folder / name).read_bytes() for name in walk(folder)}


def put(location: Location, content: bytes) -> None:
    with publish(location) as temporary:
        temporary.write_bytes(content)


def findings(run: Run) -> list[Finding]:
    return [found for found in verify(run) if isinstance(found, Finding)]


HARM = {
    "cut": lambda file: put(file, file.read_bytes()[:700]),
    "a flipped bit": lambda file: put(file, file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    "longer": lambda file: put(file, file.read_bytes() + b"\0"),
    "deleted": lambda file: file.unlink(),
    "empty": lambda file: put(file, b""),
}


@pytest.mark.slow
@pytest.mark.parametrize(("place", "kind"), [("folder", "tar"), ("bucket", "folder")], indirect=["place"])
def test_harm_to_what_is_restored_is_found_and_undone(make_restoration, place, kind):
    run = execute(make_restoration(kind, place / "run"))
    assert [finding.shard for finding in findings(run)] == run.summary.shards, "all is done, nothing there"
    write_restored(run)
    before = contents(run)
    assert len(before) == (1 if kind == "tar" else 4)
    assert findings(run) == []
    assert write_restored(run) == []
    name = sorted(before)[-1]
    for harm in HARM.values() if isinstance(place, Path) else [HARM["a flipped bit"], HARM["deleted"]]:
        harm(run.folder / "restored" / name)
        (finding,) = findings(run)
        assert f"restored/{'s.tar' if kind == 'tar' else 'photos'}" in finding.what
        assert (finding.unit, finding.shard) == (None, run.summary.shards[0])
        assert write_restored(run) == [run.folder / "restored" / name.partition("/sub")[0]]
        assert contents(run) == before
        assert findings(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_the_commands_find_and_undo_it_too(make_restoration, tmp_path, kind):
    job = make_restoration(kind)
    write_job(tmp_path / "job.yaml", job)
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 0
    run = Run.open(at(job.output))
    before, victim = contents(run), next(p for p in (run.folder / "restored").rglob("*") if p.is_file())
    HARM["cut"](victim)
    result = kintsugi("verify", job.output)
    assert result.exit_code == 1
    assert "A rerun writes 1 restored shards again." in result.output.replace("\n", " ")
    result = kintsugi("verify", job.output, "--repair")
    assert result.exit_code == 0
    assert "written again: " in result.output
    assert contents(run) == before
    assert kintsugi("verify", job.output).exit_code == 0
    shutil.rmtree(run.folder / "restored")
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 0
    assert contents(run) == before


def test_a_damaged_unit_takes_the_restored_tar_with_it(make_restoration, tmp_path):
    job = make_restoration("tar")
    run = execute(job)
    write_restored(run)
    before = contents(run)
    put(run.folder / "data" / "00000-0000002.parquet", b"damaged")
    (finding,) = findings(run)
    assert finding.unit is not None, "of the tar nothing can be said"
    assert kintsugi("verify", run.folder, "--repair").exit_code == 0
    assert contents(run) == {}
    assert findings(run) == []
    execute(job)
    write_restored(run)
    assert contents(run) == before


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_an_interrupted_job_leaves_what_is_done(make_restoration, tmp_path, monkeypatch, kind):
    job = make_restoration(kind)
    write_job(tmp_path / "job.yaml", job)
    whole = execute(make_restoration(kind, tmp_path / "whole"))
    write_restored(whole)
    original = Worker.process

    def process(self, task):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, task)

    with monkeypatch.context() as interrupted:
        interrupted.setattr(Worker, "process", process)
        result = kintsugi("run", tmp_path / "job.yaml", "--address", "none")
    assert result.exit_code == 130, result.output
    run = Run.open(at(job.output))
    assert run.progress().rows == 2
    assert findings(run) == []
    if kind == "tar":
        import tarfile

        with tarfile.open(run.folder / "restored" / "s.tar") as tar:
            assert tar.getnames() == ["sub/0.png", "sub/1.png"]
    else:
        assert set(contents(run)) == {"photos/sub/0.png", "photos/sub/1.png"}
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 0
    assert contents(run) == contents(whole)


def test_a_killed_export_goes_on(make_restoration, monkeypatch):
    """Some files of a folder are there, one of them half written, by a name of its own."""
    run = execute(make_restoration("folder"))
    original, calls = export.write_file, []

    def dies(target, name, content):
        calls.append(name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(target, name, content)

    monkeypatch.setattr(export, "write_file", dies)
    with pytest.raises(KeyboardInterrupt):
        write_restored(run)
    assert len(contents(run)) == 2
    calls.clear()
    write_restored(run)
    assert len(contents(run)) == 4
    assert findings(run) == []


def test_what_is_not_written_yet_is_no_fault_of_an_unfinished_run(make_restoration):
    for kind in ("tar", "folder"):
        job = make_restoration(kind, output=Path(f"{make_restoration(kind).output}-{kind}"))
        run = execute(job)
        (run.folder / "commits" / "00000-0000002.json").unlink()
        assert findings(run) == []


def test_failed_samples_that_are_tried_again_join_the_others(make_restoration, tmp_path, monkeypatch):
    job = make_restoration("folder")
    shutil.copy(tmp_path / "photos" / "sub" / "0.png", tmp_path / "good.png")
    (tmp_path / "photos" / "sub" / "0.png").write_bytes(b"bad")
    write_job(tmp_path / "job.yaml", job)
    assert kintsugi("run", tmp_path / "job.yaml", "--address", "none").exit_code == 2
    run = Run.open(at(job.output))
    assert len(contents(run)) == 3
    shutil.copy(tmp_path / "good.png", tmp_path / "photos" / "sub" / "0.png")
    command = ("run", tmp_path / "job.yaml", "--address", "none", "--retry-failed")
    assert kintsugi(*command).exit_code == 0
    assert len(contents(run)) == 4
    assert findings(run) == []


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_nothing_is_written_through_links_and_pipes_are_not_read(make_restoration, tmp_path, kind):
    run = execute(make_restoration(kind))
    write_restored(run)
    before, outside = contents(run), tmp_path / "outside"
    outside.mkdir()
    name = sorted(before)[0]
    victim = run.folder / "restored" / name
    (outside / "kept").write_bytes(before[name])
    for harm in (lambda: victim.symlink_to(outside / "kept"), lambda: os.mkfifo(victim)):
        victim.unlink()
        harm()
        assert len(findings(run)) == 1
        write_restored(run)
        assert contents(run) == before
    assert not victim.is_symlink()
    assert [path.name for path in outside.iterdir()] == ["kept"]
    if kind == "folder":
        shutil.move(run.folder / "restored" / "photos" / "sub", outside / "sub")
        (run.folder / "restored" / "photos" / "sub").symlink_to(outside / "sub")
        (outside / "sub" / "0.png").unlink()
        assert len(findings(run)) == 1
        with pytest.raises(JobError, match="photos/sub is a link, through which nothing is written"):
            write_restored(run)
        assert not (outside / "sub" / "0.png").exists()


def test_the_shard_need_not_be_there_any_more(make_restoration, tmp_path):
    run = execute(make_restoration("folder"))
    shutil.rmtree(tmp_path / "photos")
    write_restored(run)
    assert len(contents(run)) == 4
    assert [finding.shard for finding in findings(run)] == [None], "which is said, and all"


def test_files_of_ones_own_beside_it_are_no_fault(make_restoration):
    run = execute(make_restoration("folder"))
    write_restored(run)
    put(run.folder / "restored" / "photos" / "mine.png", b"mine")
    put(run.folder / "restored" / ".DS_Store", b"")
    assert findings(run) == []
    assert json.dumps(walk(run.folder / "restored")).count("mine") == 1
