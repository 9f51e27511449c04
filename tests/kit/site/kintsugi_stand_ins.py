"""A prior and a sampler whose pauses stand for a network: a plug-in, also of actors, by PYTHONPATH."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from kintsugi.cache import checksum
from kintsugi.priors import Format
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.natural import Description
from kintsugi.samplers.base import Restoration


class Gaussian(StandardNormal):
    """x₀ ~ N(0, I), known after a pause.

    An actor with it is there in half the time: importing what networks are made of takes seconds.
    """

    sha256 = checksum(())

    def __init__(self, pause: float):
        super().__init__()
        self.pause, self.network = pause, torch.nn.Identity()

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        time.sleep(self.pause)
        return super().__call__(x, t)


def gaussian(device: str | torch.device = "cpu", *, pause: float = 0.0) -> Gaussian:
    return Gaussian(pause)


def describe_gaussian(*, pause: float = 0.0) -> Description:
    return Description(multiple=1, parameters=0, files=())


GAUSSIAN = Format(gaussian, describe_gaussian)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """H⁺y, after `pause` seconds for every image."""

    pause: float = 0.0

    def prepare(self, prior: Any, operator: Any, sigma_y: float, like: Any) -> None:
        pass

    def __call__(self, prior: Any, operator: Any, y: Any, noise: Any, **options: Any) -> Restoration:
        time.sleep(self.pause * len(y))
        return Restoration(operator.pinv(y), 0, 0)
