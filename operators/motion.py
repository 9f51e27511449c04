"""Motion blur: the path of a shaken camera, drawn as a kernel."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from kintsugi.operators.blur import Taps, offsets
from kintsugi.operators.convolution import Boundary, Convolution, convolution

STEPS = 2000
"""Points on a path: many to a pixel, so that their sum is smooth."""


def motion_blur(
    image_shape: tuple[int, int, int],
    *,
    taps: Taps = 61,
    intensity: Annotated[float, Field(ge=0, le=1)] = 0.5,
    seed: NonNegativeInt = 0,
    boundary: Boundary = "circular",
    threshold: NonNegativeFloat = 3e-2,
) -> Convolution:
    """Blur along a random path, a function of `seed`, within a kernel of taps × taps that sums to 1.

    `intensity`: 0 is a straight line, 1 a path that turns all the time. Such a kernel has a
    decomposition for the circular boundary only. After Boracchi & Foi 2012 and DeblurGAN (Kupyn et
    al. 2018, 1711.07064); setting: DPS (2209.14687), 61 taps, intensity 0.5.
    """
    kernel = draw(path(intensity, seed) * (taps - 1), offsets(taps))
    return convolution(image_shape, kernel, boundary, threshold)


def path(intensity: float, seed: int) -> Tensor:
    """Points (STEPS, 2) of a random walk at constant speed, its length between ¼ and ¾.

    The heading drifts as Brownian motion (inertia), and now and then jumps to any other (a shake).
    """
    rng = np.random.Generator(np.random.Philox(seed))
    length = rng.uniform(0.25, 0.75)
    drift = rng.normal(0, intensity * np.pi / STEPS**0.5, STEPS)
    shakes = (rng.random(STEPS) < 4 * intensity / STEPS) * rng.uniform(-np.pi, np.pi, STEPS)
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(drift + shakes)
    points = np.cumsum(np.stack([np.sin(heading), np.cos(heading)], axis=1), axis=0) * length / STEPS
    return torch.from_numpy(points)


def draw(points: Tensor, grid: Tensor) -> Tensor:
    """The kernel of a path (steps, 2) in pixels, each point shared by the pixels around it bilinearly.

    Its centre of mass is in the middle, so that the blur does not shift the image. No point is farther
    from it than half the path's length, so all fit on the grid.
    """
    centred = points - points.mean(0)
    rows, columns = ((1 - (axis[:, None] - grid).abs()).clamp_min(0) for axis in centred.T)
    return rows.T @ columns / len(points)
