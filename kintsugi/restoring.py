"""Restore images that are in memory: what they are becomes measurements, and comes back of the same kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kintsugi import operators
from kintsugi.device import default_device
from kintsugi.errors import JobError, SpecError
from kintsugi.pipeline.data.colour import GREY
from kintsugi.pipeline.data.convert import Measurements
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.data.depth import DEVIATIONS, OVERSHOOT
from kintsugi.pipeline.execution.degrade import levels
from kintsugi.pipeline.execution.own import prompts_of
from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.execution.samples import Samples
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.job import Job

SIDE = 256  # of images by which an operator is asked for its channels
TENSORS = "(B, C, H, W) of floating point on [-1, 1]"
KINDS = "a PIL image, a list of them, an array (B, H, W, C) or a tensor (B, C, H, W)"


def restore_images(job: Job, images: Any, keys: Sequence[str] | None) -> Any:
    """As `kintsugi.restore`, by a job of measurements.

    Raises:
        JobError: the images are no such, or on another range; keys do not fit them.
        SpecError, ValueError, UnreadableImage: operator, prior or sampler do not fit them.
    """
    stage = Stage(job, default_device())
    measured = measurements(stage, images)
    keys = list(map(str, range(len(measured)))) if keys is None else list(keys)
    if len(keys) != len(measured):
        raise JobError(f"keys: {len(keys)}, of {len(measured)} images")
    try:
        return like(images, restored(stage, keys, measured))
    except ValueError as error:
        raise JobError(f"images: {error}") from error


def measurements(stage: Stage, images: Any) -> list[np.ndarray]:
    """Each image as a measurement (C, h, w) float32 on [-1, 1].

    Raises:
        JobError: see `restore_images`.
        UnreadableImage: of an image it is not known what white is.
    """
    channels, pixels = stage.problems.measured
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, Tensor):
        if images.ndim != 4 or not images.is_floating_point():
            shape = tuple(images.shape)
            raise JobError(f"images: {images.dtype} with shape {shape}; tensors are {TENSORS}")
        values = images.detach().cpu().float().numpy()
        return list(
            on_range(values, -1.0, 1.0, stage.job.degradation.most_noise) if pixels else finite(values)
        )
    if not pixels:
        name = stage.job.degradation.operator["name"]
        raise JobError(f"images: the measurement of {name!r} is no image; give a tensor (B, C, h, w)")
    if isinstance(images, list | tuple) and all(isinstance(image, Image.Image) for image in images):
        return [Measurements(channels).from_image(image) for image in images]
    if not isinstance(images, np.ndarray):
        raise JobError(f"images: {type(images).__name__}, not {KINDS}")
    if images.ndim != 4 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise JobError(
            f"images: {images.dtype} with shape {images.shape}; arrays are (B, H, W, C), of uint8 "
            "or of floating point on [0, 1]"
        )
    if images.dtype == np.uint8:
        values = images.astype(np.float32) / 127.5 - 1
    else:
        values = on_range(images, 0.0, 1.0, stage.job.degradation.most_noise)
    return list(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def on_range(values: np.ndarray, low: float, high: float, deviation: float) -> np.ndarray:
    """Numbers on [low, high], but for noise and overshoot, as float32 on [-1, 1]; else a JobError."""
    scaled = (finite(values) - np.float32(low)) * np.float32(2 / (high - low)) - 1
    seen = f"values from {values.min(initial=np.inf):g} to {values.max(initial=-np.inf):g}"
    kinds = "tensors are on [-1, 1], arrays of floating point on [0, 1], arrays of uint8 on 0 … 255"
    if np.abs(scaled).max(initial=0) > OVERSHOOT + DEVIATIONS * deviation:
        raise JobError(f"images: {seen}, far outside of [{low:g}, {high:g}]: {kinds}")
    if low < 0 and scaled.size and scaled.min() >= 0 and scaled.max() > 0:
        raise JobError(f"images: {seen}, nothing darker than mid-grey, so on another range: {kinds}")
    return scaled


def finite(values: np.ndarray) -> np.ndarray:
    """The values as float32; raises a JobError if some are NaN or infinite."""
    if not np.isfinite(values).all():
        raise JobError("images: they hold NaN or infinity")
    return values.astype(np.float32)


def channels_of(images: Any, operator: Mapping[str, Any]) -> int:
    """Those of the restorations: three where what came in measures RGB, else as many as came in."""
    came, height, width = 3, SIDE, SIDE
    if isinstance(images, Image.Image | list | tuple):
        pictures = [images] if isinstance(images, Image.Image) else images
        if pictures and all(isinstance(one, Image.Image) and one.mode in GREY for one in pictures):
            came, (width, height) = 1, pictures[0].size
    elif isinstance(images, Tensor) and images.ndim == 4:
        came, height, width = images.shape[1:]
    elif isinstance(images, np.ndarray) and images.ndim == 4:
        height, width, came = images.shape[1:]
    for shape in () if came == 3 else ((3, SIDE, SIDE), (3, height, width)):
        with suppress(SpecError):  # it fits images of another size; or none, which the job will say
            return 3 if operators.build(operator, shape).measurement_shape[0] == came else came
    return came


def restored(stage: Stage, keys: list[str], measured: list[np.ndarray]) -> list[Tensor]:
    """The restorations (C, H, W) on [-1, 1], in the batches in which a run would make them.

    Raises:
        JobError: a result is not finite.
        ValueError: measurements do not fit the operator, or lack a label.
    """

    def restore(problem: Prepared, samples: Sequence[Decoded], batch: np.ndarray) -> list[Tensor]:
        problem.begin([None] * len(samples), prompts_of(stage.job, samples), stage.batch_size)
        y = torch.from_numpy(batch).to(stage.device)
        keys = [sample.key for sample in samples]
        return list(Samples(stage.job, keys, y).draw(stage.problems.as_told(problem, y)))

    samples = [Decoded(key, i, image) for i, (key, image) in enumerate(zip(keys, measured, strict=True))]
    found = stage.in_batches(samples, restore)
    for key, image in zip(keys, found, strict=True):
        if not image.isfinite().all():
            raise JobError(f"images: the restoration of {key!r} contains NaN or infinity")
    return found


def like(images: Any, restorations: list[Tensor]) -> Any:
    """Restorations (C, H, W) on [-1, 1] as images of the kind that was given."""
    if isinstance(images, Image.Image | list | tuple):
        pixels = (levels(one[None], 8)[0] for one in restorations)
        pictures = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]
        return pictures[0] if isinstance(images, Image.Image) else pictures
    if not restorations:
        return images
    stacked = torch.stack(restorations)
    if isinstance(images, Tensor):
        return stacked.to(images)
    if images.dtype == np.uint8:
        return levels(stacked, 8)
    return ((stacked.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).cpu().numpy().astype(images.dtype)
