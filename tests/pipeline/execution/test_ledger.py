"""The bookkeeping of executors by itself: no Ray, no workers, and a clock of the tests' own."""

import random

import pytest

from kintsugi.errors import JobError
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution.bisect import DEATHS, Inquiry
from kintsugi.pipeline.execution.ledger import DEATHS_IN_A_ROW, SLOW, SLOW_SECONDS, Ledger, Task

DISK = OSError("disk full")


def unit_of(number: int, samples: int = 4) -> Unit:
    return Unit(f"00000-{number:07d}", "shard", 0, number, number, samples, 0, 0)


def keys_of(unit: Unit) -> list[str]:
    return [f"{unit.start}-{place}" for place in range(unit.samples)]


def ledger_of(units: int = 2, attempts: int = 2, samples: int = 4) -> Ledger:
    tasks = [Task(unit_of(number, samples)) for number in range(units)]
    return Ledger(tasks, attempts, keys_of, [])


def begin(ledger: Ledger, now: float = 0.0):
    work = ledger.next(now)
    assert work is not None
    return work


def test_units_come_in_order_and_each_once():
    ledger = ledger_of(3)
    works = [begin(ledger) for _ in range(3)]
    assert [work.task.unit.start for work in works] == [0, 1, 2]
    assert ledger.next(0) is None
    assert all(ledger.committed(work, 4, 1) for work in works)
    assert ledger.left() == 0
    assert ledger.next(100) is None
    assert ledger.notes == []


def test_a_slow_unit_is_done_twice_and_its_first_commit_counts():
    ledger = ledger_of(2)
    fast, slow = begin(ledger), begin(ledger)
    ledger.committed(fast, 4, now=8)  # 2 s for each sample
    assert ledger.next(SLOW * 8) is None
    copy = begin(ledger, SLOW * 8 + 0.1)
    assert copy.task == slow.task
    assert ledger.next(1e6) is None, "two workers are enough"
    assert ledger.committed(copy, 4, 20)
    assert not ledger.committed(slow, 4, 21)
    assert ledger.left() == 0


def test_a_unit_that_is_quick_is_not_called_slow_at_once():
    ledger = ledger_of(2)
    fast, _ = begin(ledger), begin(ledger)
    ledger.committed(fast, 4, now=0.01)
    assert ledger.next(SLOW_SECONDS) is None
    assert ledger.next(SLOW_SECONDS + 0.1) is not None


def test_storage_is_tried_again_after_longer_and_longer_and_then_ends_the_job():
    ledger = ledger_of(2, attempts=3)
    work = begin(ledger)
    assert ledger.storage_failed(work, DISK) == 1
    again = begin(ledger)
    assert again.task.unit == work.task.unit, "before the others"
    assert ledger.storage_failed(again, MemoryError("no memory")) == 2
    assert ledger.notes == [
        "unit 00000-0000000, storage: disk full; trying again",
        "unit 00000-0000000, out of memory: no memory; trying again",
    ]
    with pytest.raises(JobError, match=r"storage: disk full; the same command continues"):
        ledger.storage_failed(begin(ledger), DISK)
    assert ledger.left() == 2


@pytest.mark.parametrize("fate", ["storage_failed", "died"])
def test_what_becomes_of_a_second_copy_counts_for_nothing(fate):
    """With one attempt, either would end the job or begin an inquiry if its unit were not committed."""
    ledger = ledger_of(2, attempts=1)
    fast, slow = begin(ledger), begin(ledger)
    ledger.committed(fast, 4, now=1)
    copy = begin(ledger, 100)
    ledger.committed(copy, 4, now=101)
    if fate == "died":
        assert ledger.died(slow, "killed") is None
    else:
        assert ledger.storage_failed(slow, DISK) > 0
    assert ledger.notes == []
    assert ledger.next(200) is None


def test_a_death_while_a_copy_goes_on_does_not_begin_a_third():
    ledger = ledger_of(2)
    fast, slow = begin(ledger), begin(ledger)
    ledger.committed(fast, 4, now=1)
    copy = begin(ledger, 100)
    assert ledger.died(slow, "killed") is None
    assert ledger.next(100) is None
    assert ledger.committed(copy, 4, now=101)


