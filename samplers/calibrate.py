"""The errors of a prior's predictions, measured on images: the table of `samplers.errors`."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kintsugi import operators
from kintsugi.numerics import Map, cosines
from kintsugi.priors.base import Prior, autoencoder_of
from kintsugi.priors.paths import log_snr
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import PATH, Denoiser, noise_levels
from kintsugi.samplers.errors import Table, frequencies_of
from kintsugi.samplers.noise import KeyedNoise

LEVELS, LOWEST, HIGHEST = 12, 0.018, 7.4
"""σ = s/a that are measured, as far as the prior's path reaches, even in log σ."""
RINGS = 24
"""Of even width in log |f|, and one more for the constant; those without a coefficient are left out."""


class Calibration:
    """Mean squares of DCT(x₀ − x̂₀) on rings of equal |f|, gathered over batches of images.

    Args:
        prior: what predicts. size: side of typical images, whose lowest frequency has the first ring.
    """

    def __init__(self, prior: Prior, size: int):
        ends = torch.tensor([prior.path.data_time, prior.path.noise_time], dtype=torch.float64)
        least, most = torch.exp(-log_snr(prior.path, ends)).tolist()
        first, last = math.log10(max(LOWEST, 1.01 * least)), math.log10(min(HIGHEST, 0.99 * most))
        self.prior, self.size, self.images = prior, size, 0
        self.sigmas = torch.logspace(first, last, LEVELS, dtype=torch.float64)
        constant, *others = frequencies_of(size, size).flatten().sort().values.tolist()
        waves = torch.logspace(math.log10(others[0]), math.log10(others[-1]), RINGS, dtype=torch.float64)
        self.frequencies = torch.cat([torch.tensor([constant], dtype=torch.float64), waves])
        self.sums, self.counts = torch.zeros(LEVELS, RINGS + 1, dtype=torch.float64), torch.zeros(RINGS + 1)

    @torch.no_grad()
    def add(self, truth: Tensor, noise: KeyedNoise, advance: Callable[[], object] = lambda: None) -> None:
        """Gather the errors of images (B, C, H, W), by a forward at each level; `advance` after each.

        With a prior of latents it is decoded predictions that err, of encoded images and noise.
        """
        count, _, height, width = truth.shape
        encode, decode = coding(self.prior, truth)
        clean = encode(truth)
        rows, columns = (cosines(n).to(truth) for n in (height, width))
        between = (self.frequencies[1:] * self.frequencies[:-1]).sqrt()
        ring = torch.bucketize(frequencies_of(height, width), between).flatten()
        denoise = Denoiser(self.prior, None)
        levels = noise_levels(PATH, self.prior, PATH.time_of(-self.sigmas.log()), truth)[:-1]
        for sums, level, number in zip(self.sums, levels, range(LEVELS), strict=True):
            z = noise.normal(f"calibrate-{number}", tuple(clean.shape[1:])).to(truth)
            error = decode(denoise(level.a * clean + level.s * z, level)) - truth
            squared = (rows @ error @ columns.T).double().square().mean(1).sum(0).flatten().cpu()
            sums.index_add_(0, ring, squared)
            advance()
        self.counts += count * torch.bincount(ring, minlength=RINGS + 1)
        self.images += count

    def table(self, prior: str, precision: str) -> Table:
        """What was gathered; `prior` is the SHA-256 of its weights."""
        there = self.counts > 0
        variances = self.sums[:, there] / self.counts[there]
        return Table(
            prior=prior,
            size=self.size,
            precision=precision,
            images=self.images,
            sigmas=rounded(self.sigmas),
            frequencies=rounded(self.frequencies[there]),
            variances=[rounded(row) for row in variances],
        )


def coding(prior: Prior, images: Tensor) -> tuple[Map, Map]:
    """What makes a prior's x₀ of images, and images of it: nothing, where it is of pixels."""
    autoencoder = autoencoder_of(prior)
    if autoencoder is None:
        return (lambda x: x), (lambda x: x)
    _, channels, height, width = images.shape
    whole = operators.build({"name": "denoise"}, (channels, height, width), device=images.device)
    coder = Decoded(whole, autoencoder)
    return coder.latents_of, coder.image


def rounded(values: Tensor) -> list[float]:
    """To six digits, which is more than there is to know."""
    return [float(f"{value:.6g}") for value in values.tolist()]
