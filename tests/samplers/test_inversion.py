"""There and back by a prior: against its closed form, for every path and batch."""

import math
from itertools import pairwise

import pytest
import torch

from kintsugi.priors.analytic import StandardNormal, StationaryGaussian, natural_spectrum
from kintsugi.priors.paths import DDPM, RectifiedFlow, VarianceExploding, VariancePreserving
from kintsugi.samplers.inversion import END, EVALUATIONS, START, STEPS, there_and_back
from kintsugi.testing import Counting

PRIORS = [
    (VariancePreserving(), "eps"),
    (RectifiedFlow(), "v"),
    (VarianceExploding(), "x0"),
    (DDPM(), "eps"),
]


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(("path", "parametrization"), PRIORS, ids=lambda value: str(value)[:8])
def test_white_images_shrink_by_the_cosines_of_the_steps(path, parametrization):
    """Of N(0, I) the trajectories turn from signal to noise; a step follows the tangent, once each way."""
    found = there_and_back(StandardNormal(path, parametrization), images(2))
    vp = VariancePreserving()
    angles = [
        math.acos(vp.a(torch.tensor(START + (END - START) * k / STEPS, dtype=torch.float64)))
        for k in range(STEPS + 1)
    ]
    factor = math.prod(math.cos(b - a) ** 2 for a, b in pairwise(angles))
    assert factor < 0.99
    tolerance = 3e-3 if isinstance(path, DDPM) else 1e-6  # whose labels begin a little above END
    torch.testing.assert_close(found.image, factor * images(2), rtol=tolerance, atol=tolerance)


def test_it_counts_its_evaluations_and_depends_on_no_batch():
    prior = Counting(StationaryGaussian(natural_spectrum(16, 16)))
    found = there_and_back(prior, images(3))
    assert (found.forwards, found.vjps, prior.forwards) == (EVALUATIONS, 0, 3 * EVALUATIONS)
    alone = torch.cat([there_and_back(prior, one[None]).image for one in images(3)])
    torch.testing.assert_close(alone, found.image, rtol=1e-12, atol=1e-12)


def test_what_is_rare_under_the_prior_comes_back_worse():
    """Waves of one amplitude: the higher the frequency, the less of it the prior expects."""
    prior = StationaryGaussian(natural_spectrum(16, 16))
    columns = torch.arange(16, dtype=torch.float64)
    waves = torch.stack([torch.cos(2 * math.pi * k * columns / 16).expand(3, 16, 16) for k in (1, 2, 4, 8)])
    waves = waves / waves.square().mean((1, 2, 3), keepdim=True).sqrt()
    errors = (there_and_back(prior, waves).image - waves).abs().mean((1, 2, 3)).tolist()
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]
