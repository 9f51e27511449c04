"""Two ways to run units: in this process, and on Ray actors. Both run `Worker.process_unit`."""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.commit import Commit
from pipeline.job import Job, JobError
from pipeline.plan import Unit
from pipeline.worker import Worker, give_up

POLL_SECONDS = 0.5
START_ATTEMPTS = 3


@dataclass
class Live:
    """What a running job tells its display; updated in place by the executor.

    Attributes:
        in_hand: samples finished in units that are not committed yet.
        busy: seconds that the workers have spent in samplers; busy_retired: those that are gone.
        started: when the first worker was ready, by time.perf_counter.
        notes: what the user should know.
    """

    in_hand: int = 0
    busy: float = 0.0
    busy_retired: float = 0.0
    workers: int = 0
    started: float | None = None
    notes: list[str] = field(default_factory=list)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_process(job: Job, run: Path, units: Iterable[Unit], live: Live) -> Generator[Commit, None, None]:
    """Run the units one after another in this process."""

    def update() -> None:
        live.in_hand, live.busy = worker.in_hand, worker.busy

    worker = Worker(job, run, default_device(), on_batch=update)
    live.workers, live.started = 1, time.perf_counter()
    for unit in units:
        commit = worker.process_unit(unit, attempt=1)
        live.in_hand = 0
        live.notes += commit.notes
        yield commit


def on_ray(
    job: Job, run: Path, units: Iterable[Unit], live: Live, address: str | None
) -> Generator[Commit, None, None]:
    """Run the units on Ray actors, each of which takes the next unit when it is free.

    Raises:
        JobError: no cluster at the address, or the actors cannot start.
    """
    with connected(address):
        pool = Pool(job, run, units, live)
        try:
            yield from pool.work()
        finally:
            pool.close()


class Pool:
    """The driver's side: actors, the queue of units, and what to do when one of them fails.

    An actor that dies, or whose unit raises (a broken GPU fails everything after it), is replaced and
    the unit tried again; after `compute.attempts` failures the unit is committed as failed rows and
    the job goes on. Actors for which the cluster has no room yet wait for it and start when it has.
    """

    def __init__(self, job: Job, run: Path, units: Iterable[Unit], live: Live):
        import ray

        self.job, self.run, self.live, self.ray = job, run, live, ray
        self.queue = deque(units)
        self.attempts: Counter[str] = Counter()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.size = actor_size(job, nodes, live)
        self.actor_class = ray.remote(RayWorker).options(
            num_cpus=self.size.cpus,
            num_gpus=self.size.gpus,
            max_restarts=0,  # a dead actor is replaced here, where its unit is known
            max_task_retries=0,
            max_concurrency=2,  # process_unit, and state beside it
        )
        self.starting: dict[Any, Any] = {}  # reference → actor
        self.working: dict[Any, tuple[Any, Unit]] = {}  # reference → (actor, its unit)
        self.states: dict[Any, tuple[int, float]] = {}  # actor → (samples in hand, seconds busy)
        self.asked: dict[Any, Any] = {}  # reference to a state → actor
        self.last_asked = 0.0
        self.failed_starts = 0

    def work(self) -> Iterator[Commit]:
        for _ in range(min(self.size.count, len(self.queue))):
            self.hire()
        while self.queue or self.working:
            references = [*self.starting, *self.working, *self.asked]
            ready, _ = self.ray.wait(references, timeout=POLL_SECONDS)
            for reference in ready:
                if reference in self.asked:
                    self.note_state(reference)
                elif (commit := self.settle(reference)) is not None:
                    self.live.in_hand = max(0, self.live.in_hand - commit.rows)  # until the next state
                    yield commit
            self.ask_states()

    def close(self) -> None:
        for actor in (*self.starting.values(), *self.states):
            self.ray.kill(actor)

    def hire(self) -> None:
        device = "cuda" if self.size.gpus else "cpu"
        actor = self.actor_class.remote(self.job.model_dump(), str(self.run), device)
        self.starting[actor.state.remote()] = actor

    def assign(self, actor: Any) -> None:
        """Give a free actor the next unit, or let it go."""
        if self.queue:
            unit = self.queue.popleft()
            self.working[actor.process_unit.remote(unit, self.attempts[unit.unit] + 1)] = (actor, unit)
        else:
            self.dismiss(actor)

    def dismiss(self, actor: Any) -> None:
        self.live.busy_retired += self.states.pop(actor, (0, 0.0))[1]
        self.ray.kill(actor)

    def settle(self, reference: Any) -> Commit | None:
        """What came of a start or a unit: the next unit for its actor, or another actor for its unit."""
        unit: Unit | None = None
        if reference in self.starting:
            actor = self.starting.pop(reference)
        else:
            actor, unit = self.working.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.dismiss(actor)
            if unit is None:
                self.after_failed_start(error)
                return None
            return self.after_failed_unit(unit, reason(error))
        self.states.setdefault(actor, (0, 0.0))
        if self.live.started is None:
            self.live.started = time.perf_counter()
        self.assign(actor)
        if unit is None:
            return None
        commit: Commit = result
        self.live.notes += commit.notes
        return commit

    def after_failed_start(self, error: Exception) -> None:
        self.failed_starts += 1
        if self.failed_starts >= START_ATTEMPTS and not self.states:
            raise JobError(f"the workers cannot start: {reason(error)}") from error
        if self.failed_starts < START_ATTEMPTS:
            self.hire()
        else:  # the others go on without it
            self.live.notes.append(f"one worker less: {reason(error)}")

    def after_failed_unit(self, unit: Unit, why: str) -> Commit | None:
        self.attempts[unit.unit] += 1
        attempt = self.attempts[unit.unit]
        self.live.notes.append(f"unit {unit.unit}, attempt {attempt}: {why}")
        given_up = attempt >= self.job.compute.attempts
        if not given_up:
            self.queue.append(unit)
        if self.queue:
            self.hire()
        return give_up(self.job, self.run, unit, attempt, why) if given_up else None

    def ask_states(self) -> None:
        """Twice a second, have one question for its state under way to every actor, for the display."""
        if time.monotonic() - self.last_asked < POLL_SECONDS:
            return
        self.last_asked = time.monotonic()
        waiting = set(self.asked.values())
        for actor in self.states:
            if actor not in waiting:
                self.asked[actor.state.remote()] = actor
        self.live.workers = len(self.states)

    def note_state(self, reference: Any) -> None:
        actor = self.asked.pop(reference)
        try:
            state = self.ray.get(reference)
        except self.ray.exceptions.RayError:
            return  # `settle` learns of it from the unit's reference
        if actor in self.states:
            self.states[actor] = state
        self.live.in_hand = sum(in_hand for in_hand, _ in self.states.values())
        self.live.busy = self.live.busy_retired + sum(busy for _, busy in self.states.values())


