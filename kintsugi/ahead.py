"""Work done ahead of its use, in threads. Loads no torch."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def map_ahead(
    function: Callable[[A], B],
    items: Iterable[A],
    threads: int,
    most: int | None = None,
    size: Callable[[B], int] = lambda result: 0,
    room: int = 0,
) -> Generator[B, None, None]:
    """function(item) of each item, in order; some are worked on before they are asked for.

    The items are taken one after another in a thread of their own: to get one may take time, too. An error of
    the function stands where its result would, one of the items behind all results, and either is the end.
    When the iterator is closed no more items are taken, nothing more is begun, and all threads have ended.

    Args:
        threads: in which the function runs.
        most: how many results may be worked on or wait. None: two for each thread.
        size, room: bytes of a result, and for all of them; each may be as large as the largest so far. Where
            less has room, and until a size is known, there are as many as threads. 0: any number has room.
    """
    waiting: deque[Future[B] | None] = deque()  # None: there are no more
    changed, closed, largest = threading.Condition(), False, 0

    def free() -> bool:
        fit = max(threads, room // largest if largest else 0) if room else len(waiting) + 1
        return closed or len(waiting) < min(fit, most or 2 * threads)

    def produce() -> None:
        end: Future[B] | None = None
        try:
            for item in items:
                with changed:
                    changed.wait_for(free)
                    if closed:
                        return
                    waiting.append(pool.submit(function, item))
                    changed.notify()
        except BaseException as error:  # raised again where the results are taken
            end = Future()
            end.set_exception(error)
        with changed:
            waiting.append(end)
            changed.notify()

    pool, producer = ThreadPoolExecutor(threads), threading.Thread(target=produce, name="ahead", daemon=True)
    producer.start()
    try:
        while (future := first(waiting, changed)) is not None:
            result = future.result()
            with changed:
                waiting.popleft()
                largest = max(largest, size(result), 1)
                changed.notify()
            yield result
    finally:
        with changed:
            closed = True
            changed.notify()
        producer.join()
        pool.shutdown(cancel_futures=True)


def first(waiting: deque[A], changed: threading.Condition) -> A:
    """What stands first, when there is anything."""
    with changed:
        changed.wait_for(lambda: waiting)
        return waiting[0]
