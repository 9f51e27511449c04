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
    size: Callable[[B], int] | None = None,
    room: int = 0,
) -> Generator[B, None, None]:
    """function(item) of each item, in order; some are worked on before they are asked for.

    The items are taken one after another in a thread of their own: to get one may take time, too. An error of
    the function stands where its result would, one of the items behind all results, and either is the end.
    When the iterator is closed no more items are taken, nothing more is begun, and all threads have ended.

    Args:
        threads: in which the function runs.
        most: how many results may be worked on or wait. None: two for each thread.
        size, room: bytes of a result, and for all that wait, of which each may be as large as the largest so
            far; while none is known, and where fewer have room, there are as many as threads.
    """
    most = most or 2 * threads
    waiting: deque[Future[B] | None] = deque()  # None: there are no more
    changed = threading.Condition()
    closed, largest = False, 0

    def free() -> bool:
        fit = most if size is None else max(threads, room // largest) if largest else threads
        return closed or len(waiting) < min(fit, most)

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

    with ThreadPoolExecutor(threads) as pool:
        producer = threading.Thread(target=produce, name="ahead", daemon=True)
        producer.start()
        try:
            while True:
                with changed:
                    changed.wait_for(lambda: waiting)
                    future = waiting[0]
                if future is None:
                    return
                result = future.result()
                with changed:
                    waiting.popleft()
                    largest = max(largest, 1 if size is None else size(result), 1)
                    changed.notify()
                yield result
        finally:
            with changed:
                closed = True
                changed.notify()
            producer.join()
            pool.shutdown(cancel_futures=True)
