"""Running units in this process, one after another."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence

from kintsugi.device import default_device
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.directory import PLAN
from kintsugi.pipeline.execution.ledger import Ledger, Task, passing_failure
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.memory import lacks_memory
from kintsugi.pipeline.execution.rows import Result
from kintsugi.pipeline.execution.worker import Observer, Worker
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.storage.location import Location


def in_process(
    job: Job, folder: Location, units: Iterable[Unit], live: Live, failed_only: bool = False
) -> Generator[Commit, None, None]:
    """Run the units one after another in this process.

    Storage that fails, and memory that is lacking, is tried again after a pause. What else is raised ends the
    job: here no other process can go on.

    Raises:
        JobError: the storage fails, or memory is lacking, again and again.
    """

    class Display(Observer):
        def on_batch(self, results: Sequence[Result], seconds: Mapping[str, float]) -> None:
            live.in_hand, live.busy = worker.in_hand, worker.busy
            live.left = (samples - worker.in_hand,)

    try:
        worker = Worker(job, folder, default_device(), [Display()])
    except Exception as error:
        if lacks_memory(error):
            raise passing_failure(error) from error
        raise
    live.workers, live.started = 1, time.perf_counter()
    tasks = (Task(unit, failed_only=failed_only) for unit in units)
    keys_of = lambda unit: read_members(folder / PLAN, unit).keys  # noqa: E731
    ledger = Ledger(tasks, job.compute.attempts, keys_of, live.notes)
    while not live.stopping and (work := ledger.next(time.monotonic())) is not None:
        samples = work.task.unit.samples
        live.in_hand, live.left = 0, (samples,)
        try:
            commit = worker.process(work.task)
        except Exception as error:
            if not (isinstance(error, OSError) or lacks_memory(error)):
                raise
            time.sleep(ledger.storage_failed(work, error))
            continue
        live.notes += commit.notes
        live.in_hand, live.left = 0, ()
        if ledger.committed(work, commit.rows, time.monotonic()):
            yield commit
