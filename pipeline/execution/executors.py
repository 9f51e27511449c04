"""Two ways to run units: in this process, and on Ray actors. Both run `Worker.process`."""

import logging
import math
import os
import re
import secrets
import signal
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kintsugi.device import default_device
from kintsugi.errors import JobError, redacted
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.bisect import Inquiry
from kintsugi.pipeline.execution.commit import Commit
from kintsugi.pipeline.execution.directory import PLAN
from kintsugi.pipeline.execution.memory import lacks_memory
from kintsugi.pipeline.execution.prometheus import Counts
from kintsugi.pipeline.execution.rows import Result
from kintsugi.pipeline.execution.sieve import without_texts_of_ray
from kintsugi.pipeline.execution.worker import Observer, Task, Worker, give_up
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.storage.location import Location, at, pause

POLL_SECONDS = 0.5
START_ATTEMPTS = 3
SCALE_SECONDS = 2.0  # between looks at the nodes of the cluster
FROZEN_SECONDS = 120.0  # without an answer, after which a worker is replaced
SLOW = 1.5  # times the usual duration of a unit, after which an idle worker does it too
SLOW_SECONDS = 5.0  # at least
LEAVE_SECONDS = 5.0  # for actors to be gone at the end
DEAD_SECONDS = 10.0  # for calls into a Ray that is dead to return
VITAL = ("raylet", "gcs_server")  # processes of a Ray without which it does nothing
GOES_ON = "the same command continues"
OURS = {
    "low on memory": "Ray ended the worker, as its node ran out of memory",
    "node": "the worker's node is lost",
    "unavailable": "the worker cannot be reached",
    "never ran": "the worker never started",
    "": "the worker's process died",
}
"""What is in Ray's sentences on deaths, and what we say."""
DEATHS_IN_A_ROW = 30  # of workers without any success: more than one bad sample takes to be found
SOCKET_NAME = 107  # bytes of the path of a socket at most
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"  # Ray's longest name
IDENTIFIER = re.compile(r" ?(\b[0-9a-f]{16,}\b|(ipv[46]:)?\b\d+(\.\d+){3}(:\d+)?\b|rpc_code: \d+)")
FIELD = re.compile(r"(class_name|actor_id|pid|name|namespace|ip): ")  # a line of Ray's texts


@dataclass
class Live:
    """What a running job tells its display; updated in place by the executor.

    Attributes:
        in_hand: samples finished in units that are not committed yet.
        left: samples that are left of each unit in hand.
        busy: seconds that the workers have spent in samplers; busy_retired: those that are gone.
        started: when the first worker was ready, by time.perf_counter.
        notes: what the user should know.
        stopping: set from outside: finish the units in hand and begin no others.
    """

    in_hand: int = 0
    left: tuple[int, ...] = ()
    busy: float = 0.0
    busy_retired: float = 0.0
    workers: int = 0
    started: float | None = None
    notes: list[str] = field(default_factory=list)
    stopping: bool = False


def in_process(
    job: Job, run: Location, units: Iterable[Unit], live: Live, failed_only: bool = False
) -> Generator[Commit, None, None]:
    """Run the units one after another in this process.

    Raises:
        JobError: the storage fails, or memory is lacking, again and again.
    """

    class Display(Observer):
        def on_batch(self, results: Sequence[Result], seconds: Mapping[str, float]) -> None:
            live.in_hand, live.busy = worker.in_hand, worker.busy
            live.left = (unit.samples - worker.in_hand,)

    try:
        worker = Worker(job, run, default_device(), [Display()])
    except Exception as error:
        if lacks_memory(error):
            raise passing_failure(error) from error
        raise
    live.workers, live.started = 1, time.perf_counter()
    for unit in units:
        if live.stopping:
            return
        live.left = (unit.samples,)
        commit = persistently(worker, Task(unit, failed_only=failed_only), live)
        live.in_hand, live.left = 0, ()
        yield commit


