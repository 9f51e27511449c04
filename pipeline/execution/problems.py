"""What restoring images of each size takes: operator, sampler and prior, kept for the sizes used last."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from kintsugi import operators, samplers
from kintsugi.errors import JobError
from kintsugi.operators import NotStackable, Operator, SpecError, stack
from kintsugi.pipeline.data.decode import MAX_PIXELS, Decoded
from kintsugi.pipeline.execution.identity import of_specs, refuse_changed
from kintsugi.pipeline.execution.own import Own, as_told, own_of
from kintsugi.pipeline.execution.timing import Metered
from kintsugi.pipeline.job import Job
from kintsugi.priors.base import ClassConditional, Prior, Prompted, autoencoder_of, innermost
from kintsugi.priors.reuse import Reusing
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers.base import Callback, Restoration, Sampler, check_fit
from kintsugi.samplers.noise import Noise

MAX_SIDE = 16_384  # whose decomposition takes minutes
KEPT = 8  # sizes of measurements whose decompositions are kept

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Prepared:
    """What restoring images of one size takes. A sampler of its own, for it remembers its coefficients.

    Attributes:
        gaussian, sigma_y: standard deviations, of the Gaussian noise and of what the sampler is told, on
            [-1, 1]; of samples with levels of their own (B, 1, 1, 1).
        own: of a batch whose samples have parameters of their own, each; empty otherwise.
        reusing: what the sampler asks where features are to be reused; else it asks `metered`.
    """

    operator: Operator
    sampler: Sampler
    metered: Metered
    gaussian: float | Tensor
    sigma_y: float | Tensor
    own: Sequence[Own] = ()
    reusing: Reusing | None = None

    def alone(self, place: int) -> tuple[Operator, float]:
        """The operator of one sample of the batch, and `sigma_y`."""
        if self.own:
            return self.own[place].operator, self.own[place].degradation.sigma_y
        assert not isinstance(self.sigma_y, Tensor)
        return self.operator, self.sigma_y

    def restore(self, y: Tensor, noise: Noise, callback: Callback | None = None) -> Restoration:
        """One restoration of each measurement of a batch."""
        with nullcontext() if self.reusing is None else self.reusing.restoring():
            return self.sampler(
                self.reusing or self.metered,
                self.operator,
                y,
                noise,
                sigma_y=self.sigma_y,
                callback=callback,
            )

    def begin(self, labels: Sequence[int | None], prompts: Sequence[str], tiles: int) -> None:
        """Tell the prior the next batch's classes, or prompts, and number of tiles.

        Raises:
            ValueError: a class is missing, or a prompt cannot be used.
        """
        prior = self.metered.prior
        if isinstance(prior, Tiled):
            prior.batch = tiles
        told = innermost(prior)
        if isinstance(told, Prompted) and told.prompted and isinstance(prior, ClassConditional):
            told.set_prompts(prompts)
            prior.labels = torch.arange(len(prompts), device=self.metered.device)
            return
        if not isinstance(prior, ClassConditional) or prior.classes is None or prior.label is not None:
            return
        if None in labels:
            raise ValueError("the prior is class-conditional and the sample has no .cls; set prior.label")
        prior.labels = torch.tensor(labels, device=self.metered.device)


def together(base: Prepared, own: Sequence[Own]) -> Prepared:
    """The problem of samples with parameters of their own; raises NotStackable if there is no common one."""
    operator = stack([one.operator for one in own])
    levels = [(one.degradation.gaussian, one.degradation.sigma_y) for one in own]
    gaussian, sigma_y = levels[0]
    if all(level == levels[0] for level in levels):
        return replace(base, operator=operator, gaussian=gaussian, sigma_y=sigma_y, own=own)
    if any(level == 0 for _, level in levels):
        raise NotStackable("samples with noise and without, which samplers treat differently")
    of_each = torch.tensor(levels, device=operator.singular_values.device).T[..., None, None, None]
    return replace(base, operator=operator, gaussian=of_each[0], sigma_y=of_each[1], own=own)


def reusing_of(prior: Prior, every: int | None) -> Reusing | None:
    """The prior with features that are reused, if a job asks for it; raises a JobError where it cannot."""
    try:
        return None if every is None else Reusing(prior, every)
    except SpecError as error:
        raise JobError(f"compute.{error}") from error


class Shapes(NamedTuple):
    """Of an operator's images and measurements; `border` as of the operator."""

    image: Shape
    measurement: tuple[int, ...]
    border: tuple[int, int] = (0, 0)


