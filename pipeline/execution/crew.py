"""The actors of a job on Ray: as many as there is room and work for, those replaced that die or freeze."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray

from kintsugi.errors import JobError
from kintsugi.pipeline.execution.cluster import reason
from kintsugi.pipeline.execution.live import Live
from kintsugi.pipeline.storage.location import pause
from kintsugi.pipeline.storage.publish import this_host

POLL_SECONDS = 0.5
POLLED = 12  # actors that are asked at once: a question takes a third of a millisecond of the driver's CPU
START_ATTEMPTS = 3
SCALE_SECONDS = 2.0  # between looks at the nodes of the cluster
FROZEN_SECONDS = 120.0  # without an answer, after which a worker is replaced


@dataclass(eq=False)
class Actor:
    """An actor, and what was last heard of it.

    Attributes:
        process: its number, None on another machine. since: when it was ready. free: when it may begin
            something, by time.monotonic; None: it is at work. ended: when it last did. in_hand: samples
            finished in its unit. busy: seconds in samplers. asked: when for these, if it has not answered.
    """

    handle: Any
    process: int | None
    since: float = field(default_factory=time.monotonic)
    free: float | None = 0.0
    ended: float = -math.inf
    in_hand: int = 0
    busy: float = 0.0
    asked: float | None = None


class Crew:
    """The actors: as many as the cluster holds and the work needs, those replaced that die or freeze.

    Args:
        create: starts an actor and returns its handle.

    Attributes:
        starting: handles by the reference to their place. present: the others, that have started.
        asked: by the reference to their state.
        hire_again: by time.monotonic, after starts that failed. most: actors there have been at once.
        retired: seconds that those who are gone spent in samplers.
    """

    def __init__(self, create: Callable[[], Any], live: Live):
        self.create, self.live = create, live
        self.starting: dict[Any, Any] = {}
        self.present: list[Actor] = []
        self.asked: dict[Any, Actor] = {}
        self.last_asked = self.last_scaled = self.hire_again = -math.inf
        self.failed_starts = self.most = 0
        self.retired = 0.0

    def scale(self, wanted: Callable[[], int]) -> None:
        """Have as many actors as are wanted, which is asked from time to time."""
        now = time.monotonic()
        if now - self.last_scaled < SCALE_SECONDS:
            return
        self.last_scaled = now
        missing = wanted() - len(self.starting) - len(self.present)
        for _ in range(missing if now >= self.hire_again else 0):
            handle = self.create()
            self.starting[handle.place.remote()] = handle
        self.most = max(self.most, len(self.starting) + len(self.present))

    def started(self, reference: Any) -> None:
        """An actor has come to something: it is there, or cannot start.

        Raises:
            JobError: again and again none can.
        """
        handle = self.starting.pop(reference)
        try:
            machine, process = ray.get(reference)
        except ray.exceptions.RayError as error:
            ray.kill(handle)
            self.failed_starts += 1
            if self.failed_starts >= START_ATTEMPTS and not self.present:
                raise JobError(f"the workers cannot start: {reason(error)}") from error
            self.hire_again = time.monotonic() + pause(self.failed_starts)  # the others go on meanwhile
            self.live.notes.append(f"a worker could not start: {reason(error)}")
            return
        self.failed_starts = 0
        self.present.append(Actor(handle, process if machine == this_host() else None))
        if self.live.started is None:
            self.live.started = time.perf_counter()

    def dismiss(self, actor: Actor) -> None:
        """Be rid of an actor; another takes its place if there is room for it."""
        if actor in self.present:
            self.present.remove(actor)
            self.retired += actor.busy
        self.asked = {reference: other for reference, other in self.asked.items() if other is not actor}
        ray.kill(actor.handle)
        self.last_scaled = -math.inf

    def free(self) -> list[Actor]:
        """Those that may begin something now."""
        now = time.monotonic()
        return [actor for actor in self.present if actor.free is not None and actor.free <= now]

    def poll(self) -> bool:
        """Twice a second, hear the answers of those that were asked, and ask the next ones; whether it was.

        All answers at once: to wait for each would look at all references again.
        """
        now = time.monotonic()
        if now - self.last_asked < POLL_SECONDS:
            return False
        self.last_asked = now
        for reference in ready(list(self.asked)):
            self.answered(reference)
        for actor in self.present[:POLLED]:
            if actor.asked is None:
                actor.asked = now
                self.asked[actor.handle.state.remote()] = actor
        self.present = self.present[POLLED:] + self.present[:POLLED]
        self.show()
        return True

    def answered(self, reference: Any) -> None:
        """An actor has told its state, or is dead."""
        actor = self.asked.pop(reference)
        asked, actor.asked = actor.asked or 0.0, None
        try:
            in_hand, actor.busy = ray.get(reference)
            actor.in_hand = in_hand if asked > actor.ended else 0  # else of a unit that it has finished
        except ray.exceptions.RayError:
            if actor.free is not None:  # else it is learned from the reference to its work
                self.dismiss(actor)

    def show(self) -> None:
        """Tell the display what all have in hand, and for how long they were in samplers."""
        self.live.workers = len(self.present)
        self.live.in_hand = sum(actor.in_hand for actor in self.present)
        self.live.busy = self.retired + sum(actor.busy for actor in self.present)

    def frozen(self) -> list[Actor]:
        """Those that have not answered for long."""
        now = time.monotonic()
        return [a for a in self.asked.values() if a.asked is not None and now - a.asked > FROZEN_SECONDS]


def ready(references: list[Any]) -> list[Any]:
    """Those that have come to something."""
    return ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
