"""Running units on Ray actors, each of which takes the next unit when it is free."""

import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import ray

from kintsugi.errors import JobError, error_text
from kintsugi.pipeline.data.units import Unit
from kintsugi.pipeline.execution import crew
from kintsugi.pipeline.execution.books import Book, Books
from kintsugi.pipeline.execution.cluster import (
    actor_device,
    actor_size,
    capacity,
    connected,
    nodes,
    reason,
    refuse_dead_ray,
)
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.ledger import Task, Work
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.execution.memory import lacks_memory
from kintsugi.pipeline.execution.prometheus import Counts
from kintsugi.pipeline.execution.run import Part, Run
from kintsugi.pipeline.execution.worker import BROKEN_DEVICE, Worker, give_up
from kintsugi.pipeline.execution.workplace import Workplace
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.storage.location import at
from kintsugi.pipeline.storage.publish import alive, this_host
from kintsugi.samplers.external import consent_given

LEAVE_SECONDS = 5.0  # for actors to be gone at the end


class Named(NamedTuple):
    """A run as actors are told of it: its job, and its folder as text."""

    job: dict[str, Any]
    folder: str


class RayWorker:
    """The actor: a `Workplace` whose state can be read while it works."""

    def __init__(self, run: Named, device: str):
        self.workplace = Workplace(device, lambda job: [Counts(config_hash(job))])
        self.worker(run)

    def worker(self, run: Named) -> Worker:
        """That of a run."""
        there = self.workplace.worker
        if there is not None and str(there.folder) == run.folder:  # to check a job takes a while
            return there
        try:
            return self.workplace.of(Job.model_validate(run.job), at(run.folder))
        except (JobError, OSError, BROKEN_DEVICE):
            raise
        except Exception as error:
            if lacks_memory(error):
                raise
            # Else the samples of its first unit would be to blame.
            raise JobError(f"{run.folder}: its workers cannot start: {error_text(error)}") from error

    def process(self, run: Named, task: Task) -> Commit:
        """As `Worker.process`."""
        return self.worker(run).process(task)

    def probe(self, run: Named, unit: Unit, first: int, last: int) -> None:
        """As `Worker.probe`."""
        self.worker(run).probe(unit, first, last)

    def place(self) -> tuple[str, int]:
        """The machine, as `this_host` names it, and the process."""
        return this_host(), os.getpid()

    def state(self) -> tuple[int, float]:
        """Samples in hand, and seconds spent in the sampler."""
        return self.workplace.in_hand, self.workplace.busy

    def leave(self) -> None:
        """End this process, whatever it is doing."""
        os._exit(0)


def on_ray(
    parts: Sequence[Part], live: Live, address: str | None, worker: type[RayWorker] = RayWorker
) -> Generator[Commit, None, None]:
    """Run the units on Ray actors.

    Args:
        parts: of runs whose actors are alike. worker: the actors' class.
        address: of a cluster; None or "local": a Ray that ends with the job.

    Raises:
        JobError: no cluster at the address, the actors cannot start, or the storage fails.
    """
    with connected(address):
        pool = Pool(parts, live, worker)
        try:
            yield from pool.work()
        finally:
            pool.close()


