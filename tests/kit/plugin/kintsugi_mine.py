"""An operator, a sampler, a prior and a metric of another package: this file and its entry points."""

import torch
from pydantic.dataclasses import dataclass

from kintsugi.cache import checksum
from kintsugi.operators import Mask
from kintsugi.pipeline.metrics import ImageMetric, plain
from kintsugi.priors import Format
from kintsugi.priors.analytic import StandardNormal
from kintsugi.priors.natural import Description
from kintsugi.samplers.descent import Stepwise, noise_in, renoise


def interlaced(image_shape, *, every: int = 2) -> Mask:
    """Of all rows each `every`-th is known."""
    known = torch.zeros(image_shape, dtype=torch.bool)
    known[:, ::every] = True
    return Mask(known)


@dataclass(kw_only=True, frozen=True)
class Replace(Stepwise):
    """The measured part of every prediction is replaced by H⁺y. eta: share of fresh noise, 0 to 1."""

    eta: float = 0.5
    weights: list[float] | None = None
    mode: str = "all"

    def step(self, problem, denoise, x, now, later):
        prediction = denoise(x, now)
        consistent = problem.operator.impose(prediction, problem.y)
        kept = noise_in(x, prediction, now)
        return renoise(problem, consistent, kept, later, self.eta), consistent


def flat(device="cpu") -> StandardNormal:
    """Standard normal pixels; no file."""
    prior = StandardNormal()
    prior.network, prior.sha256 = torch.nn.Identity().eval(), checksum(())
    return prior


FLAT = Format(flat, lambda: Description(multiple=1, parameters=0, files=()))


def largest_error(restored, truth):
    """Of images (1, C, H, W) in [0, 1]."""
    return (restored - truth).abs().max()


LARGEST_ERROR = ImageMetric(
    "largest error",
    "lower",
    "Largest absolute error of a value, on [0, 1].",
    plain(largest_error),
    range=(0.0, 1.0),
)
