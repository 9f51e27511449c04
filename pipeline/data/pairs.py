"""Pairs: the truth of restored images, found by their names, and both images read as one sample."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kintsugi.errors import JobError, UnreadableImage, error_text
from kintsugi.pipeline.data.collection import Collection, as_it_is
from kintsugi.pipeline.data.decode import Content
from kintsugi.pipeline.data.names import key_of
from kintsugi.pipeline.data.read import RESTORED, TRUTH
from kintsugi.pipeline.data.shards import Pair, Place
from kintsugi.pipeline.data.units import PlanSummary
from kintsugi.pipeline.parts import Data

KEY = "{key}"


class Pattern:
    """What names are like, with {key} for the part that a restored image and its truth have in common.

    A suffix of images in the pattern counts no more than in a name.

    Attributes:
        alike: whether a name was. unlike: those that were not.

    Raises:
        JobError: no {key} in it, or two.
    """

    def __init__(self, field: str, text: str | None):
        self.field, self.text = field, text or KEY
        before, key, after = self.text.partition(KEY)
        if not key or KEY in after:
            raise JobError(f"{field}: {text!r} must have {KEY} in it, once, as in '{KEY}_out.png'")
        # By the rule that makes keys of names, with a letter for what the key is.
        start, end = key_of(f"{before}k")[:-1], key_of(f"k{after}")[1:]
        self.expression = re.compile(f"{re.escape(start)}(.+){re.escape(end)}", re.DOTALL)
        self.alike, self.unlike = False, list[str]()

    def key_in(self, name: str) -> str | None:
        """The key in a name, None where it is not of the pattern."""
        if (found := self.expression.fullmatch(name)) is None:
            self.unlike.append(name)
            return None
        self.alike = True
        return found[1]

    def refuse_no_name(self) -> None:
        """Raise a JobError if names were asked for, and none is of the pattern."""
        if self.unlike and not self.alike:
            raise JobError(f"{self.field}: no name is like {self.text!r}; one is {self.unlike[0]!r}")


class Pairing:
    """The true images, and which restored ones belong to them.

    Args:
        data: of the kind restored. chosen: whether a key is in `data.subset`.

    Raises:
        JobError: a pattern without {key}, or no true images whose names are like it.
    """

    def __init__(self, data: Data, chosen: Callable[[str], bool]):
        self.limit, self.chosen = data.limit, chosen
        self.restored = Pattern("data.pattern", data.pattern)
        self.true = Pattern("data.truth_pattern", data.truth_pattern)
        places = Collection("data.truth", data.true_images or "").places
        keys = ((self.true.key_in(name), name) for name in places)
        self.truth = {key: places[name] for key, name in keys if key is not None}
        self.true.refuse_no_name()
        self.met: set[str] = set()

    def of(self, restored: Iterable[Place], summary: PlanSummary) -> Iterator[Place]:
        """Those restored images that have a truth, by the key of both; others are named in the summary."""
        for place in restored:
            key = self.restored.key_in(place.key)
            if key is None or not self.chosen(key):
                continue
            if (found := self.truth.get(key)) is None:
                summary.without_truth.append(key)
                continue
            self.met.add(key)
            yield place._replace(key=key, pair=Pair(place.key, str(found[0]), found[1]))

    def name_left_out(self, summary: PlanSummary) -> None:
        """Say in the summary what is not compared; of true images only where all restored ones were seen.

        Raises:
            JobError: nothing is compared, because of the names.
        """
        summary.without_truth.sort()
        if self.limit is None:
            summary.without_restored = sorted(filter(self.chosen, self.truth.keys() - self.met))
        for pattern in (self.restored, self.true):
            if names := sorted(pattern.unlike):  # several shards may be read at once
                what = f"not like {pattern.text}, not compared: {len(names)}, the first {names[0]}"
                summary.notes.append(what)
        self.restored.refuse_no_name()
        if summary.without_truth and not summary.samples:
            raise JobError(
                f"no key is in both: data.shards has {summary.without_truth[0]!r}, data.truth has "
                f"{next(iter(self.truth))!r}; a key is a path from the folder, or in the shard, without its "
                f"suffix; where one has more in its names, say so by data.pattern '{KEY}_out.png'"
            )


@dataclass(frozen=True)
class Both:
    """A restored image and its truth: (2, H, W, channels) uint8.

    Attributes:
        smallest: side that their metrics need, pixels.
    """

    smallest: int
    channels: int = 3

    def __call__(self, content: dict[str, Any], note: Callable[[str], None]) -> np.ndarray:
        restored = image("restored", content[RESTORED], note, self.channels)
        truth = image("true", content[TRUTH], lambda what: None, self.channels)
        if restored.shape != truth.shape:
            (h, w), (height, width) = restored.shape[:2], truth.shape[:2]
            raise UnreadableImage(f"it has {w}x{h} pixels, its truth {width}x{height}")
        if min(restored.shape[:2]) < self.smallest:
            raise UnreadableImage(f"a metric needs sides of at least {self.smallest} pixels")
        return np.stack([restored, truth])


def image(which: str, content: Content, note: Callable[[str], None], channels: int) -> np.ndarray:
    """One of both; raises an UnreadableImage that says which, or a MemoryError."""
    try:
        if isinstance(content, Exception):
            raise content
        return as_it_is(content, note, channels)
    except MemoryError:  # of the machine, which others use too
        raise
    except Exception as error:
        raise UnreadableImage(f"the {which} image: {error_text(error)}") from error
