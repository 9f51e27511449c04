"""A device and the workers there, of one run after another."""

from collections.abc import Callable, Sequence

from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.worker import Observer, Worker, network_of
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.location import Location


class Workplace:
    """A device, and the worker there: of one run after another, keeping what they have in common.

    Args:
        observers: of the worker of a job, as of `Worker`.
    """

    def __init__(self, device: str, observers: Callable[[Job], Sequence[Observer]]):
        self.device, self.observers = device, observers
        self.worker: Worker | None = None
        self.before = 0.0

    def of(self, job: Job, folder: Location) -> Worker:
        """The worker of a run; raises as `Worker`."""
        if self.worker is None or self.worker.folder != folder:
            loaded = None
            last = self.worker
            if last is not None and isinstance(last.stage, Stage) and not last.stage.memory.slower:
                loaded = last.stage.loaded if network_of(last.job) == network_of(job) else None
            # Gone before the next is made, as two priors may be too much for a device.
            self.before, self.worker = self.busy, None
            del last
            self.worker = Worker(job, folder, self.device, self.observers(job), loaded)
        return self.worker

    @property
    def in_hand(self) -> int:
        """Samples finished in the unit that is not committed yet; may be read from another thread."""
        worker = self.worker
        return 0 if worker is None else worker.in_hand

    @property
    def busy(self) -> float:
        """Seconds that all its workers have spent in samplers."""
        worker = self.worker
        return self.before + (0.0 if worker is None else worker.busy)