class RayWorker:
    """The actor: a `Worker` whose state can be read while it works."""

    def __init__(self, job: dict[str, Any], run: str, device: str):
        self.worker = Worker(Job.model_validate(job), Path(run), device)

    def process_unit(self, unit: Unit, attempt: int) -> Commit:
        return self.worker.process_unit(unit, attempt)

    def state(self) -> tuple[int, float]:
        return self.worker.in_hand, self.worker.busy


@dataclass(frozen=True)
class ActorSize:
    count: int
    cpus: float
    gpus: float


def actor_size(job: Job, nodes: list[dict[str, float]], live: Live) -> ActorSize:
    """How many actors the nodes of a cluster hold, and what each of them asks for.

    Args:
        nodes: resources of each node, {"CPU": 96, "GPU": 8}.

    Raises:
        JobError: not one actor fits.
    """
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    wanted = job.compute.gpus_per_actor
    if wanted and not gpus:
        live.notes.append(f"no GPU in the cluster: running on {cpus:g} CPU cores")
        wanted = 0.0
    if wanted:
        places = [(node.get("CPU", 0.0), math.floor(node.get("GPU", 0.0) / wanted)) for node in nodes]
        count = sum(n for _, n in places)
        # All the GPUs of a node are used, even if each actor then gets fewer cores than it asked for.
        share = min((c / n for c, n in places if n), default=0.0)
    else:
        share = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    per_actor = min(float(job.compute.cpus_per_actor), share if share < 1 else math.floor(share))
    if not wanted:
        count = sum(math.floor(node.get("CPU", 0.0) / per_actor) for node in nodes) if per_actor else 0
    if count == 0:
        raise JobError(
            f"compute: no node holds an actor of {wanted:g} GPUs (gpus_per_actor); the cluster has "
            f"{gpus:g} GPUs and {cpus:g} CPU cores on {len(nodes)} nodes"
        )
    if job.compute.actors != "auto":
        count = min(count, job.compute.actors)
    return ActorSize(count, per_actor, wanted)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a local one that ends with the job."""
    import ray

    if ray.is_initialized():  # the caller's own connection: used and left as it is
        yield
        return
    local = address in (None, "local")
    try:
        ray.init(
            address="local" if local else address,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise JobError(f"--address {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def reason(error: Exception) -> str:
    """The last line of a Ray error: the exception the worker raised, or how it died."""
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'the worker died'}"
