"""Structural similarity of images: means and variances under a Gaussian window, and what is made of them.

Wang et al., IEEE TIP 2004. Everything here is arithmetic of single values, so that nothing of an image can
depend on its batch, on a GPU either; means over an image are taken of each by itself.
"""

import torch
from torch import Tensor

RADIUS = 5
WINDOW = 2 * RADIUS + 1  # pixels
DEVIATION = 1.5  # pixels
OF_MEANS, OF_VARIANCES = 2 * 0.01**2, 2 * 0.03**2
"""Twice C₁ and C₂, which keep the quotients of flat images finite: here both sides are twice the paper's."""


def taps() -> list[float]:
    """The window, of 11 values that sum to 1."""
    places = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float64)
    window = torch.exp(-0.5 * (places / DEVIATION) ** 2)
    found: list[float] = (window / window.sum()).tolist()
    return found


TAPS = taps()


def joined(restored: Tensor, truth: Tensor) -> Tensor:
    """Sum less 1, and difference (2, B, C, H, W) of images (B, C, H, W) on [0, 1], in float32.

    (x + y)² − (x − y)² is 4 xy, and their sum is 2 (x² + y²): variances of these two say what two variances
    and a covariance would, with fewer maps. Around zero float32 keeps most digits of a variance.
    """
    x, y = restored.float(), truth.float()
    both = x.new_empty(2, *x.shape)
    torch.add(x, y, out=both[0]).sub_(1)
    torch.sub(x, y, out=both[1])
    return both


def similarities(both: Tensor) -> tuple[Tensor, Tensor]:
    """In luminance, and in contrast and structure: equation 6, and the product of 9 and 10.

    Args:
        both: as of `joined`.

    Returns:
        (B, C, H − 10, W − 10), at the pixels whose window lies within the image.
    """
    means = windowed(both)
    variances = windowed(both.square()).addcmul_(means, means, value=-1).clamp_min_(0)
    means[0] += 1
    return quotient(means.square_(), OF_MEANS), quotient(variances, OF_VARIANCES)


def quotient(both: Tensor, constant: float) -> Tensor:
    """(s − d + c)/(s + d + c), of s and d."""
    of_sum, of_difference = both
    total = (of_sum + of_difference).add_(constant)
    return torch.addcdiv(torch.ones((), device=both.device), of_difference, total, value=-2)


def windowed(x: Tensor) -> Tensor:
    """Local means (…, H − 10, W − 10) of (…, H, W)."""
    for axis in (-2, -1):
        # On a CPU a fourth of a convolution's time, and no library chooses its order by the batch.
        side = x.shape[axis] - WINDOW + 1
        total = x.narrow(axis, 0, side) * TAPS[0]
        for place, tap in enumerate(TAPS[1:], 1):
            total.add_(x.narrow(axis, place, side), alpha=tap)
        x = total
    return x


def reflected(both: Tensor) -> Tensor:
    """With borders as wide as the window's radius, mirrored without the border itself."""
    height, width = both.shape[-2:]
    padded = both.new_empty(*both.shape[:-2], height + 2 * RADIUS, width + 2 * RADIUS)
    padded[..., RADIUS:-RADIUS, RADIUS:-RADIUS] = both
    for axis in (-2, -1):
        behind = padded.shape[axis] - RADIUS
        for place, source in ((0, RADIUS + 1), (behind, behind - RADIUS - 1)):
            padded.narrow(axis, place, RADIUS).copy_(padded.narrow(axis, source, RADIUS).flip(axis))
    return padded


def halved(both: Tensor) -> Tensor:
    """Means of 2×2 pixels of (…, H, W); of an odd side the last is left out."""
    height, width = (side // 2 * 2 for side in both.shape[-2:])
    rows = both[..., 0:height:2, :width] + both[..., 1:height:2, :width]
    return (rows[..., 0::2] + rows[..., 1::2]).mul_(0.25)


def mean_of_each(values: Tensor) -> Tensor:
    """The mean of each image, (B, …) → (B,) float64; many at once would be summed in another order."""
    return torch.stack([each.mean() for each in values]).double()