def persistently(worker: Worker, task: Task, live: Live) -> Commit:
    """Process a unit; storage that fails, and memory that is lacking, is tried again after a pause."""
    attempts = worker.job.compute.attempts
    for attempt in range(1, attempts + 1):
        try:
            commit = worker.process(task)
            live.notes += commit.notes
            return commit
        except Exception as error:
            if not (isinstance(error, OSError) or lacks_memory(error)):
                raise
            if attempt == attempts:
                raise passing_failure(error) from error
            live.notes.append(redacted(f"unit {task.unit.unit}, {what_failed(error)}; trying again"))
        time.sleep(pause(attempt))
    raise AssertionError("unreachable")


def what_failed(error: Exception) -> str:
    return f"{'storage' if isinstance(error, OSError) else 'out of memory'}: {error}"


def passing_failure(error: Exception) -> JobError:
    """For what says nothing of the samples: storage that fails, or too little memory."""
    return JobError(f"{what_failed(error)}; the same command continues when this is mended")


def on_ray(
    job: Job,
    run: Location,
    units: Iterable[Unit],
    live: Live,
    address: str | None,
    failed_only: bool = False,
) -> Generator[Commit, None, None]:
    """Run the units on Ray actors, each of which takes the next unit when it is free.

    Raises:
        JobError: no cluster at the address, the actors cannot start, or the storage fails.
    """
    with connected(address):
        pool = Pool(job, run, units, live, failed_only)
        try:
            yield from pool.work()
        finally:
            pool.close()


@dataclass
class Working:
    """What an actor is doing: a unit, or a range of the samples of one under inquiry."""

    actor: Any
    task: Task
    inquiry: Inquiry | None = None
    since: float = field(default_factory=time.monotonic)