class Problems:
    """The problems of a job by the size of its images; those of a few sizes are kept.

    Args:
        multiple: what the sides of the network's images must be divisible by.
        files: SHA-256 that files of the operator and the sampler must have, by field; of others nothing.

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
        self.parameters = job.degradation.parameters
        self.typical = self.typical_shapes()

    def typical_shapes(self) -> Shapes | None:
        """Shapes of the smallest square images from `data.size` on, by a quarter at most, that fit."""
        size = self.job.data.size
        for side in range(size, size + size // 4 if self.job.from_measurements else size + 1):
            with suppress(SpecError):
                operator = self.of_images((self.job.data.channels, side, side)).operator
                return Shapes(operator.image_shape, operator.measurement_shape, operator.border)
        return None

    def of_images(self, shape: Shape) -> Prepared:
        """The problem of images (C, H, W).

        Raises:
            SpecError: the operator does not fit the shape.
            ValueError: the sampler does not fit; the message begins with the field.
            JobError: a file of the operator or the sampler is not what it must be.
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
        degradation = job.degradation.typical(shape[1:])
        operator = operators.build(degradation.operator, shape, device=self.device)
        self.check_files()  # again, so that what was read in between is what is checked
        prior = self.prior
        if job.from_measurements:
            prior = self.tiled()
        sampler, metered = samplers.build(job.sampler), Metered(prior, self.device)
        reusing = reusing_of(metered, job.compute.reuse)
        levels = degradation.gaussian, degradation.sigma_y
        found = Prepared(operator, sampler, metered, *levels, reusing=reusing)
        like = torch.empty(0, device=self.device)
        check_fit(sampler, prior)  # a plug-in may not ask
        sampler.prepare(reusing or metered, operator, degradation.sigma_y, like)
        return found

    def tiled(self) -> Tiled:
        """The prior of images of any size, by tiles of `data.size`, or of the latents of so many pixels."""
        size, coder = self.job.data.size, autoencoder_of(self.prior)
        larger, smaller = (1, 1) if coder is None else (coder.enlarge, coder.factor)
        overlap = min(self.job.restoration.overlap, size // 2)
        tile, multiple, least = (
            max(1, pixels * larger // smaller) for pixels in (size, self.multiple, overlap)
        )
        return Tiled(self.prior, tile, multiple, least)

    def of_batch(self, base: Prepared, samples: Sequence[Decoded]) -> Prepared:
        """The problem of a batch.

        Args:
            base: the problem of the samples' shape, with typical parameters where they have their own.

        Raises:
            ValueError: a parameter of a sample is none, or the operator does not fit it; or, as NotStackable,
                several samples have no common problem.
        """
        if not self.parameters:
            return base
        own = [own_of(self.job, sample, base.operator) for sample in samples]
        return together(base, own)

    def as_told(self, problem: Prepared, y: Tensor) -> Prepared:
        """The problem of a batch as the sampler is told it: what is to be estimated is, from measurements y.

        Raises:
            ValueError: a measurement does not say it; or, as NotStackable, there is no common problem.
        """
        if all(parameter.range is None for parameter in self.parameters):
            return problem
        told = [as_told(self.job, one, y[i : i + 1]) for i, one in enumerate(problem.own)]
        return together(problem, told)

    def check_files(self) -> None:
        """Raise a JobError if a file of the operator or the sampler is gone or not what it must be."""
        if self.files:
            refuse_changed(self.files, of_specs(self.job))

    def keep(self, limit: int) -> None:
        """Keep so many problems from now on, those that were used last."""
        self.limit = limit
        while len(self.prepared) > limit:
            self.prepared.popitem(last=False)

    @property
    def measured(self) -> tuple[int, bool]:
        """Channels of a measurement, and whether it is an image."""
        if self.typical is None:
            return self.job.data.channels, True
        return self.typical.measurement[0], self.of_images(self.typical.image).operator.pixels

    def of_samples(self, shape: tuple[int, ...]) -> Prepared:
        """The problem of samples of this shape: of images, (H, W, C), or of measurements, (C, h, w).

        Raises:
            ValueError: there is none, or its images would be too large.
        """
        if not self.job.from_measurements:
            height, width, channels = shape
            return self.of_images((channels, height, width))
        pixel = (self.job.data.channels, 1, 1)
        image, measurement, border = self.typical or Shapes(pixel, pixel)
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
        found = self.of_images((self.job.data.channels, height, width))
        if found.operator.measurement_shape != shape:
            raise ValueError(
                f"a measurement of shape {shape}; of images of {height}x{width} the operator makes "
                f"{found.operator.measurement_shape}"
            )
        return found
