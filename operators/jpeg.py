"""JPEG compression, in floating point and with a gradient."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kintsugi.numerics import cosines
from kintsugi.operators.base import Nonlinear, Reading
from kintsugi.operators.channels import LUMA, mix
from kintsugi.operators.nonlinear import round_through

# ITU-T T.81, tables K.1 and K.2.
LUMINANCE = """
16  11  10  16  24  40  51  61
12  12  14  19  26  58  60  55
14  13  16  24  40  57  69  56
14  17  22  29  51  87  80  62
18  22  37  56  68 109 103  77
24  35  55  64  81 104 113  92
49  64  78  87 103 121 120 101
72  92  95  98 112 100 103  99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""


class JPEG(Nonlinear):
    """y = the decoded image, neither clipped nor rounded to 8 bits; H⁺ y = y.

    Subsampled chroma is the mean of 2 × 2 pixels and is decoded by repeating it, so that coding twice is
    coding once (but where sides are not multiples of the block). A grey image is all luminance. Sides are
    extended to whole blocks by their last pixel. Rounding counts as the identity in the gradient (straight
    through).
    """

    per_sample: ClassVar = {"luminance": 3, "chrominance": 3}
    transform: Tensor
    colours: Tensor
    inverse_colours: Tensor
    luminance: Tensor
    chrominance: Tensor

    def __init__(self, image_shape: tuple[int, int, int], quality: int, subsampled: bool):
        super().__init__(image_shape, image_shape)
        self.subsampled = subsampled
        # Removing the chroma of a colour, as subsampling can, is not an orthogonal projection in RGB.
        self.lipschitz = math.sqrt(3) * math.hypot(*LUMA) if subsampled else 1.0
        red, green, blue = LUMA
        self.register_buffer("transform", torch.kron(cosines(8), cosines(8)))
        rows = [
            LUMA,
            (-red / 1.772, -green / 1.772, (1 - blue) / 1.772),
            ((1 - red) / 1.402, -green / 1.402, -blue / 1.402),
        ]
        colours = torch.tensor(rows if image_shape[0] == 3 else [[1.0]], dtype=torch.float64)
        self.register_buffer("colours", colours)
        self.register_buffer("inverse_colours", torch.linalg.inv(colours))
        for name, table in (("luminance", LUMINANCE), ("chrominance", CHROMINANCE)):
            self.register_buffer(name, quantisation(table, quality))

    def forward(self, x: Tensor) -> Tensor:
        """The image decoded after it was coded; its gradient passes through the rounding."""
        _, height, width = self.image_shape
        luma, *chroma = self.planes(x)
        planes = [self.code(luma, self.luminance) + 128]
        for plane in chroma:
            coded = self.code(plane, self.chrominance)
            planes.append(F.interpolate(coded, scale_factor=2) if self.subsampled else coded)
        decoded = mix(self.inverse_colours, torch.cat(planes, dim=1))
        return decoded[..., :height, :width] / 127.5 - 1

    def planes(self, x: Tensor) -> list[Tensor]:
        """What is coded: the luminance (B, 1, h, w) less 128 and, of colours, the chroma (B, 2, …)."""
        _, height, width = self.image_shape
        block = 16 if self.subsampled else 8
        bytes_ = F.pad((x + 1) * 127.5, (0, -width % block, 0, -height % block), mode="replicate")
        # The level shift: only luminance is not centred on zero.
        colours = mix(self.colours, bytes_)
        luma, chroma = colours[:, :1] - 128, colours[:, 1:]
        if len(self.colours) == 1:
            return [luma]
        return [luma, F.avg_pool2d(chroma, 2) if self.subsampled else chroma]

    def code(self, planes: Tensor, table: Tensor) -> Tensor:
        """(B, C, h, w) after the discrete cosine transform of 8 × 8 blocks, its rounding, and back."""
        coefficients = round_through(self.transformed(planes) / table)
        blocks = self.transform.T @ (coefficients * table)
        height, width = planes.shape[-2] // 8, planes.shape[-1] // 8
        return F.pixel_shuffle(blocks.reshape(len(planes), -1, height, width), 8)

    def transformed(self, planes: Tensor) -> Tensor:
        """(B, C, 64, n): the discrete cosine transform of each of n blocks of 8 × 8."""
        blocks = F.pixel_unshuffle(planes, 8).view(*planes.shape[:2], 64, -1)
        return self.transform @ blocks

    def coefficients(self, x: Tensor) -> Tensor:
        """What is rounded, in units of the steps, luminance and then chroma: (B, 1, 64, n)."""
        tables = (self.luminance, self.chrominance)
        return joined(
            [
                self.transformed(plane) / table
                for plane, table in zip(self.planes(x), tables, strict=False)  # grey has no chroma
            ]
        )

    def reading(self, y: Tensor, sigma_y: float | Tensor) -> Reading:
        """Coefficients before they were rounded: within half a step of those of y."""
        rows = 127.5 * torch.linalg.vector_norm(self.colours, dim=1)[:, None, None]  # of white noise
        averaged = 0.5 if self.subsampled else 1.0
        blocks = [plane.shape[-2] * plane.shape[-1] // 64 for plane in self.planes(y)]
        gains = (rows[:1] / self.luminance, averaged * rows[1:] / self.chrominance)
        spread = joined(
            [
                gain.view(-1, *gain.shape[-3:]).expand(-1, -1, -1, count)
                for gain, count in zip(gains, blocks, strict=False)
            ]
        )
        return Reading(self.coefficients, self.coefficients(y), (sigma_y * spread) ** 2, cell=0.5)

    def pinv(self, y: Tensor) -> Tensor:
        """y itself: the decoded image."""
        return y


def joined(planes: list[Tensor]) -> Tensor:
    """Coefficients (B, C, 64, n) of luminance and chroma, beside each other: (B, 1, 64, n)."""
    return torch.cat([plane.transpose(1, 2).flatten(2) for plane in planes], dim=-1)[:, None]


def jpeg(
    image_shape: tuple[int, int, int],
    *,
    quality: Annotated[int, Field(ge=1, le=100)] = 10,
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0",
) -> JPEG:
    """JPEG at libjpeg's `quality`, chroma in half resolution (4:2:0) or full. Source: ITU-T T.81, JFIF.

    Of RGB, or of grey, which has no chroma. Setting: quality 10 in DDRM-JPEG (2209.11888) and ΠGDM.
    """
    channels = image_shape[0]
    if channels not in (1, 3):
        raise ValueError(f"image_shape: jpeg needs images of 1 or 3 channels, these have {channels}")
    return JPEG(image_shape, quality, channels == 3 and subsampling == "4:2:0")


def quantisation(table: str, quality: int) -> Tensor:
    """The (64, 1) steps of a standard table at `quality`, scaled as libjpeg does."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = torch.tensor([int(step) for step in table.split()])
    return ((steps * scale + 50) // 100).clamp(1, 255).double()[:, None]
