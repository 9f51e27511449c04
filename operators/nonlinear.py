"""Non-linear degradations of single values, and the loss of phase."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from kintsugi.operators.base import Nonlinear, Reading

CERTAIN = 3
"""Standard deviations of noise below a clipped value, beyond which it was not clipped."""


class Quantize(Nonlinear):
    """y = the nearest of `levels` levels, evenly spaced over [-1, 1] with both ends; H⁺ y = y.

    The gradient is that of the clipping alone: rounding counts as the identity (straight through).
    """

    per_sample: ClassVar = {"steps": 3}
    steps: int | Tensor

    def __init__(self, image_shape: tuple[int, int, int], levels: int):
        super().__init__(image_shape, image_shape)
        self.steps = levels - 1

    def forward(self, x: Tensor) -> Tensor:
        """x, clipped to [−1, 1], at the nearest level; the gradient passes through the rounding."""
        return round_through((x.clamp(-1, 1) + 1) * (self.steps / 2)) * (2 / self.steps) - 1

    def pinv(self, y: Tensor) -> Tensor:
        """y itself."""
        return y

    def reading(self, y: Tensor, sigma_y: float | Tensor) -> Reading:
        """x, before it was rounded: within half the distance of two levels of y."""
        return Reading(lambda x: x, y, sigma_y**2, cell=1 / self.steps)


class HDR(Nonlinear):
    """y = clip(factor x, −1, 1), an overexposed image; H⁺ y = y / factor."""

    per_sample: ClassVar = {"factor": 3, "lipschitz": 3}
    factor: float | Tensor

    def __init__(self, image_shape: tuple[int, int, int], factor: float):
        super().__init__(image_shape, image_shape)
        self.factor = self.lipschitz = factor

    def forward(self, x: Tensor) -> Tensor:
        """The image times the factor, clipped to [−1, 1]."""
        return (self.factor * x).clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        """y over the factor: right where nothing was clipped."""
        return y / self.factor

    def reading(self, y: Tensor, sigma_y: float | Tensor) -> Reading:
        """factor x = y ± σ_y where y is surely not clipped, even if a prediction would be; else H(x)."""
        whole = y.abs() < 1 - CERTAIN * sigma_y
        return Reading(
            lambda x: torch.where(whole, self.factor * x, (self.factor * x).clamp(-1, 1)), y, sigma_y**2
        )


class PhaseRetrieval(Nonlinear):
    """y = 2 |F z|, F the orthonormal Fourier transform, z the image in [0, 1] within a border of zeros.

    The factor keeps the scale of images in [-1, 1], on which noise is stated.

    Args:
        border: rows of zeros above and below, columns left and right. y is that much larger than x, and
            its first entry is the zero frequency. H⁺ takes the phases to be zero.
    """

    pixels = False
    per_sample: ClassVar = {}

    def __init__(self, image_shape: tuple[int, int, int], border: tuple[int, int]):
        channels, height, width = image_shape
        super().__init__(image_shape, (channels, height + 2 * border[0], width + 2 * border[1]))
        self.border = border

    def transform(self, x: Tensor) -> Tensor:
        """The orthonormal spectrum, complex, of x + 1 (black is 0) with a border of zeros."""
        above, left = self.border
        return torch.fft.fft2(pad(x + 1, (left, left, above, above)), norm="ortho")

    def inverse(self, frequencies: Tensor) -> Tensor:
        """The image (B, C, H, W) in [−1, 1] with this spectrum: the real part, without the border."""
        above, left = self.border
        _, height, width = self.image_shape
        image = torch.fft.ifft2(frequencies, norm="ortho").real
        return image[..., above : above + height, left : left + width] - 1

    def forward(self, x: Tensor) -> Tensor:
        """The magnitudes of the spectrum."""
        return self.transform(x).abs()

    def pinv(self, y: Tensor) -> Tensor:
        """The image with these magnitudes and phase zero."""
        return self.inverse(y)

    def impose(self, x: Tensor, y: Tensor) -> Tensor:
        """One step of error reduction (Fienup 1982): the magnitudes y with the phases of x."""
        return self.inverse(torch.polar(y, self.transform(x).angle()))


def quantize(image_shape: tuple[int, int, int], *, bits: Annotated[int, Field(ge=1, le=8)] = 2) -> Quantize:
    """Quantisation to 2^bits levels over [-1, 1], the ends among them. Setting: ΠGDM (Song et al. 2023)."""
    return Quantize(image_shape, 2**bits)


def hdr(image_shape: tuple[int, int, int], *, factor: Annotated[float, Field(gt=0, le=1e3)] = 2.0) -> HDR:
    """High dynamic range: values multiplied by `factor` are clipped. Setting: RED-diff, DAPS (2407.01521)."""
    return HDR(image_shape, factor)


def phase_retrieval(
    image_shape: tuple[int, int, int], *, oversample: Annotated[float, Field(ge=0, le=16)] = 2.0
) -> PhaseRetrieval:
    """Magnitudes of the oversampled Fourier transform. Setting: DPS (2209.14687).

    The border of zeros is oversample/8 of the side on each side, as there: 64 pixels around 256 at 2.
    """
    _, height, width = image_shape
    return PhaseRetrieval(image_shape, (int(oversample / 8 * height), int(oversample / 8 * width)))


def round_through(x: Tensor) -> Tensor:
    """round(x), with the gradient of x."""
    return x.round().detach() + (x - x.detach())
