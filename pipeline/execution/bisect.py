"""Which samples of a unit kill their worker: found by bisection."""

from collections import Counter
from dataclasses import dataclass, field

DEATHS = 2  # of workers with a sample alone, before it is to blame: the first may have been an accident

Range = tuple[int, int]


@dataclass
class Inquiry:
    """Ranges of samples are restored, one after another; where the worker dies, the halves are.

    An accident costs a few restorations more, and no sample its result.

    Attributes:
        samples: how many there are.
        suspects: ranges to be tried, the next one last.
        poison: places of the samples that kill.
    """

    samples: int
    suspects: list[Range] = field(default_factory=list)
    poison: list[int] = field(default_factory=list)
    deaths: Counter[Range] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.suspects = halves((0, self.samples))

    @property
    def finished(self) -> bool:
        """Whether all that kill are known."""
        return not self.suspects

    def survived(self) -> None:
        """The worker outlived the last range."""
        self.suspects.pop()

    def died(self) -> None:
        """The worker died of the last range."""
        first, last = found = self.suspects[-1]
        self.deaths[found] += 1
        if last - first > 1:
            self.suspects[-1:] = halves(found)
        elif self.deaths[found] == DEATHS:
            self.suspects.pop()
            self.poison.append(first)


def halves(whole: Range) -> list[Range]:
    """The second half, then the first, so that the first is tried first; a single sample as it is."""
    first, last = whole
    middle = (first + last) // 2
    return [whole] if middle == first else [(middle, last), (first, middle)]
