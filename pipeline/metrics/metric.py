"""What a metric is: of every restored image, of the set of all, or of clips of frames."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.pipeline.metrics.distances import Compare
from kintsugi.pipeline.metrics.weights import INCEPTION, PT_INCEPTION, Extra, Weights

Better = Literal["higher", "lower", "one"] | None
Space = Literal["clean", "legacy_tensorflow", "legacy_pytorch", "patches"]
Measure = Callable[..., Tensor | float]
"""(restored, truth), or (restored) where no truth is needed, to a number; see `ImageMetric.needs_prior`.

Each is an image (1, C, H, W), float64 in [0, 1], that it must leave as it is. A `Batched`
one takes many at once.
"""

GREY_OR_RGB = (1, 3)
"""Channels of images that a network for colours sees, grey as three equal ones."""
SPACE_WEIGHTS: Mapping[str, Weights | None] = {
    "clean": INCEPTION,
    "legacy_tensorflow": INCEPTION,
    "legacy_pytorch": PT_INCEPTION,
    "patches": None,
}
"""What the features of an image are made with: clean-fid's modes, and patches without a network."""


@dataclass(frozen=True)
class ImageMetric:
    """A number for each restored image.

    Attributes:
        title: as it heads a column. better: which values are; None: neither.
        about: definition, range, network and source; the first line says it in short.
        load: makes the function for a device. needs_truth: whether that takes the truth, too.
        needs_prior: whether it takes, in the truth's place, what the job's prior makes of the image there and
            back (`samplers.inversion`). Only of what a job restores, not of its baselines.
        range: least and largest value, within which intervals stay.
        most: larger values, infinite ones too, count as this in every mean, difference and interval.
        smallest: side of the smallest image, pixels.
        channels: how many an image may have; None: any number.
        weights: a file that it needs. extra: a package that it needs.
    """

    title: str
    better: Better
    about: str
    load: Callable[[torch.device], Measure]
    needs_truth: bool = True
    needs_prior: bool = False
    range: tuple[float, float] = (0.0, math.inf)
    most: float = math.inf
    smallest: PositiveInt = 1
    channels: tuple[PositiveInt, ...] | None = None
    weights: Weights | None = None
    extra: Extra | None = None


@dataclass(frozen=True)
class SetMetric:
    """A number for a set of restored images, compared with a reference set.

    Attributes:
        title, better, about: as of an `ImageMetric`.
        space: what it sees of each image.
        compare: makes the number of two sets.
        moments: whether mean and covariance of the reference suffice, or its features are needed.
    """

    title: str
    better: Better
    about: str
    space: Space
    compare: Compare
    moments: bool = False

    @property
    def weights(self) -> Weights | None:
        """The file that its features need."""
        return SPACE_WEIGHTS[self.space]

    @property
    def extra(self) -> Extra | None:
        """A package that it needs: none."""
        return None

    @property
    def smallest(self) -> int:
        """Side of the smallest image, pixels."""
        return 8 if self.space == "patches" else 1

    @property
    def channels(self) -> tuple[int, ...]:
        """How many an image may have: grey is three equal channels to it."""
        return GREY_OR_RGB


@dataclass(frozen=True)
class ClipMetric:
    """A number for a set of clips of frames, compared with the true ones.

    Attributes:
        title, better, about, smallest, channels: as of an `ImageMetric`.
        compare: makes a number, not negative, of two consecutive frames, restored and true, each
            (2, H, W, C) float64 on [0, 1].
    """

    title: str
    better: Better
    about: str
    compare: Callable[[np.ndarray, np.ndarray], float]
    smallest: PositiveInt = 1
    channels: tuple[PositiveInt, ...] | None = None

    @property
    def weights(self) -> Weights | None:
        """A file that it needs: none."""
        return None

    @property
    def extra(self) -> Extra | None:
        """A package that it needs: none."""
        return None


Metric = ImageMetric | SetMetric | ClipMetric


@dataclass(frozen=True)
class Batched:
    """A measure that takes images (B, C, H, W) and gives numbers (B,).

    Each number must be what it is of the image alone, to the last digit.
    """

    measure: Callable[..., Tensor]

    def __call__(self, *images: Tensor) -> Tensor:
        """The numbers of some images."""
        return self.measure(*images)


def plain(measure: Measure) -> Callable[[torch.device], Measure]:
    """What loads a function that is the same on all devices."""
    return lambda device: measure


def batched(measure: Callable[..., Tensor]) -> Callable[[torch.device], Measure]:
    """As `plain`, of a function that takes many images at once; see `Batched`."""
    return lambda device: Batched(measure)