class Pool:
    """The driver's side: actors, the queue of units, and what to do when one of them fails.

    An actor that dies, or whose unit raises (a broken GPU fails everything after it), is replaced and the
    unit tried again; after `compute.attempts` deaths the samples that kill are searched by bisection,
    recorded as failed, and the rest of the unit is restored. Storage that fails is tried again after a
    pause, then ends the job: it says nothing of the samples.

    The number of actors follows the cluster. When nothing is left to begin, idle actors do slow units a
    second time; the first commit counts, and the other is the same.
    """

    def __init__(self, job: Job, run: Location, units: Iterable[Unit], live: Live, failed_only: bool):
        import ray

        self.job, self.run, self.live, self.ray = job, run, live, ray
        # The largest first, so that no long unit is begun last.
        tasks = (Task(unit, failed_only=failed_only) for unit in units)
        self.queue = deque(sorted(tasks, key=lambda task: -task.unit.samples))
        self.inquiries: deque[Inquiry] = deque()  # whose next range may begin
        self.outstanding = {task.unit.unit for task in self.queue}
        self.deaths: Counter[str] = Counter()
        self.storage_failures: Counter[str] = Counter()
        self.deaths_in_a_row = 0
        self.durations: deque[float] = deque(maxlen=100)  # seconds per sample
        self.size = actor_size(job, self.nodes(), live)
        self.device = actor_device(self.size)
        self.starting: dict[Any, Any] = {}  # reference → actor
        self.working: dict[Any, Working] = {}  # reference → what for
        self.idle: dict[Any, float] = {}  # actor → when it may begin something, by time.monotonic
        self.states: dict[Any, tuple[int, float]] = {}  # actor → (samples in hand, seconds busy)
        self.asked: dict[Any, tuple[Any, float]] = {}  # reference to a state → (actor, since when)
        self.last_asked = self.last_scaled = -math.inf
        self.failed_starts = 0
        self.hire_again = -math.inf  # by time.monotonic, after starts that failed
        self.most_actors = 0
        self.inquired: set[str] = set()

    def nodes(self) -> list[dict[str, float]]:
        found = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not found and own_ray() is not None:
            raise JobError(f"the local Ray counts its only node as dead, as after a long sleep; {GOES_ON}")
        return found

    def work(self) -> Iterator[Commit]:
        while self.outstanding:
            refuse_dead_ray()
            if self.live.stopping:
                if not self.working:
                    return
            else:
                self.scale()
                self.assign()
            for reference in self.ready():
                if reference in self.asked:
                    self.note_state(reference)
                elif reference in self.starting:
                    self.started(reference)
                elif (commit := self.settle(reference)) is not None:
                    self.live.in_hand = max(0, self.live.in_hand - commit.rows)  # until the next state
                    yield commit
            yield from self.ask_states()

    def ready(self) -> list[Any]:
        """References that have come to something, waited for a moment."""
        references = [*self.starting, *self.working, *self.asked]
        if not references:
            time.sleep(POLL_SECONDS)
            return []
        ready: list[Any] = self.ray.wait(references, timeout=POLL_SECONDS)[0]
        return ready

    def close(self) -> None:
        """End the actors, and wait for those at work, so that nothing is written after what is cleared next.

        These end themselves, as Ray calls an actor that it kills dead before its process is.
        """
        leaving = [working.actor.leave.remote() for working in self.working.values()]
        if leaving:
            self.ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_SECONDS)
        for actor in (*self.starting.values(), *self.states):
            self.ray.kill(actor)

    # ---- actors

    def scale(self) -> None:
        """Have as many actors as the cluster holds and the work needs."""
        if time.monotonic() - self.last_scaled < SCALE_SECONDS:
            return
        self.last_scaled = time.monotonic()
        wanted = self.job.compute.actors
        if wanted == "auto":
            wanted = capacity(self.size, self.nodes())
        missing = min(wanted, len(self.outstanding)) - len(self.starting) - len(self.states)
        for _ in range(missing if time.monotonic() >= self.hire_again else 0):
            self.hire()
        self.most_actors = max(self.most_actors, len(self.starting) + len(self.states))

    def hire(self) -> None:
        actor_class = self.ray.remote(RayWorker).options(
            num_cpus=self.size.cpus,
            num_gpus=self.size.gpus,
            max_restarts=0,  # a dead actor is replaced here, where its unit is known
            max_task_retries=0,
            max_concurrency=2,  # process or probe, and state or leave beside it
        )
        actor = actor_class.remote(self.job.model_dump(), str(self.run), self.device)
        self.starting[actor.state.remote()] = actor

    def started(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            self.states[actor] = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)
            self.failed_starts += 1
            if self.failed_starts >= START_ATTEMPTS and not self.states:
                raise JobError(f"the workers cannot start: {reason(error)}") from error
            self.hire_again = time.monotonic() + pause(self.failed_starts)  # the others go on meanwhile
            self.live.notes.append(f"a worker could not start: {reason(error)}")
            return
        self.failed_starts = 0
        self.idle[actor] = 0.0
        if self.live.started is None:
            self.live.started = time.perf_counter()

    def dismiss(self, actor: Any) -> None:
        """Be rid of an actor; another takes its place if there is room for it."""
        self.live.busy_retired += self.states.pop(actor, (0, 0.0))[1]
        self.idle.pop(actor, None)
        self.asked = {reference: asked for reference, asked in self.asked.items() if asked[0] is not actor}
        self.ray.kill(actor)
        self.last_scaled = -math.inf

    # ---- work

    def assign(self) -> None:
        """Give every actor that is free something to do, as long as there is something."""
        now = time.monotonic()
        for actor in [actor for actor, since in self.idle.items() if since <= now]:
            if self.inquiries:
                inquiry = self.inquiries.popleft()
                reference = actor.probe.remote(inquiry.task.unit, *inquiry.suspects[-1])
                self.working[reference] = Working(actor, inquiry.task, inquiry)
            elif (next_task := self.next_task()) is not None:
                self.working[actor.process.remote(next_task)] = Working(actor, next_task)
            else:
                return
            del self.idle[actor]

    def next_task(self) -> Task | None:
        """The next unit, or a slow one that only one actor is doing."""
        while self.queue:
            task = self.queue.popleft()
            if task.unit.unit in self.outstanding:
                return task
        if not self.durations:
            return None
        usual = statistics.median(self.durations)
        copies = Counter(working.task.unit.unit for working in self.working.values())
        slow = [
            working
            for working in self.working.values()
            if working.inquiry is None
            and copies[working.task.unit.unit] == 1
            and time.monotonic() - working.since > max(SLOW_SECONDS, SLOW * usual * working.task.unit.samples)
        ]
        return min(slow, key=lambda working: working.since).task if slow else None

    def settle(self, reference: Any) -> Commit | None:
        """What came of a unit, or of a range under inquiry."""
        done = self.working.pop(reference)
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, JobError):
                raise cause from error
            if isinstance(cause, OSError):
                self.after_storage_failure(done, cause)
                return None
            self.dismiss(done.actor)
            return self.after_death(done, reason(error))
        self.idle[done.actor] = 0.0
        self.deaths_in_a_row = 0
        if done.inquiry is not None:
            done.inquiry.survived()
            self.inquire(done.inquiry)
            return None
        commit: Commit = result
        self.live.notes += commit.notes
        if commit.rows:
            self.durations.append((time.monotonic() - done.since) / commit.rows)
        return self.finish(commit)

    def finish(self, commit: Commit) -> Commit | None:
        """The commit, if it is the first of its unit."""
        if commit.unit not in self.outstanding:
            return None
        self.outstanding.remove(commit.unit)
        return commit

    def after_storage_failure(self, done: Working, error: OSError) -> None:
        unit = done.task.unit.unit
        self.storage_failures[unit] += 1
        failures = self.storage_failures[unit]
        if failures >= self.job.compute.attempts:
            raise passing_failure(error) from error
        self.live.notes.append(redacted(f"unit {unit}, storage: {error}; trying again"))
        self.idle[done.actor] = time.monotonic() + pause(failures)  # another one may see the storage
        if done.inquiry is not None:
            self.inquiries.append(done.inquiry)
        else:
            self.queue.appendleft(done.task)

    def after_death(self, done: Working, why: str) -> Commit | None:
        unit, task = done.task.unit, done.task
        if unit.unit not in self.outstanding:  # the other actor that did it was faster
            return None
        self.deaths_in_a_row += 1
        if self.deaths_in_a_row >= DEATHS_IN_A_ROW + self.most_actors:  # which a lost rack takes at once
            raise JobError(
                f"{self.deaths_in_a_row} workers died one after another, the last of them so: {why}; "
                "the same command continues when this is mended"
            )
        if done.inquiry is not None:
            done.inquiry.died()
            self.inquire(done.inquiry)
            return None
        self.deaths[unit.unit] += 1
        deaths, attempts = self.deaths[unit.unit], self.job.compute.attempts
        self.live.notes.append(f"unit {unit.unit}, attempt {deaths}: {why}")
        task = replace(task, attempt=deaths + 1)
        if any(other.task.unit == unit for other in self.working.values()):
            return None
        if deaths >= attempts and unit.unit not in self.inquired:
            self.inquired.add(unit.unit)
            self.deaths[unit.unit] = attempts
            self.live.notes.append(f"unit {unit.unit}: searching for the samples that end its worker")
            self.inquire(Inquiry(task))
        elif deaths < 2 * attempts:
            self.queue.append(task)
        else:
            return self.finish(give_up(self.job, self.run, task, why))
        return None

    def inquire(self, inquiry: Inquiry) -> None:
        """Go on with an inquiry, or with its unit if it is finished."""
        if not inquiry.finished:
            self.inquiries.append(inquiry)
            return
        keys = read_members(self.run / PLAN, inquiry.task.unit).keys
        poison = frozenset(keys[place] for place in inquiry.poison)
        for key in sorted(poison):
            self.live.notes.append(f"{key}: its restoration ends the process, recorded as failed")
        self.queue.append(replace(inquiry.task, poison=poison))

    # ---- states

    def ask_states(self) -> Iterator[Commit]:
        """Twice a second, have one question for its state under way to every actor.

        The answers are for the display; one that never comes tells that the actor is frozen.
        """
        now = time.monotonic()
        if now - self.last_asked < POLL_SECONDS:
            return
        self.last_asked = now
        for actor, since in list(self.asked.values()):
            if now - since > FROZEN_SECONDS:
                yield from self.frozen(actor)
        waiting = {actor for actor, _ in self.asked.values()}
        for actor in self.states:
            if actor not in waiting:
                self.asked[actor.state.remote()] = (actor, now)
        self.live.workers = len(self.states)

    def frozen(self, actor: Any) -> Iterator[Commit]:
        """Replace an actor that does not answer. If it wakes up, it writes what the other one wrote.

        It counts as dead: a sample may be what froze it.
        """
        why = f"a worker has not answered for {FROZEN_SECONDS:.0f} s and is replaced"
        self.dismiss(actor)
        held = [reference for reference, working in self.working.items() if working.actor is actor]
        for reference in held:
            if (commit := self.after_death(self.working.pop(reference), why)) is not None:
                yield commit
        if not held:
            self.live.notes.append(why)

    def note_state(self, reference: Any) -> None:
        actor, _ = self.asked.pop(reference)
        try:
            state = self.ray.get(reference)
        except self.ray.exceptions.RayError:
            if actor in self.idle:  # else `settle` learns of it from the unit's reference
                self.dismiss(actor)
            return
        if actor in self.states:
            self.states[actor] = state
        self.live.in_hand = sum(in_hand for in_hand, _ in self.states.values())
        self.live.left = tuple(
            max(0, working.task.unit.samples - self.states.get(working.actor, (0, 0.0))[0])
            for working in self.working.values()
        )
        self.live.busy = self.live.busy_retired + sum(busy for _, busy in self.states.values())


