"""Two ways to run units: in this process, and on Ray actors. Both run `Worker.process_unit`."""

import logging
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
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
        notes: what the user should know.
    """

    in_hand: int = 0
    busy: float = 0.0
    busy_retired: float = 0.0
    workers: int = 0
    notes: list[str] = field(default_factory=list)


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def in_process(job: Job, run: Path, units: Iterable[Unit], live: Live) -> Iterator[Commit]:
    """Run the units one after another in this process."""

    def update() -> None:
        live.in_hand, live.busy = worker.in_hand, worker.busy

    worker = Worker(job, run, default_device(), on_batch=update)
    live.workers = 1
    for unit in units:
        commit = worker.process_unit(unit, attempt=1)
        live.in_hand = 0
        yield commit


def on_ray(job: Job, run: Path, units: Iterable[Unit], live: Live, address: str | None) -> Iterator[Commit]:
    """Run the units on Ray actors, each of which takes the next unit when it is free.

    Raises:
        JobError: no cluster at the address, or the actors cannot start.
    """
    with connected(address):
        yield from Pool(job, run, live).work(units)


class Pool:
    """The driver's side: actors, the queue of units, and what to do when an actor dies.

    A dead actor is replaced and its unit tried again; after `compute.attempts` deaths the unit is
    committed as failed rows and the job goes on.
    """

    def __init__(self, job: Job, run: Path, live: Live):
        import ray

        self.job, self.run, self.live, self.ray = job, run, live, ray
        self.size = actor_size(job, [node["Resources"] for node in ray.nodes() if node["Alive"]], live)
        self.actor_class = ray.remote(RayWorker).options(
            num_cpus=self.size.cpus,
            num_gpus=self.size.gpus,
            max_restarts=0,  # a dead actor is replaced here, where its unit is known
            max_task_retries=0,
            max_concurrency=2,  # process_unit, and state beside it
        )
        self.actors: dict[Any, tuple[int, float]] = {}  # each with its latest (in hand, busy)
        self.waiting: dict[Any, tuple[Any, Unit | None]] = {}  # by reference; no unit: starting up
        self.again: deque[Unit] = deque()
        self.attempts: Counter[str] = Counter()
        self.failed_starts = 0

    def work(self, units: Iterable[Unit]) -> Iterator[Commit]:
        queue = iter(units)
        for _ in range(self.size.count):
            self.hire()
        while self.waiting:
            ready, _ = self.ray.wait(list(self.waiting), timeout=POLL_SECONDS)
            for reference in ready:
                actor, unit = self.waiting.pop(reference)
                try:
                    result = self.ray.get(reference)
                    self.failed_starts = 0
                except (self.ray.exceptions.RayActorError, self.ray.exceptions.RayTaskError) as error:
                    result = self.after_failure(actor, unit, error)
                if isinstance(result, Commit):
                    self.live.in_hand -= min(result.rows, self.live.in_hand)  # until the next poll
                    yield result
                if actor in self.actors:
                    self.assign(actor, queue)
            self.poll()

    def hire(self) -> None:
        device = "cuda" if self.size.gpus else "cpu"
        actor = self.actor_class.remote(self.job.model_dump(), str(self.run), device)
        self.actors[actor] = (0, 0.0)
        self.waiting[actor.state.remote()] = (actor, None)

    def assign(self, actor: Any, queue: Iterator[Unit]) -> None:
        """Give a free actor the next unit, or let it go."""
        unit = self.again.popleft() if self.again else next(queue, None)
        if unit is None:
            self.live.busy_retired += self.actors.pop(actor)[1]
            self.ray.kill(actor)
        else:
            attempt = self.attempts[unit.unit] + 1
            self.waiting[actor.process_unit.remote(unit, attempt)] = (actor, unit)

    def after_failure(self, actor: Any, unit: Unit | None, error: Exception) -> Commit | None:
        """Replace the actor if it died; queue its unit again, or give the unit up."""
        why = reason(error)
        if isinstance(error, self.ray.exceptions.RayActorError):
            self.live.busy_retired += self.actors.pop(actor)[1]
            if unit is None:
                self.failed_starts += 1
                if self.failed_starts >= START_ATTEMPTS:
                    raise JobError(f"the workers cannot start: {why}") from error
            self.hire()
        if unit is None:
            return None
        self.attempts[unit.unit] += 1
        self.live.notes.append(f"unit {unit.unit}, attempt {self.attempts[unit.unit]}: {why}")
        if self.attempts[unit.unit] < self.job.compute.attempts:
            self.again.append(unit)
            return None
        return give_up(self.job, self.run, unit, self.attempts[unit.unit], why)

    def poll(self) -> None:
        """Read the state of the actors that answer at once, for the display."""
        asked = {actor.state.remote(): actor for actor in self.actors}
        if asked:
            answered, _ = self.ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
            for reference in answered:
                try:
                    self.actors[asked[reference]] = self.ray.get(reference)
                except self.ray.exceptions.RayError:
                    continue  # `work` learns of it from the unit's reference
        self.live.workers = len(self.actors)
        self.live.in_hand = sum(in_hand for in_hand, _ in self.actors.values())
        self.live.busy = self.live.busy_retired + sum(busy for _, busy in self.actors.values())


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
