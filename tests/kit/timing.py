"""How long work takes, on whichever device."""

import time
from collections.abc import Callable

import torch


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """The fastest of `repeats` runs, after one to warm up, which counts where there are none."""

    def once() -> float:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    first = once()
    return min((once() for _ in range(repeats)), default=first)