def die_of(poison: set[str], ledger: Ledger, accidents: dict[str, int]) -> list[Task]:
    """Work until nothing is left: a worker dies of poison, and so many times by accident in a unit."""
    given_up = []
    while (work := ledger.next(0)) is not None:
        unit = work.task.unit
        keys = keys_of(unit)
        if work.inquiry is not None:
            first, last = work.inquiry.suspects[-1]
            keys = keys[first:last]
        bad = poison & set(keys) - work.task.poison
        if bad or (work.inquiry is None and accidents.get(unit.unit, 0)):
            if not bad:
                accidents[unit.unit] -= 1
            if (hopeless := ledger.died(work, "killed")) is not None:
                assert ledger.close(hopeless.unit)
                given_up.append(hopeless)
        elif work.inquiry is not None:
            ledger.survived(work)
        else:
            assert ledger.committed(work, len(keys), 0)
    assert ledger.left() == 0
    assert not ledger.in_hand
    return given_up


@pytest.mark.parametrize("attempts", [1, 3])
def test_poison_is_found_and_the_rest_of_its_unit_done(attempts):
    ledger = ledger_of(3, attempts, samples=8)
    assert die_of({"1-2", "1-7"}, ledger, {}) == []
    said = [note for note in ledger.notes if "recorded as failed" in note]
    assert said == [f"{key}: its restoration ends the process, recorded as failed" for key in ("1-2", "1-7")]
    assert sum("attempt" in note for note in ledger.notes) == attempts


def test_a_unit_whose_workers_die_though_no_sample_is_to_blame_is_given_up():
    ledger = ledger_of(2, attempts=2)
    (hopeless,) = die_of(set(), ledger, {"00000-0000001": 100})
    assert hopeless.unit.start == 1
    assert hopeless.attempt == 5, "twice as many deaths as attempts, and the attempt after them"
    assert [note for note in ledger.notes if "searching" in note] == [
        "unit 00000-0000001: searching for the samples that end its worker"
    ]


def test_workers_that_die_whatever_they_do_end_the_job():
    ledger = ledger_of(100, attempts=10)
    for _ in range(DEATHS_IN_A_ROW + 2 - 1):
        assert ledger.died(begin(ledger), "killed", workers=2) is None
    with pytest.raises(JobError, match=r"32 workers died one after another, the last of them so: killed; "):
        ledger.died(begin(ledger), "killed", workers=2)


def test_any_success_begins_the_row_anew():
    ledger = ledger_of(100, attempts=10)
    for number in range(2 * DEATHS_IN_A_ROW):
        if number % DEATHS_IN_A_ROW == 0:
            ledger.committed(begin(ledger), 4, 0)
        ledger.died(begin(ledger), "killed")


def test_storage_that_fails_under_an_inquiry_goes_on_with_it():
    ledger = ledger_of(1, attempts=2)
    for _ in range(2):
        ledger.died(begin(ledger), "killed")
    work = begin(ledger)
    assert work.inquiry is not None
    suspects = list(work.inquiry.suspects)
    ledger.storage_failed(work, DISK)
    again = begin(ledger)
    assert again.inquiry is work.inquiry
    assert again.inquiry.suspects == suspects


@pytest.mark.parametrize("seed", range(40))
def test_an_inquiry_finds_exactly_the_poison_whatever_else_happens_once(seed):
    """Any set of samples that always kill, and accidents, of which none meets the same sample alone twice."""
    rng = random.Random(seed)
    samples = rng.randint(1, 70)
    poison = set(rng.sample(range(samples), rng.randint(0, min(samples, 6))))
    inquiry = Inquiry(samples)
    accidents, tried, deaths = set(), 0, 0
    while not inquiry.finished:
        first, last = inquiry.suspects[-1]
        accident = rng.random() < 0.2 and (first, last) not in accidents
        if accident:
            accidents.add((first, last))
        tried += 1
        if accident or poison & set(range(first, last)):
            deaths += 1
            inquiry.died()
        else:
            inquiry.survived()
    assert set(inquiry.poison) == poison
    assert len(inquiry.poison) == len(poison)
    assert tried <= 2 * samples + DEATHS * samples
    if not accidents:
        assert deaths <= len(poison) * (samples.bit_length() + DEATHS)
