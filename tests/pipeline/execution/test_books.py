"""Several runs that share their workers: which unit is next, and what a worker keeps."""

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit.jobs import digests, execute, rows
from kit.plugins import SITE

import kintsugi.pipeline.execution.stage as stage_module
from kintsugi.errors import JobError
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution.books import Books
from kintsugi.pipeline.execution.ledger import DEATHS_IN_A_ROW
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.local import in_process
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.execution.worker import network_of
from kintsugi.pipeline.execution.workplace import Workplace


def part_of(name: str, *samples: int) -> Part:
    run = SimpleNamespace(job=SimpleNamespace(compute=SimpleNamespace(attempts=2)), folder=Path(name))
    units = [Unit(f"{name}-{i}", "shard", 0, i, i, n, 0, 0) for i, n in enumerate(samples)]
    return Part(run, units)


def begin(books: Books, now: float = 0.0):
    found = books.next(now)
    assert found is not None
    return found


def test_the_next_run_begins_when_nothing_of_the_last_is_left_to_begin():
    books = Books([part_of("a", 1, 3), part_of("b", 2)], [])
    works = [begin(books) for _ in range(3)]
    assert [work.task.unit.unit for _, work in works] == ["a-1", "a-0", "b-0"], "the largest of a run first"
    assert books.next(0) is None
    for book, work in works[::-1]:
        assert book.ledger.committed(work, 1, 1)
    assert books.left() == 0
    assert books.open == []


def test_units_of_as_many_runs_are_counted_as_have_enough():
    begun = []
    parts = (begun.append(name) or part_of(name, 1) for name in "abcd")
    books = Books(parts, [])
    assert books.left() == 1
    assert begun == ["a"], "of a run that is not begun nothing is in memory"
    assert books.left(enough=3) == 3
    assert books.left(enough=9) == 4


def test_a_slow_unit_is_not_done_twice_before_other_runs_have_begun():
    books = Books([part_of("a", 4, 4), part_of("b", 4)], [])
    (book, fast), (_, slow) = begin(books), begin(books)
    book.ledger.committed(fast, 4, now=1)
    assert begin(books, 1e6)[1].task.unit.unit == "b-0"
    assert begin(books, 1e6)[1].task == slow.task


def test_a_worker_keeps_the_prior_for_the_next_run_and_its_rows_are_as_alone(make_job, tmp_path, monkeypatch):
    samplers = {"a": {"name": "ddnm", "steps": 2}, "b": {"name": "conjugate", "steps": 1, "w": 15}}
    jobs = {name: make_job(sampler=of, output=str(tmp_path / name)) for name, of in samplers.items()}
    alone = {
        name: digests(execute(make_job(sampler=of, output=str(tmp_path / f"{name}1"))))
        for name, of in samplers.items()
    }
    loads = []
    original = stage_module.prior_of
    monkeypatch.setattr(stage_module, "prior_of", lambda *of: loads.append(of) or original(*of))
    runs = {name: open_or_plan(job) for name, job in jobs.items()}
    list(in_process([Part(run, list(run.outstanding())) for run in runs.values()], Live()))
    assert len(loads) == 1
    assert {name: digests(run) for name, run in runs.items()} == alone
    assert {row["status"] for run in runs.values() for row in rows(run)} == {"ok"}


def test_the_prior_before_is_gone_when_the_next_is_loaded(make_job, tmp_path, monkeypatch):
    """Two may be too much for a device."""
    monkeypatch.syspath_prepend(str(SITE))
    loaded, there = [], []
    original = stage_module.prior_of

    def prior_of(*of):
        there.append(sum(prior() is not None for prior in loaded))
        found = original(*of)
        loaded.append(weakref.ref(found.prior))
        return found

    monkeypatch.setattr(stage_module, "prior_of", prior_of)
    priors = [{"name": "gaussian", "pause": pause} for pause in (0, 0.001)]
    runs = [
        open_or_plan(make_job(output=str(tmp_path / name), prior=prior))
        for name, prior in zip("ab", priors, strict=True)
    ]
    list(in_process([Part(run, list(run.outstanding())) for run in runs], Live()))
    assert there == [0, 0]


def test_a_network_that_was_made_slower_for_one_run_is_not_that_of_the_next(make_job, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SITE))
    runs = [open_or_plan(make_job(output=str(tmp_path / name), prior={"name": "gaussian"})) for name in "abc"]
    place = Workplace("cpu", lambda job: [])
    first, second = (place.of(run.job, run.folder).stage for run in runs[:2])
    assert second.loaded is first.loaded
    second.memory.slower = True
    assert place.of(runs[2].job, runs[2].folder).stage.loaded is not first.loaded


def test_a_network_is_compiled_for_batches_of_one_size(make_job):
    def network(batch: int | str, mode: str | None, output: str = "a", size: int = 16) -> Any:
        job = make_job(
            output=output, data={"shards": "x", "size": size}, compute={"batch_size": batch, "compile": mode}
        )
        return network_of(job)

    assert network(2, None) == network(4, None, "b", 32)
    assert network(2, "default") == network(2, "default", "b")
    assert network(2, "default") != network(4, "default")
    assert network(2, "default") != network(2, "default", size=32)
    assert network("auto", "default") != network("auto", "default", "b"), "each run finds its own"


def test_another_prior_is_loaded_anew_and_the_time_in_samplers_goes_on(make_job, tmp_path):
    first = open_or_plan(make_job(output=str(tmp_path / "a")))
    other = {"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1, "precision": "bf16"}
    second = open_or_plan(make_job(output=str(tmp_path / "b"), compute=other))
    place = Workplace("cpu", lambda job: [])
    before = place.of(first.job, first.folder)
    assert place.of(first.job, first.folder) is before
    before.stage.seconds["sample"] = 3.0
    after = place.of(second.job, second.folder)
    assert after.stage.loaded is not before.stage.loaded
    assert place.busy == 3.0
    again = place.of(first.job, first.folder)
    assert again.stage.loaded is not after.stage.loaded


def test_workers_that_die_one_after_another_end_the_job_however_small_its_runs(monkeypatch):
    """A broken machine, and no sample, is to blame for the deaths of all runs together."""
    keys = SimpleNamespace(keys=["a", "b"])
    monkeypatch.setattr("kintsugi.pipeline.execution.books.read_members", lambda plan, unit: keys)
    books, deaths = Books([part_of(f"run{number}", 2) for number in range(40)], []), []

    def do_all() -> None:
        while (following := books.next(0)) is not None:
            book, work = following
            if len(work.task.poison) == 2:  # all its samples are recorded as failed
                book.ledger.committed(work, 2, 1)
            else:
                deaths.append(book.run.folder)
                book.ledger.died(work, "gone", workers=2)

    with pytest.raises(JobError, match="workers died one after another"):
        do_all()
    assert len(deaths) == DEATHS_IN_A_ROW + 2
    assert len(set(deaths)) > 1