class RayWorker:
    """The actor: a `Worker` whose state can be read while it works."""

    def __init__(self, job: dict[str, Any], run: str, device: str):
        known = Job.model_validate(job)
        self.worker = Worker(known, at(run), device, [Counts(config_hash(known))])

    def process(self, task: Task) -> Commit:
        return self.worker.process(task)

    def probe(self, unit: Unit, first: int, last: int) -> None:
        self.worker.probe(unit, first, last)

    def state(self) -> tuple[int, float]:
        return self.worker.in_hand, self.worker.busy

    def leave(self) -> None:
        """End this process, whatever it is doing."""
        os._exit(0)


@dataclass(frozen=True)
class ActorSize:
    """What each actor asks for."""

    cpus: float
    gpus: float


def actor_size(job: Job, nodes: list[dict[str, float]], live: Live) -> ActorSize:
    """What each actor asks of a cluster with these nodes.

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
        # All the GPUs of a node are used, even if each actor then gets fewer cores than it asked for.
        share = min((c / n for c, n in places if n), default=0.0)
    else:
        share = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    size = ActorSize(
        min(float(job.compute.cpus_per_actor), share if share < 1 else math.floor(share)), wanted
    )
    if capacity(size, nodes) == 0:
        raise JobError(
            f"compute: no node holds an actor of {wanted:g} GPUs (gpus_per_actor); the cluster has "
            f"{gpus:g} GPUs and {cpus:g} CPU cores on {len(nodes)} nodes"
        )
    return size


def actor_device(size: ActorSize) -> str:
    return "cuda" if size.gpus else "cpu"


def capacity(size: ActorSize, nodes: list[dict[str, float]]) -> int:
    """How many actors fit on the nodes."""

    def on(node: dict[str, float]) -> int:
        kinds = [("CPU", size.cpus), ("GPU", size.gpus)]
        return min((math.floor(node.get(kind, 0.0) / each) for kind, each in kinds if each), default=0)

    return sum(map(on, nodes))


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, or to a local one that ends with the job."""
    import ray
    from ray._private import worker

    if ray.is_initialized():  # the caller's own connection: used and left as it is
        yield
        return
    local = address in (None, "local")
    connection = False
    worker.print_to_stdstream = lambda *_, **__: None  # Ray's own texts on deaths
    where = "the local Ray cannot start" if local else f"--address {address}: no connection to this Ray"
    if local:
        refuse_long_folder()
    if local and not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        # Ray's ports listen on all interfaces, and whoever has the token runs code here. Ray would make one
        # and leave it in the home directory, readable to everybody; this one ends with the process.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    with without_texts_of_ray():
        handler = signal.getsignal(signal.SIGTERM)
        ending, over = threading.Event(), threading.Event()
        if local:
            threading.Thread(target=leave_dead_ray, args=(ending, over), daemon=True).start()
        try:
            ray.init(
                address="local" if local else address,
                include_dashboard=False if local else None,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, handler)  # Ray's own, which it has put there, ends the process
            connection = True
            yield
        except Exception as error:
            if connection:
                raise
            # Bare ones among them, where a node is not there in time.
            raise JobError(f"{where}: {sentence(str(error))}; {GOES_ON}") from error
        finally:
            ending.set()
            ray.shutdown()
            over.set()


