"""Luma as tables of super-resolution measure it: BT.601 in studio swing, of 8-bit values."""

from torch import Tensor

STUDIO = (65.481, 128.553, 24.966)  # of R, G and B on [0, 1]; they sum to 219
BLACK = 16.0


def luma(image: Tensor) -> Tensor:
    """Y of images (B, C, H, W) on [0, 1] that are rounded to 8 bits, (B, 1, H, W) on [0, 255], not rounded.

    Of colours 16 to 235, as MATLAB's rgb2ycbcr of floating-point numbers and BasicSR's `test_y_channel`; grey
    is its own luma, 0 to 255, as it is there.
    """
    levels = (255 * image).round()
    if image.shape[1] == 1:
        return levels
    red, green, blue = (levels[:, i : i + 1] * (weight / 255) for i, weight in enumerate(STUDIO))
    return BLACK + (red + green + blue)
