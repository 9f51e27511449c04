"""Running units in this process, one after another."""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence

from kintsugi.device import default_device
from kintsugi.pipeline.execution.books import ledger_of, tasks_of
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.ledger import passing_failure
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.memory import lacks_memory
from kintsugi.pipeline.execution.rows import Result
from kintsugi.pipeline.execution.run import Part
from kintsugi.pipeline.execution.worker import Observer
from kintsugi.pipeline.execution.workplace import Workplace


def in_process(parts: Iterable[Part], live: Live) -> Generator[Commit, None, None]:
    """Run the units one after another in this process.

    Storage that fails, and memory that is lacking, is tried again after a pause. What else is raised ends the
    job: here no other process can go on.

    Raises:
        JobError: the storage fails, or memory is lacking, again and again.
    """

    class Display(Observer):
        def on_batch(self, results: Sequence[Result], seconds: Mapping[str, float]) -> None:
            live.in_hand, live.busy = place.in_hand, place.busy
            live.left = (samples - place.in_hand,)

    place = Workplace(default_device(), lambda job: [Display()])
    for part in parts:
        try:
            place.of(part.run.job, part.run.folder)
        except Exception as error:
            if lacks_memory(error):
                raise passing_failure(error) from error
            raise
        live.workers, live.started = 1, live.started or time.perf_counter()
        ledger = ledger_of(part.run, tasks_of(part), live.notes)
        while not live.stopping and (work := ledger.next(time.monotonic())) is not None:
            samples = work.task.unit.samples
            live.in_hand, live.left = 0, (samples,)
            try:
                # The worker has no name here, or it would keep its prior beside that of the next run.
                commit = place.of(part.run.job, part.run.folder).process(work.task)
            except Exception as error:
                if not (isinstance(error, OSError) or lacks_memory(error)):
                    raise
                time.sleep(ledger.storage_failed(work, error))
                continue
            live.notes += commit.notes
            live.in_hand, live.left = 0, ()
            if ledger.committed(work, commit.rows, time.monotonic()):
                yield commit
        if live.stopping:
            return
