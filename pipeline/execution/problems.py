"""What restoring images of each size takes: operator, sampler and prior, kept for the sizes used last."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch

from kintsugi import operators, samplers
from kintsugi.operators import Operator, SpecError
from kintsugi.pipeline.data.decode import MAX_PIXELS
from kintsugi.pipeline.execution.identity import of_operator, refuse_changed
from kintsugi.pipeline.execution.timing import Metered
from kintsugi.pipeline.job import Job
from kintsugi.priors.base import ClassConditional, Prior
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers.base import Sampler

MAX_SIDE = 16_384  # whose decomposition takes minutes
KEPT = 8  # sizes of measurements whose decompositions are kept

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """What restoring images of one size takes. A sampler of its own, for it remembers its coefficients."""

    operator: Operator
    sampler: Sampler
    metered: Metered

    def begin(self, labels: Sequence[int | None], tiles: int) -> None:
        """Tell the prior the next batch's classes and number of tiles; a missing class is a ValueError."""
        prior = self.metered.prior
        if isinstance(prior, Tiled):
            prior.batch = tiles
        if not isinstance(prior, ClassConditional) or prior.classes is None or prior.label is not None:
            return
        if None in labels:
            raise ValueError("the prior is class-conditional and the sample has no .cls; set prior.label")
        prior.labels = torch.tensor(labels, device=self.metered.device)


class Shapes(NamedTuple):
    """Of an operator's images and measurements; `border` as of the operator."""

    image: Shape
    measurement: tuple[int, ...]
    border: tuple[int, int] = (0, 0)


class Problems:
    """The problems of a job by the size of its images; those of a few sizes are kept.

    Args:
        multiple: what the sides of the network's images must be divisible by.
        files: SHA-256 that the files of the operator must have, by field; nothing is asked of others.

    Attributes:
        prepared: what is kept, by the shape of images, the last used at the end; at most `limit` of them.
        typical: shapes of images with sides `data.size`; of measurements perhaps a little larger, or None
            where none of these fits the operator.

    Raises:
        ValueError, JobError: as `of_images`.
    """

    def __init__(self, job: Job, prior: Prior, device: torch.device, multiple: int, files: Mapping[str, str]):
        self.job, self.prior, self.device, self.multiple, self.files = job, prior, device, multiple, files
        self.prepared: OrderedDict[Shape, Prepared] = OrderedDict()
        self.limit = KEPT
        self.typical = self.typical_shapes()

    def typical_shapes(self) -> Shapes | None:
        """Shapes of the smallest square images from `data.size` on, by a quarter at most, that fit."""
        size = self.job.data.size
        for side in range(size, size + size // 4 if self.job.from_measurements else size + 1):
            with suppress(SpecError):
                operator = self.of_images((3, side, side)).operator
                return Shapes(operator.image_shape, operator.measurement_shape, operator.border)
        return None

    def of_images(self, shape: Shape) -> Prepared:
        """The problem of images (C, H, W).

        Raises:
            SpecError: the operator does not fit the shape.
            ValueError: the sampler does not fit; the message begins with the field.
            JobError: a file of the operator is not what it must be.
        """
        if shape not in self.prepared:
            self.prepared[shape] = self.prepare(shape)
            self.keep(self.limit)
        self.prepared.move_to_end(shape)
        return self.prepared[shape]

    def prepare(self, shape: Shape) -> Prepared:
        """The problem of images (C, H, W), made anew; raises as `of_images`."""
        job = self.job
        self.check_files()
        operator = operators.build(job.degradation.operator, shape, device=self.device)
        self.check_files()  # again, so that what was read in between is what is checked
        prior = self.prior
        if job.from_measurements:
            prior = Tiled(
                prior, job.data.size, self.multiple, min(job.restoration.overlap, job.data.size // 2)
            )
        found = Prepared(operator, samplers.build(job.sampler), Metered(prior, self.device))
        like = torch.empty(0, device=self.device)
        found.sampler.prepare(found.metered, operator, job.degradation.sigma_y, like)
        return found

    def check_files(self) -> None:
        """Raise a JobError if a file of the operator is gone or not what it must be."""
        if self.files:
            refuse_changed(self.files, of_operator(self.job))

    def keep(self, limit: int) -> None:
        """Keep so many problems from now on, those that were used last."""
        self.limit = limit
        while len(self.prepared) > limit:
            self.prepared.popitem(last=False)

    @property
    def measured(self) -> tuple[int, bool]:
        """Channels of a measurement, and whether it is an image."""
        if self.typical is None:
            return 3, True
        return self.typical.measurement[0], self.of_images(self.typical.image).operator.pixels

    def of_samples(self, shape: tuple[int, ...]) -> Prepared:
        """The problem of samples of this shape: of images, (H, W, 3), or of measurements, (C, h, w).

        Raises:
            ValueError: there is none, or its images would be too large.
        """
        if not self.job.from_measurements:
            height, width, channels = shape
            return self.of_images((channels, height, width))
        image, measurement, border = self.typical or Shapes((3, 1, 1), (3, 1, 1))
        if measurement == shape:
            return self.of_images(image)
        height, width = (
            round(shape[axis] * ((image[axis] - beyond) / measurement[axis])) + beyond
            for axis, beyond in zip((1, 2), border, strict=True)
        )
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise ValueError(
                f"its restoration would have {height}x{width} pixels, more than {MAX_PIXELS:,} or a side of "
                f"{MAX_SIDE:,}"
            )
        found = self.of_images((3, height, width))
        if found.operator.measurement_shape != shape:
            raise ValueError(
                f"a measurement of shape {shape}; of images of {height}x{width} the operator makes "
                f"{found.operator.measurement_shape}"
            )
        return found
