"""Work ahead: in order, bounded, with every error in its place, and no thread left behind."""

import threading
import time
from collections.abc import Iterator

import pytest

from kintsugi.ahead import map_ahead


def slow_square(number: int) -> int:
    """The earlier the item, the longer it takes."""
    time.sleep(0.02 if number % 4 == 0 else 0.0)
    return number**2


class Items:
    """Numbers, which count how many of them were taken."""

    def __init__(self, count: int):
        self.count, self.taken = count, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.count):
            self.taken += 1
            yield number


def settled(items: Items) -> int:
    """How many items are taken when no more are."""
    before = -1
    while before != items.taken:
        before = items.taken
        time.sleep(0.05)
    return before


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 3, 50])
@pytest.mark.parametrize(("threads", "most"), [(1, 1), (3, None), (4, 2)])
def test_results_come_in_order_whatever_each_takes(count, threads, most):
    expected = [number**2 for number in range(count)]
    assert list(map_ahead(slow_square, range(count), threads, most)) == expected


def test_work_goes_on_while_nobody_asks():
    items = Items(100)
    results = map_ahead(slow_square, items, 2, 5)
    assert items.taken == 0  # it begins when it is asked for the first time
    assert next(results) == 0
    # One was given, five wait, and the next item is at hand.
    assert settled(items) == 1 + 5 + 1
    results.close()


def test_items_that_take_time_are_taken_while_the_results_are_used():
    def items() -> Iterator[int]:
        for number in range(5):
            time.sleep(0.1)
            yield number

    started = time.perf_counter()
    for _ in map_ahead(lambda number: number, items(), 1):
        time.sleep(0.1)
    assert time.perf_counter() - started < 0.9  # one after the other it takes 1.0 s


def test_as_many_run_at_once_as_there_are_threads():
    both = threading.Barrier(3, timeout=10)
    assert list(map_ahead(lambda number: both.wait() >= 0, range(6), 3)) == [True] * 6


@pytest.mark.parametrize(
    ("size", "room", "waiting"),
    [
        (10, 40, 4),  # four have room
        (10, 1000, 8),  # `most` is less
        (10, 5, 2),  # none has, but threads must have something to do
        (0, 40, 8),
    ],
)
def test_large_results_are_fewer(size, room, waiting):
    items = Items(100)
    results = map_ahead(slow_square, items, 2, 8, lambda result: size, room)
    next(results)
    assert settled(items) == 1 + waiting + 1
    results.close()


def test_until_a_size_is_known_there_are_as_many_as_threads():
    items, first = Items(100), threading.Event()
    results = map_ahead(lambda number: first.wait(10), items, 2, 8, lambda result: 1, 1000)
    taker = threading.Thread(target=lambda: next(results))
    taker.start()
    assert settled(items) == 2 + 1
    first.set()
    taker.join()
    results.close()


@pytest.mark.slow
def test_the_largest_so_far_counts():
    items = Items(100)
    results = map_ahead(lambda number: 100 if number == 3 else 1, items, 2, 50, lambda result: result, 400)
    for _ in range(4):
        next(results)
    taken = settled(items)
    for _ in range(taken - 4 - 5):  # what was begun before is not undone, and the next one is at hand
        next(results)
        assert settled(items) == taken
    assert [next(results), next(results)] == [1, 1]
    assert settled(items) > taken
    results.close()


def test_an_error_of_the_function_stands_where_its_result_would():
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return slow_square(number)

    results = map_ahead(work, range(100), 4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("error", [OSError("storage"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_the_items_comes_behind_all_results(error):
    def items() -> Iterator[int]:
        yield from range(3)
        raise error

    results = map_ahead(slow_square, items(), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(type(error)):
        next(results)
    assert list(results) == []


def test_abandoned_work_that_was_not_begun_is_not_done():
    begun: list[int] = []
    first = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            first.wait(10)
        return number

    items = Items(100)
    results = map_ahead(work, items, 1, 10)
    assert next(results) == 0
    assert settled(items) == 12
    ended = threading.Thread(target=results.close)
    ended.start()
    time.sleep(0.1)
    assert ended.is_alive()  # it waits for what is being worked on
    first.set()
    ended.join()
    assert begun == [0, 1]
    assert items.taken == 12


def test_an_iterator_that_nobody_keeps_ends():
    items = Items(100)
    assert next(map_ahead(slow_square, items, 2)) == 0
    taken = items.taken
    time.sleep(0.1)
    assert items.taken == taken


def test_an_error_where_the_results_are_used_ends_the_threads():
    def use() -> None:
        for result in map_ahead(slow_square, range(100), 3):
            1 / result

    with pytest.raises(ZeroDivisionError):
        use()