def own_ray() -> Any | None:
    """The node of the Ray that this process has started, None if it uses another's."""
    from ray._private import worker

    node = worker._global_node
    return node if node is not None and node.is_head() else None


def refuse_dead_ray() -> None:
    """Raise a JobError where this process has started a Ray and it has died: no node of it comes back.

    Ray itself says nothing of it, or after a minute.
    """
    node = own_ray()
    for kind, _ in node.dead_processes() if node is not None else ():
        if kind in VITAL:
            raise JobError(dead_ray(kind))


def dead_ray(kind: str) -> str:
    return f"the local Ray has ended: its process {kind} is gone; {GOES_ON}"


def leave_dead_ray(ending: threading.Event, over: threading.Event) -> None:
    """End this process if its Ray is dead and the main thread does not end it, as it waits for Ray.

    Args:
        ending: set before Ray is ended here, whose processes then die. over: after it.
    """
    seen: dict[int, str] = {}
    while not ending.wait(POLL_SECONDS):
        there = vital_children()
        seen |= there
        gone = next((kind for process, kind in seen.items() if process not in there), None)
        if gone is not None and not over.wait(DEAD_SECONDS):
            cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # which the display has hidden
            print(f"{cursor}error: {dead_ray(gone)}", file=sys.stderr, flush=True)
            os._exit(1)


