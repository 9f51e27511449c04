"""JPEG compression, in floating point and with a gradient."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kintsugi.numerics import cosines
from kintsugi.operators.base import Nonlinear
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
        block = 16 if self.subsampled else 8
        bytes_ = F.pad((x + 1) * 127.5, (0, -width % block, 0, -height % block), mode="replicate")
        # The level shift: only luminance is not centred on zero.
        colours = mix(self.colours, bytes_)
        planes = [self.code(colours[:, :1] - 128, self.luminance) + 128]
        if self.subsampled:
            chroma = self.code(F.avg_pool2d(colours[:, 1:], 2), self.chrominance)
            planes.append(F.interpolate(chroma, scale_factor=2))
        elif len(self.colours) > 1:
            planes.append(self.code(colours[:, 1:], self.chrominance))
        decoded = mix(self.inverse_colours, torch.cat(planes, dim=1))
        return decoded[..., :height, :width] / 127.5 - 1

    def code(self, planes: Tensor, table: Tensor) -> Tensor:
        """(B, C, h, w) after the discrete cosine transform of 8 × 8 blocks, its rounding, and back."""
        pixels = F.pixel_unshuffle(planes, 8)
        blocks = pixels.view(*planes.shape[:2], 64, -1)
        coefficients = round_through(self.transform @ blocks / table)
        return F.pixel_shuffle((self.transform.T @ (coefficients * table)).view_as(pixels), 8)

    def pinv(self, y: Tensor) -> Tensor:
        """y itself: the decoded image."""
        return y


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
