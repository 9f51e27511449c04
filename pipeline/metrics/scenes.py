"""Statistics of natural scenes by which NIQE knows an image: 36 numbers of each block of its luma."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from kintsugi.numerics import reflect

BLOCK = 96  # pixels
SHAPES = torch.arange(0.2, 10.001, 0.001, dtype=torch.float64)
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


def block_features(levels: Tensor) -> Tensor:
    """Of a luma (1, 1, H, W) on [0, 255], the 18 features at two scales of each whole block, (blocks, 36).

    Mittal et al., IEEE SPL 2013, section II, as their code has it: blocks begin at the first pixel, those at
    a border that are not whole are left out, and neighbours beyond a block's border are those at the other
    side of it. A feature that is not defined, in a flat block, is NaN.
    """
    height, width = (side // BLOCK * BLOCK for side in levels.shape[-2:])
    levels, found = levels[..., :height, :width], []
    for block in (BLOCK, BLOCK // 2):
        blocks = normalised(levels).unfold(2, block, block).unfold(3, block, block).flatten(0, 3)
        found.append(torch.stack([features(one) for one in blocks]))
        levels = halved(levels)
    return torch.cat(found, 1)


def normalised(levels: Tensor) -> Tensor:
    """(I − μ) / (σ + 1), of a Gaussian window of σ = 7/6 and 7 pixels; borders are repeated."""
    taps = torch.exp(-0.5 * (torch.arange(-3, 4, dtype=levels.dtype, device=levels.device) * 6 / 7) ** 2)
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2

    def local_mean(x: Tensor) -> Tensor:
        return conv2d(pad(x, (3, 3, 3, 3), mode="replicate"), window)

    mean = local_mean(levels)
    return (levels - mean) / ((local_mean(levels**2) - mean**2).abs().sqrt() + 1)


def halved(levels: Tensor) -> Tensor:
    """Half the size, by MATLAB's imresize: the cubic kernel of twice the width, borders mirrored."""
    distance = (torch.arange(8, dtype=levels.dtype, device=levels.device) - 3.5).abs() / 2
    near, far = 1.5 * distance**3 - 2.5 * distance**2 + 1, -0.5 * distance**3 + 2.5 * distance**2
    taps = torch.where(distance <= 1, near, far - 4 * distance + 2) / 2
    for axis in (2, 3):
        n = levels.shape[axis]
        places = reflect(2 * torch.arange(n // 2)[:, None] + torch.arange(-3, 5), n).to(levels.device)
        levels = (levels.movedim(axis, -1)[..., places] @ taps).movedim(-1, axis)
    return levels


def features(block: Tensor) -> Tensor:
    """Shape and scale of a block (h, w), and shape, mean and both scales of four products of neighbours."""
    shape, left, right = asymmetric_fit(block)
    found = [shape, (left + right) / 2]
    for shift in NEIGHBOURS:
        shape, left, right = asymmetric_fit(block * block.roll(shift, (0, 1)))
        mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
        found += [shape, mean, left, right]
    return torch.stack(found)


def asymmetric_fit(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape α and scales β of an asymmetric generalised Gaussian, by moments (Lasmar et al., ICIP 2009)."""
    shapes = SHAPES.to(x)
    ratios = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    left, right = x[x < 0].square().mean().sqrt(), x[x > 0].square().mean().sqrt()
    gamma = left / right
    ratio = x.abs().mean() ** 2 / x.square().mean()
    ratio = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    shape = shapes[(ratios - ratio).abs().argmin()]  # the first, 0.2, of NaN, as MATLAB's min and NumPy's
    scale = (0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape))).exp()
    return shape, left * scale, right * scale
