"""What the driver knows of its actors, and how often it asks; the actors are stand-ins, without Ray."""

from types import SimpleNamespace

import pytest

from kintsugi.pipeline.execution import crew as module
from kintsugi.pipeline.execution.crew import POLLED, Actor, Crew
from kintsugi.pipeline.execution.live import Live


class Handle:
    """Says what it is given; counts how often it is asked."""

    def __init__(self, in_hand=1):
        self.in_hand, self.asked = in_hand, 0
        self.state = SimpleNamespace(remote=self.ask)

    def ask(self):
        self.asked += 1
        return self, self.asked


@pytest.fixture
def crew(monkeypatch):
    """One whose every poll is due, of three times as many actors as are asked at once."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(module.ray, "wait", lambda references, **_: (references, []))
    monkeypatch.setattr(module.ray, "get", lambda reference: (reference[0].in_hand, 2.0))
    found = Crew(lambda: None, Live())
    found.present = [Actor(Handle(), None, free=None) for _ in range(3 * POLLED)]
    return found


def test_all_actors_are_asked_in_turn_and_few_at_once(crew):
    handles = [actor.handle for actor in crew.present]
    for turn in range(6):
        assert crew.poll()
        assert len(crew.asked) == POLLED
        assert sum(handle.asked for handle in handles) == POLLED * (turn + 1)
    assert {handle.asked for handle in handles} == {2}
    crew.poll()
    assert (crew.live.workers, crew.live.in_hand, crew.live.busy) == (3 * POLLED, 3 * POLLED, 6.0 * POLLED)


def test_a_state_of_before_the_end_of_a_unit_does_not_count_twice(crew):
    crew.present = crew.present[:1]
    (actor,) = crew.present
    actor.handle.in_hand = 7
    crew.poll()
    actor.ended = module.time.monotonic()
    crew.poll()
    assert (crew.live.in_hand, crew.live.busy) == (0, 2.0)
    crew.poll()
    assert crew.live.in_hand == 7


def test_who_does_not_answer_is_frozen_and_is_not_asked_again(crew, monkeypatch):
    monkeypatch.setattr(module.ray, "wait", lambda references, **_: ([], references))
    monkeypatch.setattr(module, "FROZEN_SECONDS", -1.0)
    crew.present = crew.present[:2]
    crew.poll()
    crew.poll()
    assert [actor.handle.asked for actor in crew.present] == [1, 1]
    assert set(map(id, crew.frozen())) == set(map(id, crew.present))
