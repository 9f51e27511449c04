"""Perception measured without a network: do a set's fine textures look like those of the truth?"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

PATCH = 7
PATCHES_PER_IMAGE = 128
PROJECTIONS = 512


def finest_laplacian(x: Tensor) -> Tensor:
    """x less its half-resolution content: level 0 of the Laplacian pyramid, (B, C, H, W), sides even.

    Burt and Adelson 1983: binomial filter (1 4 6 4 1)/16, borders mirrored.
    """
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]).to(x) / 16
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 5, 5)

    def smooth(image: Tensor) -> Tensor:
        return conv2d(pad(image, (2, 2, 2, 2), mode="reflect"), kernel, groups=x.shape[1])

    spaced = torch.zeros_like(x)
    spaced[..., ::2, ::2] = 4 * smooth(x)[..., ::2, ::2]
    return x - smooth(spaced)


def fine_energy(restored: Tensor, truth: Tensor) -> float:
    """Energy of the finest Laplacian level relative to the truth's; 1 is ideal, less is blurred."""
    energies = [finest_laplacian(x).square().mean() for x in (restored, truth)]
    return (energies[0] / energies[1]).item()


def sliced_wasserstein(restored: Tensor, truth: Tensor, seed: int = 0) -> float:
    """Sliced Wasserstein-1 distance between 7×7 patches of the finest Laplacian level of two sets.

    Karras et al., ICLR 2018 (1710.10196), section 5, except that both sets are normalised by the
    truth's standard deviation of each channel: a set that is too smooth is far from the truth. The patches
    are at the same places in both. 0 for equal sets; the two sets have the same size.

    Args:
        restored, truth: (N, C, H, W) on one scale.
    """
    generator = torch.Generator().manual_seed(seed)
    count, channels, height, width = truth.shape
    places = (count, PATCHES_PER_IMAGE)
    rows = torch.randint(height - PATCH + 1, places, generator=generator)
    columns = torch.randint(width - PATCH + 1, places, generator=generator)
    directions = torch.randn(channels * PATCH**2, PROJECTIONS, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(truth)
    scale = finest_laplacian(truth).std((0, 2, 3), keepdim=True)

    def sorted_projections(x: Tensor) -> Tensor:
        level = (finest_laplacian(x) / scale).permute(0, 2, 3, 1)
        offsets = torch.arange(PATCH)
        patches = level[
            torch.arange(count)[:, None, None, None],
            rows[..., None, None] + offsets[:, None],
            columns[..., None, None] + offsets,
        ]
        return (patches.reshape(count * PATCHES_PER_IMAGE, -1) @ directions).sort(0).values

    return (sorted_projections(restored) - sorted_projections(truth)).abs().mean().item()
