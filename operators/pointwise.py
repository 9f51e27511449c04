"""Operators that keep or drop pixels: inpainting, and the identity for denoising."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from kintsugi.errors import ShapeError
from kintsugi.operators import masks
from kintsugi.operators.base import Linear

Share = Annotated[float, Field(ge=0, le=1)]


class Mask(Linear):
    """y = m ⊙ x with m (C, H, W) of zeros and ones: its own adjoint, pseudo-inverse and projection."""

    per_sample: ClassVar = {"singular_values": 3}

    def __init__(self, known: Tensor):
        channels, height, width = known.shape
        shape = (channels, height, width)
        super().__init__(shape, shape, known.to(torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """The kept pixels, and zero elsewhere."""
        return self.singular_values * x

    def adjoint(self, y: Tensor) -> Tensor:
        """As `forward`: a mask is symmetric."""
        return self.singular_values * y

    def pinv(self, y: Tensor) -> Tensor:
        """As `forward`: a mask is a projection."""
        return self.singular_values * y

    def to_spectral(self, x: Tensor) -> Tensor:
        """x itself: the pixels are the coordinates."""
        return x

    def from_spectral(self, c: Tensor) -> Tensor:
        """c itself."""
        return c


class Identity(Mask):
    """y = x: a mask that keeps every pixel."""

    isotropic: ClassVar[bool] = True

    def __init__(self, image_shape: tuple[int, int, int]):
        super().__init__(torch.ones(image_shape, dtype=torch.bool))


def denoise(image_shape: tuple[int, int, int]) -> Identity:
    """The identity: the measurement is the image and its noise. Setting: DDRM (2201.11793)."""
    return Identity(image_shape)


def inpaint(
    image_shape: tuple[int, int, int],
    *,
    mask: Tensor | str,
    known: Literal["white", "black"] | None = None,
    box: Share = 0.5,
    keep: Share = 0.3,
    holes: tuple[Share, Share] = (0.1, 0.2),
    seed: NonNegativeInt = 0,
) -> Mask:
    """Inpainting: known pixels are kept, unknown ones are zero in the measurement. True = known.

    mask: "box" (unknown centred box, sides `box` of the image's), "random" (each pixel known with
    probability `keep`), "half" (right half unknown), "freeform" (brush strokes covering a share of
    the image within `holes`), a file (png, jpg, bmp, npy, npz; then `known` states whether white, above
    half of its range, or black marks known pixels), or a boolean tensor (C, H, W). One mask for the whole
    job, a function of `seed`. Each setting is for the masks it is named with. Settings: DDRM (2201.11793),
    RePaint (2201.09865; half), gated convolution (1806.03589; strokes, in shares of 10–20 % … 40–50 %).
    """
    _, height, width = image_shape
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: a tensor must be boolean, true = known; got {mask.dtype}")
        pixels = mask
    elif mask == "box":
        pixels = masks.box(height, width, box)
    elif mask == "half":
        pixels = masks.half(height, width)
    elif mask == "random":
        pixels = masks.random(height, width, keep, seed)
    elif mask == "freeform":
        pixels = masks.freeform(height, width, holes, seed)
    elif not mask.lower().endswith(masks.SUFFIXES):
        kinds = ", ".join(masks.SUFFIXES)
        raise ValueError(f"mask: {mask!r} is none of box, random, half, freeform, nor a file ({kinds})")
    elif known is None:
        raise ValueError('known: say which pixels of the mask file are known, "white" or "black"')
    else:
        pixels = masks.from_file(mask, height, width, known)
    try:
        return Mask(pixels.expand(image_shape))
    except RuntimeError:
        raise ShapeError(f"mask: shape {tuple(pixels.shape)} does not fit images {image_shape}") from None
