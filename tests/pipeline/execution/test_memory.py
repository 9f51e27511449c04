"""What gives way when memory runs out, in which order, and what is never tried."""

from types import SimpleNamespace

import pytest
import torch

from kintsugi.pipeline.execution import memory
from kintsugi.pipeline.execution.memory import WAITS, Memory


class Problems:
    """Two sizes prepared."""

    device = torch.device("cpu")

    def __init__(self):
        self.prepared = {"small": None, "large": None}

    def keep(self, limit):
        self.prepared = dict(list(self.prepared.items())[-limit:])


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(memory, "time", SimpleNamespace(sleep=found.append))
    return found


def of_device():
    raise torch.OutOfMemoryError("injected")


def of_machine():
    raise MemoryError


def test_what_gives_way_first_costs_least(waits, monkeypatch):
    recomputed = iter([True, False])
    monkeypatch.setattr(memory.speed, "checkpointed", lambda prior: next(recomputed))
    problems, notes, seen = Problems(), [], []
    less = Memory(problems, None, 4, notes)

    def work():
        seen.append((len(problems.prepared), less.batch_size))
        of_device()

    with pytest.raises(torch.OutOfMemoryError):
        less.persist(work, whole=True)
    assert seen == [(2, 4), (1, 4), (1, 2), (1, 1), (1, 1)]
    assert notes == [
        "out of memory: one size of images at a time is kept prepared from now on",
        "out of memory: batches of 2, not compiled from now on",
        "out of memory: batches of 1, not compiled from now on",
        "out of memory: activations are computed twice from now on",
    ]
    assert less.slower
    assert waits == [0.0] * 4, "a device's memory does not come back by waiting"


def test_a_network_that_fills_up_its_batches_does_so_no_more_when_they_are_halved(waits, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda network, **kwargs: network)
    network = torch.nn.Identity()
    prior, sizes = SimpleNamespace(network=network), []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    assert memory.speed.compiled(prior, "default", 4, lambda: prior.network(torch.ones(4, 1))) is None
    problems = Problems()
    problems.prepared = {}
    less = Memory(problems, prior, 4, [])

    def work():
        prior.network(torch.ones(less.batch_size, 1))
        if sizes[-1] > 2:
            of_device()

    less.persist(work, whole=True)
    prior.network(torch.ones(1, 1))
    assert sizes == [4, 4, 4, 2, 1]
    assert less.slower
    assert prior.network is network


def test_what_does_not_fit_in_tiles_leaves_the_batch_as_it_was(waits, monkeypatch):
    monkeypatch.setattr(memory.speed, "checkpointed", lambda prior: pytest.fail("tiles keep no activations"))
    less = Memory(Problems(), None, 4, [])
    with pytest.raises(torch.OutOfMemoryError):
        less.persist(of_device, whole=False)
    assert less.batch_size == 4


def test_the_machine_is_waited_for_until_something_succeeds(waits):
    kept = Memory(Problems(), None, 4, [])
    for tries, expected in ((1, WAITS), (2, 0), (3, WAITS)):
        if tries == 3:
            assert kept.persist(lambda: "done", whole=False) == "done"
        waits.clear()
        with pytest.raises(MemoryError):
            kept.persist(of_machine, whole=False)
        assert sum(wait > 0 for wait in waits) == expected


def test_what_is_no_lack_of_memory_is_raised_at_once(waits):
    less = Memory(Problems(), None, 4, [])
    with pytest.raises(ValueError, match="bad"):
        less.persist(lambda: int("bad"), whole=True)
    assert (less.notes, waits, less.batch_size, len(less.problems.prepared)) == ([], [], 4, 2)
