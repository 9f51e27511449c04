"""How much fits in memory: found by rehearsal, remembered by the run, and less when it runs out."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

import torch
from pydantic import Field, TypeAdapter

from kintsugi.device import name_of
from kintsugi.errors import JobError
from kintsugi.pipeline.execution.directory import BATCH_SIZE
from kintsugi.pipeline.execution.problems import Problems
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.location import Location, pause
from kintsugi.pipeline.storage.publish import publish_bytes
from kintsugi.priors import speed
from kintsugi.priors.base import NetworkPrior

WAITS = 5  # pauses of 1, 2, 4, … s in a row for memory of the machine, which is not ours alone
NO_MEMORY = ("allocate memory", "not enough memory", "bad_alloc")  # in texts of torch's RuntimeErrors

T = TypeVar("T")


class Memory:
    """Does work in less memory when it runs out.

    Attributes:
        batch_size: samples, or tiles, to be restored at once. notes: what the user should know.
        waits: pauses for memory since work last succeeded.
        slower: whether the network is not compiled any more, or computes activations twice from now on.
    """

    def __init__(self, problems: Problems, prior: NetworkPrior, batch_size: int, notes: list[str]):
        self.problems, self.prior, self.batch_size, self.notes = problems, prior, batch_size, notes
        self.waits = 0
        self.slower = False

    def persist(self, work: Callable[[], T], whole: bool) -> T:
        """What `work` returns, which is called again with less until it fits.

        Too little memory halves the batch, and stays so; when a single image of one tile does not fit,
        activations are computed twice instead of being kept. What a larger image lacks is its own affair.
        Memory of the machine, which others use too, is waited for in the end.

        Args:
            whole: the network sees whole images; of tiles it keeps no activations anyway.

        Raises:
            Exception: what `work` raised, of memory when nothing is left to do.
        """
        before = self.batch_size
        while True:
            seconds = 0.0
            try:
                result = work()
                self.waits = 0
                return result
            except Exception as error:
                if not lacks_memory(error):
                    raise
                change = self.use_less(whole)
                if change is None and not isinstance(error, torch.OutOfMemoryError) and self.waits < WAITS:
                    self.waits += 1
                    seconds = pause(self.waits)
                    change = f"waiting for {seconds:g} s"
                if change is None:
                    if not whole:
                        self.batch_size = before
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            release_memory(self.problems.device)
            self.notes.append(f"out of memory: {change}")
            time.sleep(seconds)

    def use_less(self, whole: bool) -> str | None:
        """Do something about memory that ran out; returns what, or None where nothing is left to do."""
        if len(self.problems.prepared) > 1:
            self.problems.keep(1)
            return "one size of images at a time is kept prepared from now on"
        if self.batch_size > 1:
            self.batch_size = (self.batch_size + 1) // 2
            self.slower |= speed.uncompiled(self.prior)  # else it would be filled up to what does not fit
            return f"batches of {self.batch_size}, not compiled from now on"
        if whole and speed.checkpointed(self.prior):
            self.slower = True
            return "activations are computed twice from now on"
        return None


def lacks_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory for it: torch has no type for the latter."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


def release_memory(device: torch.device, share: float = 1.0) -> None:
    """Give back what torch keeps of a GPU's memory, and use only a share of it from now on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, device)


def largest_batch(
    rehearse: Callable[[int], object], limit: int, device: torch.device, gpus: float = 1.0
) -> int:
    """The largest batch up to `limit` that fits into a GPU's memory, to an eighth.

    A tenth of the memory is left, for what a rehearsal does not show.

    Args:
        rehearse: needs the memory of a batch of this size. gpus: `compute.gpus_per_actor`.
    """
    fits, fails = 0, limit + 1
    share = 0.9 * (gpus if 0 < gpus < 1 else 1.0)
    try:
        while fails - fits > max(1, fits // 8) and fails > 1:
            release_memory(device, share)
            # Doubling until something fails, then halving the interval.
            count = min(max(1, 2 * fits), limit) if fails > limit else (fits + fails) // 2
            try:
                rehearse(count)
                fits = count
            except torch.OutOfMemoryError:
                fails = count
    finally:
        release_memory(device)
    return max(1, fits)  # if nothing fits, `persist` will recompute activations, or say so


@dataclass(frozen=True)
class BatchSize:
    """What `batch_size.json` holds: the batch size of a run, and the device on which it was found."""

    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    device: str


RECORD = TypeAdapter(BatchSize)


def remembered_batch_size(folder: Location, device: torch.device, find: Callable[[], int]) -> int:
    """The batch size of a run, found by its first worker, the same for all; raises as `records.typed`."""
    file = folder / BATCH_SIZE
    if not file.exists():
        found = BatchSize(find(), name_of(device))
        publish_bytes(file, records.sealed(asdict(found)), first=True)
    try:
        return records.typed(RECORD, records.read(file), file).batch_size
    except JobError as error:
        raise JobError(
            f'{error}; write {{"batch_size": N, "device": ""}} there, N being the largest batch_size of its '
            "rows, or remove it if there are none yet"
        ) from error
