"""Motion blur: the path of a shaken camera, drawn as a kernel."""

import math
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, FiniteFloat, NonNegativeFloat, NonNegativeInt
from torch import Tensor

from kintsugi.operators.blur import Taps, offsets
from kintsugi.operators.convolution import Boundary, Convolution, convolution

STEPS = 2000
"""Points on a path: many to a pixel, so that their sum is smooth."""
PER_PIXEL = 4
"""Points to a pixel of a trajectory."""


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


def linear_motion_blur(
    image_shape: tuple[int, int, int],
    *,
    length: Annotated[float, Field(gt=0, le=1000)] = 15.0,
    angle: FiniteFloat = 0.0,
    boundary: Boundary = "circular",
    threshold: NonNegativeFloat = 3e-2,
) -> Convolution:
    """Blur along a straight line of `length` pixels, turned by `angle` degrees counter-clockwise.

    The camera moves at constant speed while the shutter is open, and every point of the line is shared by
    the pixels around it. For the circular boundary only. Source: MATLAB's fspecial("motion"), but for that.
    """
    along = (torch.arange(STEPS, dtype=torch.float64) + 0.5) / STEPS * length
    radians = math.radians(angle)
    points = torch.stack([-math.sin(radians) * along, math.cos(radians) * along], dim=1)  # rows count down
    return convolution(image_shape, draw(points, offsets(2 * math.ceil(length / 2) + 3)), boundary, threshold)


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


def trajectory(size: int, intensity: float, rng: np.random.Generator) -> Tensor:
    """A kernel (size, size), sum 1, of the random paths of "motionblur", with which DPS made its benchmark.

    Of the diagonal of the kernel the path is ¾ (u + v) long, u uniform on [0, 1] and v on [0, intensity²]. It
    consists of straight steps, each a share of the diagonal (1.1 − intensity) times a Beta(1, 30) variable,
    whose headings are on one side of an axis, until they change it with a probability that is a
    Beta(2, 20) variable. They are from the axis by up to a widest angle, uniform on [0, intensity π].
    The axis is any. The path's centre of mass is in the middle of the kernel, and a path that leaves the
    kernel is cut. Where it passes twice it counts twice. Sources: motionblur (L. Borodenko, 2019), 61² and
    intensity 0.5 in DPS (2209.14687); compare Delbracio & Sapiro 2015.
    """
    diagonal = size * 2**0.5
    length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    steps = np.empty(0)
    while steps.sum() < length:
        steps = np.append(steps, (1.1 - intensity) * diagonal * rng.beta(1, 30, 64))
    ends = np.minimum(np.cumsum(steps), length)
    widest = rng.uniform(0, intensity * np.pi)
    angles = rng.triangular(0, intensity * widest, widest + 0.1, len(ends))
    changes = rng.random(len(ends)) < rng.beta(2, 20)
    headings = rng.uniform(0, 2 * np.pi) + angles * np.cumprod(np.where(changes, -1, 1))
    moves = np.diff(ends, prepend=0)
    along = np.linspace(0, length, 2 + int(PER_PIXEL * length))
    points = [
        np.interp(along, np.append(0, ends), np.append(0, np.cumsum(moves * turn(headings))))
        for turn in (np.sin, np.cos)
    ]
    kernel = draw(torch.from_numpy(np.stack(points, axis=1)), offsets(size))
    return kernel / kernel.sum()
