"""What a machine remembers of the records of a run: no more than is so."""

import json
import os

import pytest

from kintsugi.pipeline.execution import committed
from kintsugi.pipeline.execution.commit import read_commit
from kintsugi.pipeline.execution.committed import memory_file
from kintsugi.pipeline.execution.directory import commit_file
from kintsugi.pipeline.execution.run import Progress
from kintsugi.pipeline.storage.records import sealed, unsealed


@pytest.fixture
def reads(monkeypatch):
    """Which records have been read."""
    found = []

    def read(folder, unit, *others):
        found.append(unit)
        return read_commit(folder, unit, *others)

    monkeypatch.setattr(committed, "read_commit", read)
    monkeypatch.setattr(committed, "FEWEST", 1)
    monkeypatch.setattr(committed, "SETTLED", -1)
    return found


def rewrite(run, unit, **fields):
    file = commit_file(run.folder, unit)
    file.write_bytes(sealed(json.loads(unsealed(file.read_bytes())) | fields))


def test_only_records_that_are_new_or_have_changed_are_read_again(finished, reads):
    units = [unit.unit for unit in finished.units()]
    before = finished.progress()
    assert reads == units
    assert finished.to_do() == (before, [])
    assert reads == units
    rewrite(finished, units[1], attempt=7)
    assert finished.progress() == before
    assert reads == [*units, units[1]]
    file = commit_file(finished.folder, units[0])
    kept = file.read_bytes()
    file.unlink()
    assert [unit.unit for unit in finished.outstanding()] == units[:1]
    finished.progress()
    file.write_bytes(kept)
    os.utime(file, ns=(0, 0))
    assert finished.progress() == before
    assert reads[len(units) + 1 :] == units[:1]


def test_one_look_says_how_much_is_done_and_what_is_to_be_done(finished):
    units = list(finished.units())
    rewrite(finished, units[2].unit, failed=1)
    done = finished.progress()
    assert done == Progress(len(units), finished.summary.samples, 1)
    assert finished.to_do(retry_failed=True) == (done, [units[2]])
    commit_file(finished.folder, units[1].unit).unlink()
    left = Progress(done.units - 1, done.rows - units[1].samples, 1)
    assert finished.to_do() == (left, [units[1]])


def test_a_record_that_may_change_within_the_same_instant_is_read_again(finished, reads, monkeypatch):
    monkeypatch.setattr(committed, "SETTLED", 3600)
    finished.progress()
    finished.progress()
    assert len(reads) == 2 * finished.summary.units


def test_a_small_run_leaves_nothing_in_the_cache(finished, reads, monkeypatch):
    monkeypatch.setattr(committed, "FEWEST", 1000)
    finished.progress()
    assert not memory_file(finished.folder, finished.config_hash).exists()


@pytest.mark.parametrize("content", ["", '{"00000-0000000": ["", 3', '{"00000-0000000": [1, "a", 0]}', "[]"])
def test_what_is_no_memory_is_not_believed(finished, reads, content):
    before = finished.progress()
    memory_file(finished.folder, finished.config_hash).write_text(content)
    assert finished.progress() == before
    assert len(reads) == 2 * finished.summary.units


def test_a_run_that_lacks_rows_is_read_again(finished, reads, monkeypatch):
    """A disk that decays changes no times of a file."""
    monkeypatch.setattr(committed, "state_of", lambda found: "the same")
    before, (unit, *_) = finished.progress(), finished.units()
    commit_file(finished.folder, unit.unit).write_text("decayed")
    assert finished.progress() == before
    assert "3 samples have no valid" in str(finished.incomplete(3))
    assert finished.progress().units == before.units - 1


def test_without_a_cache_folder_all_is_read(finished, reads, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KINTSUGI_CACHE", str(tmp_path / "file"))
    assert finished.progress() == finished.progress()
    assert len(reads) == 2 * finished.summary.units