class Pool:
    """The driver's side: gives the actors what the ledgers say, and tells these what came of it.

    An actor that dies, or whose unit raises (a broken GPU fails everything after it), is replaced.

    Args:
        parts, worker: as of `on_ray`.
    """

    def __init__(self, parts: Sequence[Part], live: Live, worker: type[RayWorker] = RayWorker):
        first = parts[0].run
        self.job, self.live, self.books = first.job, live, Books(parts, live.notes)
        self.size = actor_size(self.job, nodes(), live)
        actor_class = ray.remote(worker).options(
            num_cpus=self.size.cpus,
            num_gpus=self.size.gpus,
            max_restarts=0,  # a dead actor is replaced here, where its unit is known
            max_task_retries=0,
            max_concurrency=2,  # process or probe, and state or leave beside it
            runtime_env={"env_vars": consent} if (consent := consent_given()) else None,
        )
        device = actor_device(self.size)
        # With the run in hand: one that is finished may have another prior.
        self.crew = crew.Crew(lambda: actor_class.remote(named(self.books.open[0].run), device), live)
        self.working: dict[Any, tuple[crew.Actor, Book, Work]] = {}  # by the reference to what comes of it

    def work(self) -> Iterator[Commit]:
        """The commits, as they come.

        Raises:
            JobError: as `on_ray`.
        """
        while self.books.left():
            refuse_dead_ray()
            if not self.live.stopping:
                self.crew.scale(self.wanted)
                self.assign()
            elif not self.working:
                return
            for reference in self.ready():
                if reference in self.crew.starting:
                    self.crew.started(reference)
                elif (commit := self.settle(reference)) is not None:
                    self.live.in_hand = max(0, self.live.in_hand - commit.rows)  # until the next state
                    yield commit
            if self.crew.poll():
                self.show_left()
            for actor in self.crew.frozen():  # whose answers would have been heard just now
                yield from self.replace(actor)

    def ready(self) -> list[Any]:
        """All references that have come to something, the first of which is waited for a moment."""
        references = [*self.crew.starting, *self.working]
        if not references:
            time.sleep(crew.POLL_SECONDS)
            return []
        return crew.ready(references) if ray.wait(references, timeout=crew.POLL_SECONDS)[0] else []

    def close(self) -> None:
        """End the actors, and wait for those at work, so that nothing is written after what is cleared next.

        These end themselves, as Ray calls an actor that it kills dead before its process is. Ray notices that
        one has left when its connection closes, which also is before its process has ended.
        """
        at_work = [actor for actor, _, _ in self.working.values()]
        until = time.monotonic() + LEAVE_SECONDS
        leaving = [actor.handle.leave.remote() for actor in at_work]
        if leaving:
            ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)
        for process in [actor.process for actor in at_work if actor.process is not None]:
            while alive(process) and time.monotonic() < until:
                time.sleep(0.01)
        for handle in (*self.crew.starting.values(), *(actor.handle for actor in self.crew.present)):
            ray.kill(handle)

    def wanted(self) -> int:
        """How many actors the cluster holds and the work needs."""
        actors = self.job.compute.actors
        room = capacity(self.size, nodes()) if actors == "auto" else actors
        return min(room, self.books.left(enough=room))

    def assign(self) -> None:
        """Give every actor that is free something to do, as long as there is something."""
        for actor in self.crew.free():
            if (following := self.books.next(time.monotonic())) is None:
                return
            book, work = following
            if work.inquiry is None:
                reference = actor.handle.process.remote(named(book.run), work.task)
            else:
                suspects = work.inquiry.suspects[-1]
                reference = actor.handle.probe.remote(named(book.run), work.task.unit, *suspects)
            self.working[reference] = actor, book, work
            actor.free = None

    def settle(self, reference: Any) -> Commit | None:
        """What came of a unit, or of a range under inquiry."""
        actor, book, work = self.working.pop(reference)
        try:
            commit: Commit = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, JobError):
                raise cause from error
            if isinstance(cause, OSError):  # another actor may see the storage meanwhile
                actor.free = time.monotonic() + book.ledger.storage_failed(work, cause)
                return None
            self.crew.dismiss(actor)
            return self.after_death(book, work, reason(error))
        actor.free, actor.ended, actor.in_hand = 0.0, time.monotonic(), 0
        if work.inquiry is not None:
            book.ledger.survived(work)
            return None
        self.live.notes += commit.notes
        return commit if book.ledger.committed(work, commit.rows, time.monotonic()) else None

    def after_death(self, book: Book, work: Work, why: str) -> Commit | None:
        """Tell the ledger; returns the commit of a unit that is given up."""
        hopeless = book.ledger.died(work, why, self.crew.most)
        if hopeless is None:
            return None
        commit = give_up(book.run.job, book.run.folder, hopeless, why)
        return commit if book.ledger.close(hopeless.unit) else None

    def replace(self, actor: crew.Actor) -> Iterator[Commit]:
        """Replace an actor that does not answer. If it wakes up, it writes what the other one wrote.

        It counts as dead: a sample may be what froze it.
        """
        why = f"a worker has not answered for {crew.FROZEN_SECONDS:.0f} s and is replaced"
        self.crew.dismiss(actor)
        held = [reference for reference, (other, _, _) in self.working.items() if other is actor]
        for reference in held:
            _, book, work = self.working.pop(reference)
            if (commit := self.after_death(book, work, why)) is not None:
                yield commit
        if not held:
            self.live.notes.append(why)

    def show_left(self) -> None:
        """Tell the display what is left of the units in hand."""
        self.live.left = tuple(
            max(0, work.task.unit.samples - actor.in_hand) for actor, _, work in self.working.values()
        )


def named(run: Run) -> Named:
    """What actors are told."""
    return Named(run.job.model_dump(), str(run.folder))
