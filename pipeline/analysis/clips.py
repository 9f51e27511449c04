"""The metrics of a run's clips, from the pictures that are kept of their frames; one pair after another."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.intervals import mean_interval
from kintsugi.pipeline.data.names import frame_of
from kintsugi.pipeline.data.pictures import decoded
from kintsugi.pipeline.execution.commit import Commit, read_rows
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics import CLIPS, ClipMetric
from kintsugi.pipeline.metrics.sets import SetResult


class Frame(NamedTuple):
    """A restored frame: its clip, its number there, and the places of its unit, and of its row in that."""

    clip: str
    number: int
    unit: int
    row: int


Pictures = Callable[[Frame], np.ndarray]
"""A frame, restored and true: (2, H, W, C) float64 on [0, 1]."""


def clip_metrics(
    run: Run, committed: Sequence[Commit], names: Sequence[str], warnings: Sequence[str]
) -> dict[str, SetResult]:
    """Metrics of clips by name, means over clips; one that cannot be computed has no value, and says why.

    They are of frames with consecutive numbers: pairs across one that failed or is not there are left out.
    The place of every frame is in memory, and the pictures of two units.

    Args:
        warnings: for all of the numbers.

    Raises:
        JobError: a file is not the one that was committed.
    """
    if not names:
        return {}
    frames = sorted(restored_frames(run, committed))
    pairs = [(a, b) for a, b in pairwise(frames) if a.clip == b.clip]
    consecutive = [(a, b) for a, b in pairs if a.number + 1 == b.number]
    care = list(warnings)
    if left_out := len(pairs) - len(consecutive):
        care.append(f"left out where frames between have failed or are not there: {left_out} pairs")
    table = lru_cache(maxsize=2)(lambda unit: read_rows(run.folder, committed[unit], ["restored", "truth"]))

    def pictures(frame: Frame) -> np.ndarray:
        row = table(frame.unit).slice(frame.row, 1).to_pylist()[0]
        return np.stack([on_unit_range(decoded(row[of])) for of in ("restored", "truth")])

    return {name: evaluated(CLIPS[name], consecutive, pictures, care) for name in names}


def restored_frames(run: Run, committed: Sequence[Commit]) -> Iterator[Frame]:
    """The frames of all units that did not fail; raises as `read_rows`."""
    for unit, commit in enumerate(committed):
        rows = read_rows(run.folder, commit, ["key", "status"]).to_pylist()
        for place, row in enumerate(rows):
            if row["status"] == "ok":
                yield Frame(*frame_of(row["key"]), unit, place)


def on_unit_range(levels: np.ndarray) -> np.ndarray:
    """Levels of 8 or 16 bits as float64 on [0, 1]."""
    return levels / (255 if levels.dtype == np.uint8 else 65535)


def evaluated(
    metric: ClipMetric, pairs: Sequence[tuple[Frame, Frame]], pictures: Pictures, care: Sequence[str]
) -> SetResult:
    """A metric of the clips of these pairs, in their order; raises as `clip_metrics`."""
    seen = lru_cache(maxsize=2)(pictures)  # the second frame of a pair is the first of the next
    values: list[float] = []
    try:
        for clip, of in groupby(pairs, key=lambda pair: pair[0].clip):
            values.append(float(np.mean([number_of(metric, seen(a), seen(b)) for a, b in of])))
            if not math.isfinite(values[-1]):
                raise ValueError(f"the number of clip {clip!r} is not finite")
        if not values:
            raise ValueError("no clip has two frames with consecutive numbers, such as CLIP/0001, CLIP/0002")
    except JobError:
        raise
    except Exception as error:  # a report without this number is better than none
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return SetResult(None, None, None, len(values), (*care, f"not computed: {what}"), "the truth", {})
    ends = mean_interval(np.array(values), (0.0, math.inf))
    low, high = (None if math.isnan(end) else end for end in ends)
    return SetResult(float(np.mean(values)), low, high, len(values), tuple(care), "the truth", {})


def number_of(metric: ClipMetric, first: np.ndarray, second: np.ndarray) -> float:
    """The metric of two frames; raises a ValueError if they have different sizes."""
    if first.shape != second.shape:
        sizes = " and ".join(f"{width}x{height}" for _, height, width, _ in (first.shape, second.shape))
        raise ValueError(f"frames of a clip have different sizes, {sizes}")
    restored, truth = np.stack([first, second], 1)
    return metric.compare(restored, truth)
