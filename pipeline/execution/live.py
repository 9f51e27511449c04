"""What a running job tells its display."""

from dataclasses import dataclass, field


@dataclass
class Live:
    """Updated in place by the executor.

    Attributes:
        in_hand: samples finished in units that are not committed yet.
        left: samples that are left of each unit in hand.
        busy: seconds that the workers have spent in samplers, those that are gone too.
        started: when the first worker was ready, by time.perf_counter.
        notes: what the user should know.
        stopping: set from outside: finish the units in hand and begin no others.
    """

    in_hand: int = 0
    left: tuple[int, ...] = ()
    busy: float = 0.0
    workers: int = 0
    started: float | None = None
    notes: list[str] = field(default_factory=list)
    stopping: bool = False
