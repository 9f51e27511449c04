"""There and back: an image taken to a moderate noise level by a prior's own DDIM steps, and back again."""

from itertools import pairwise

import torch
from torch import Tensor

from kintsugi.priors.base import Prior
from kintsugi.samplers.base import Restoration, check_prediction
from kintsugi.samplers.descent import PATH, Denoiser, noise_in, noise_levels
from kintsugi.samplers.grids import time_grid

STEPS = 3
"""In each direction."""
START, END = 0.1, 0.001
"""VP times of the furthest level, σ = 0.34 on [-1, 1], and of the nearest, for which the image is taken."""
EVALUATIONS = 2 * STEPS


@torch.no_grad()
def there_and_back(prior: Prior, image: Tensor) -> Restoration:
    """Images (B, C, H, W) on [-1, 1] by deterministic DDIM steps to `START`, and back.

    The reconstruction of DIRE (Wang et al., ICCV 2023, 2303.09295, equations 5 and 6), which goes on to pure
    noise. Infinitely many steps would give every image back; few give back what the prior's trajectories
    through it are straight for, whatever the batch.

    Raises:
        ValueError: the prior is no denoiser.
    """
    check_prediction(prior, "prior_error")
    denoise = Denoiser(prior, None)
    falling = noise_levels(PATH, prior, time_grid(PATH, "uniform", START, END, STEPS), image)[:-1]
    rising = falling[::-1]
    x = rising[0].a * image
    for now, later in (*pairwise(rising), *pairwise(falling)):
        prediction = denoise(x, now)
        x = later.a * prediction + later.s * noise_in(x, prediction, now)
    return Restoration(x / rising[0].a, forwards=denoise.forwards, vjps=denoise.vjps)
