"""Perception measured without a network: do fine textures look like those of the truth?"""

import torch
from torch import Tensor

PATCH = 7
PROJECTIONS = 512
AT_ONCE = 32  # projections
ROUNDING = 1 / (12 * 255**2)  # variance of the error of an 8-bit picture


def ring_powers(x: Tensor) -> Tensor:
    """Mean power of an image on the rings of its spectrum from a half to the whole of Nyquist's frequency.

    The image (1, C, H, W) in [0, 1] is multiplied with a Hann window, for its borders are no texture, and the
    power is the mean over the channels. Ring k holds the frequencies of (k ± ½)/N cycles per pixel, N the
    shorter side, k = ⌈N/4⌉ … ⌊N/2⌋. What rounding to 8 bits would add is added, so that no ring is empty.
    """
    height, width = x.shape[-2:]
    shorter = min(height, width)
    window = torch.outer(
        *(torch.hann_window(side, dtype=x.dtype, device=x.device) for side in (height, width))
    )
    power = torch.fft.fft2(x * window).abs().square().mean((0, 1)) / window.square().sum() + ROUNDING
    rows, columns = (torch.fft.fftfreq(side, dtype=x.dtype, device=x.device) for side in (height, width))
    ring = (torch.hypot(rows[:, None], columns) * shorter).round().long()
    # Through cumulative counts rather than scatter_add, whose order, and so whose last digits, vary on GPUs.
    order = ring.flatten().argsort(stable=True)
    counts = torch.bincount(ring.flatten().cpu(), minlength=shorter // 2 + 1).tolist()
    means = torch.stack([part.mean() for part in power.flatten()[order].split(counts)])
    return means[-(-shorter // 4) : shorter // 2 + 1]


def patches_of(level: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """7×7 patches of (B, C, H, W) whose first corners are at rows, columns (B, n): (B, n, 7, 7, C)."""
    offsets = torch.arange(PATCH)
    images = torch.arange(len(level))[:, None, None, None]
    rows, columns = rows[..., None, None] + offsets[:, None], columns[..., None, None] + offsets
    return level.permute(0, 2, 3, 1)[images, rows, columns]


def patch_distance(restored: Tensor, truth: Tensor, generator: torch.Generator) -> float:
    """Sliced Wasserstein-1 distance between two sets of equally many patches (n, values).

    Karras et al., ICLR 2018 (1710.10196), section 5.
    """
    directions = torch.randn(truth.shape[1], PROJECTIONS, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(truth)
    total = 0.0
    for some in directions.split(AT_ONCE, 1):
        apart = (restored @ some).sort(0).values - (truth @ some).sort(0).values
        total += apart.abs().mean(0).sum().item()
    return total / PROJECTIONS