def vital_children() -> dict[int, str]:
    """Processes of a Ray that are living children of this one, also while Ray starts; {} off Linux."""
    found = {}
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text().split():
                name, _, state = Path(f"/proc/{child}/stat").read_text().partition("(")[2].rpartition(")")
                if name in VITAL and state.split()[0] not in "ZX":
                    found[int(child)] = name
    return found


def refuse_long_folder() -> None:
    """Raise a JobError if the names of Ray's sockets would be longer than the system allows."""
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    folder = os.environ[name] if name else "/tmp"
    if (length := len(os.fsencode(folder + SOCKET.format(process=os.getpid())))) > SOCKET_NAME:
        raise JobError(
            f"--address local: the names of Ray's sockets would have {length} bytes in {name}={folder}, and "
            f"{SOCKET_NAME} are the most; set RAY_TMPDIR to a short folder of this machine, such as /tmp, or "
            "use --address none"
        )


def reason(error: Exception) -> str:
    """What a worker raised, or how it died, in one sentence.

    Ray's own texts are a page long. Identifiers and addresses are left out, as rows may hold what is
    returned here, and must not differ between two executions.
    """
    cause = getattr(error, "cause", None)
    if cause is not None:
        return f"{type(cause).__name__}: {cause}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    texts = [line for line in lines if not FIELD.match(line)]
    text = next(
        (line for line in texts if "low on memory" in line), texts[-1] if texts else "the worker died"
    )
    if text.startswith(("The ", "Task ")):  # Ray's; else the last line of a traceback
        return next(ours for theirs, ours in OURS.items() if theirs in sentence(text))
    return f"{type(error).__name__}: {text}"


def sentence(text: str) -> str:
    """The first sentence of a text of Ray's, without identifiers and addresses."""
    return IDENTIFIER.sub("", re.split(r"[.;]\s", text.strip())[0].removesuffix("."))
