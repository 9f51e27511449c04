"""A worker with a stage that is none of ours, and what its observers are told."""

import threading

import numpy as np
import pytest
import torch

from kintsugi.errors import JobError
from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.units import read_members
from kintsugi.pipeline.execution import worker as module
from kintsugi.pipeline.execution.commit import ROWS, read_rows
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.stage import Restored
from kintsugi.pipeline.execution.worker import Observer, Worker


class Copies:
    """Gives every image back; no prior, no sampler."""

    device, batch_size, prior_sha256 = torch.device("cpu"), 2, None

    def __init__(self, job):
        self.convert = Images(job.data.size, "exact")
        self.seconds, self.notes, self.fails, self.ran = {"score": 0.0, "scoring": 0.0}, ["begun"], {}, []

    def begin(self, samples):
        results = self.run(samples)
        return lambda: results

    def run(self, samples):
        keys = [sample.key for sample in samples]
        self.ran += keys
        for key in keys:
            if key in self.fails:
                raise self.fails[key]
        self.seconds["scoring"] += len(keys)
        blank = np.zeros((1, 1, 3), np.uint8)
        made = {"residual": 0.0, "seconds": 0.5, "forwards": 0, "vjps": 0, "batch_size": len(keys)}
        return [
            Restored(metrics={"psnr": 50.0}, **made, restored=s.array, measurement=blank) for s in samples
        ]


class Notebook(Observer):
    def __init__(self):
        self.batches, self.spent, self.units = [], [], 0

    def on_batch(self, results, seconds):
        self.batches.append(["failed" if isinstance(result, str) else "ok" for result in results])
        self.spent.append(seconds["scoring"])

    def on_unit(self, seconds):
        self.units += 1


@pytest.fixture
def work(make_job, monkeypatch):
    """A worker with such a stage, what it observes, and its first unit, of three samples."""
    run = open_or_plan(make_job())
    monkeypatch.setattr(module, "stage_of", lambda job, folder, device, loaded: Copies(job))
    notebook = Notebook()
    return Worker(run.job, run.folder, "cpu", [notebook]), notebook, next(run.units())


def test_any_stage_makes_rows(work):
    worker, _, unit = work
    commit = worker.process(Task(unit))
    rows = read_rows(worker.folder, commit, ROWS.names).to_pylist()
    assert [(row["status"], row["psnr"], row["batch_size"]) for row in rows] == [
        ("ok", 50, 2),
        ("ok", 50, 2),
        ("ok", 50, 1),
    ]
    assert rows[0]["restored"] == rows[0]["truth"]
    assert (commit.prior_sha256, commit.notes, commit.seconds["scoring"]) == (None, ("begun",), 3)
    assert 0 < commit.seconds["score"] < commit.seconds["total"], "the worker waits for scores made beside it"
    assert commit.sample_seconds == [0.5] * 3
    assert worker.stage.notes == []


def test_a_batch_is_scored_while_the_next_is_restored(work):
    worker, _, unit = work
    second, overlapped, begun = threading.Event(), [], []

    def begin(samples):
        begun.append(len(samples))
        if len(begun) == 2:
            second.set()
            return lambda: worker.stage.run(samples)
        return lambda: overlapped.append(second.wait(20)) or worker.stage.run(samples)

    worker.stage.begin = begin
    commit = worker.process(Task(unit))
    assert (begun, overlapped, commit.rows) == ([2, 1], [True], 3)


def test_scores_that_lack_memory_are_made_again_with_all_the_stage_can_do(work):
    worker, _, unit = work

    def lacking():
        raise torch.OutOfMemoryError

    worker.stage.begin = lambda samples: lacking
    rows = read_rows(worker.folder, worker.process(Task(unit)), ROWS.names).to_pylist()
    assert [(row["status"], row["batch_size"]) for row in rows] == [("ok", 2), ("ok", 2), ("ok", 1)]


def test_observers_hear_of_what_was_done_and_nothing_of_what_was_skipped(work):
    worker, told, unit = work
    worker.stage.fails = {"image_001": ValueError("KeyError: 'not to be done now'")}
    worker.process(Task(unit))
    assert told.batches == [["ok", "failed"], ["ok"]], "an error is one, whatever its text"
    assert sum(told.spent) == 2
    worker.process(Task(unit))
    assert len(told.batches) == 2, "what is found done is no batch"
    worker.stage.fails, worker.stage.ran = {}, []
    commit = worker.process(Task(unit, failed_only=True))
    assert told.batches[2:] == [["ok"], []]
    assert worker.stage.ran == ["image_001"]
    assert (commit.failed, commit.sample_seconds) == (0, [0.5] * 3)
    assert told.units == 3


def test_observers_hear_of_probes_which_are_no_units(work):
    worker, told, unit = work
    worker.probe(unit, 1, 2)
    assert (told.batches, told.units, worker.in_hand) == ([["ok"], []], 0, 0)


@pytest.mark.parametrize("error", [JobError("a file changed"), torch.AcceleratorError("the GPU is lost")])
def test_what_says_nothing_of_the_sample_ends_the_unit(work, error):
    worker, told, unit = work
    worker.stage.fails = {"image_002": error}
    with pytest.raises(type(error)):
        worker.process(Task(unit))
    assert worker.stage.ran.count("image_002") == 1
    assert told.units == 1, "it was in hand all the same"


def test_the_in_hand_is_told_before_the_observers_are(work):
    worker, told, unit = work
    seen = []
    told.on_batch = lambda results, seconds: seen.append(worker.in_hand)
    worker.process(Task(unit))
    assert (seen, worker.in_hand) == ([2, 3], 0)


def test_skipped_samples_keep_their_place_and_are_not_decoded(work):
    worker, _, unit = work
    decoded = []

    def convert(content, note):
        decoded.append(1)
        return np.zeros((1, 1, 3), np.uint8)

    members = read_members(worker.folder / "plan.parquet", unit)
    refused = ValueError("not this one")
    batches = list(read_unit(unit, members, convert, 2, {"image_000"}, {"image_001": refused}.get))
    found = [(s.key, s.skipped, s.error, s.image is None) for batch in batches for s in batch]
    assert found == [
        ("image_000", True, None, True),
        ("image_001", False, "ValueError: not this one", True),
        ("image_002", False, None, False),
    ]
    assert decoded == [1]
