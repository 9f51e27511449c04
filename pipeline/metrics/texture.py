"""Perception measured without a network: do fine textures look like those of the truth?"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PATCH = 7
PROJECTIONS = 512
AT_ONCE = 32  # projections
ROUNDING = 1 / (12 * 255**2)  # variance of the error of an 8-bit picture


def ring_powers(x: Tensor) -> Tensor:
    """Mean power of an image on the rings of its spectrum from a half to the whole of Nyquist's frequency.

    The image (C, H, W) in [0, 1] is multiplied with a Hann window, for its borders are no texture, and the
    power is the mean over the channels. Ring k holds the frequencies of (k ± ½)/N cycles per pixel, N the
    shorter side, k = ⌈N/4⌉ … ⌊N/2⌋. What rounding to 8 bits would add is added, so that no ring is empty.
    """
    window, places, shares = rings(*x.shape[-2:], x.dtype, x.device)
    power = torch.fft.rfft2(x * window).abs().square().mean(0)
    return (power.flatten()[places] * shares).sum(1) + ROUNDING


@lru_cache(maxsize=8)
def rings(height: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What `ring_powers` multiplies an image with, and its rings.

    Returns:
        The window (H, W) of power 1, the places in the half of the spectrum that `rfft2` gives, (rings,
        longest), and their weights: twice where the other half has the same, and 0 behind a ring's end.
    """
    shorter = min(height, width)
    window = torch.outer(*(torch.hann_window(side, dtype=torch.float64) for side in (height, width)))
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    ring = (torch.hypot(rows[:, None], columns) * shorter).round().long().flatten()
    weights = torch.full((height, len(columns)), 2.0, dtype=torch.float64)
    weights[:, 0] = 1
    if width % 2 == 0:
        weights[:, -1] = 1
    members = [(ring == k).nonzero().flatten() for k in range(-(-shorter // 4), shorter // 2 + 1)]
    shares = [weights.flatten()[of] / weights.flatten()[of].sum() for of in members]
    places, padded = (pad_sequence(each, batch_first=True) for each in (members, shares))
    window = window / window.square().sum().sqrt()
    return window.to(device, dtype), places.to(device), padded.to(device, dtype)


def patches_of(level: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """7×7 patches of (B, C, H, W) whose first corners are at rows, columns (B, n): (B, n, 7, 7, C)."""
    offsets = torch.arange(PATCH)
    images = torch.arange(len(level))[:, None, None, None]
    rows, columns = rows[..., None, None] + offsets[:, None], columns[..., None, None] + offsets
    return level.permute(0, 2, 3, 1)[images, rows, columns]


def patch_distance(
    restored: Tensor, truth: Tensor, generator: torch.Generator, projections: int = PROJECTIONS
) -> float:
    """Sliced Wasserstein-1 distance between two sets of equally many patches (n, values).

    Karras et al., ICLR 2018 (1710.10196), section 5.
    """
    directions = torch.randn(truth.shape[1], projections, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(truth)
    total = 0.0
    for some in directions.split(AT_ONCE, 1):
        apart = (restored @ some).sort(0).values - (truth @ some).sort(0).values
        total += apart.abs().mean(0).sum().item()
    return total / projections
