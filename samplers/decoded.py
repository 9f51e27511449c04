"""An operator after the decoder of a prior of latents: to a sampler, a non-linear operator on them."""

from functools import cached_property, lru_cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

from kintsugi import operators
from kintsugi.numerics import reflect
from kintsugi.operators import Linear, Operator
from kintsugi.operators.base import Nonlinear
from kintsugi.priors.base import Autoencoder


class Decoded(Nonlinear):
    """y = H(R D(z)) of latents z, for one batch: the decoder D, a resize R where its images are larger.

    H⁺ y = E(R⁺ H⁺ y). It counts what is asked of the autoencoder, per sample. Sides that the autoencoder does
    not divide are continued by their mirror image.

    Args:
        operator: H, of images (C, H, W). autoencoder: of the prior.

    Attributes:
        decodes, encodes: of the autoencoder. vjps: products with its Jacobian or the transpose of it.
    """

    def __init__(self, operator: Operator, autoencoder: Autoencoder):
        channels, height, width = operator.image_shape
        factor, enlarge = autoencoder.factor, autoencoder.enlarge
        latent = ceil(height * enlarge / factor), ceil(width * enlarge / factor)
        super().__init__((autoencoder.channels, *latent), operator.measurement_shape)
        self.operator, self.autoencoder, self.pixels = operator, autoencoder, operator.pixels
        self.large_shape = (channels, height * enlarge, width * enlarge)
        self.decodes = self.encodes = self.vjps = 0

    @cached_property
    def resize(self) -> Linear | None:
        """R, or None where the autoencoder's images are of the job's size."""
        like, factor = self.operator.singular_values, self.autoencoder.enlarge
        return None if factor == 1 else shrinking(self.large_shape, factor, like.device, like.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """D(z): latents (B, c, h, w) to images, `enlarge` times as large as those of H, not clipped."""
        self.decodes += 1
        _, height, width = self.large_shape
        return self.counted(self.autoencoder.decode(z)[..., :height, :width])

    def encode(self, large: Tensor) -> Tensor:
        """E of images as `decode` gives them, (B, c, h, w)."""
        self.encodes += 1
        for axis, side in ((2, self.image_shape[1]), (3, self.image_shape[2])):
            if (whole := side * self.autoencoder.factor) > large.shape[axis]:
                places = reflect(torch.arange(whole), large.shape[axis])
                large = large.index_select(axis, places.to(large.device))
        return self.counted(self.autoencoder.encode(large))

    def reduced(self, large: Tensor) -> Tensor:
        """R x: images as the decoder gives them, of the size of those of H."""
        return large if self.resize is None else self.resize.forward(large)

    def enlarged(self, x: Tensor, around: Tensor | None = None) -> Tensor:
        """An image (B, C, enlarge H, enlarge W) that R makes x of: R⁺ x, or the nearest to one given."""
        if self.resize is None:
            return x
        return self.resize.pinv(x) if around is None else self.resize.impose(around, x)

    def counted(self, output: Tensor) -> Tensor:
        """An output of the autoencoder; products with its Jacobian are counted, also by their derivatives."""
        watch: Any = Tensor.register_hook  # torch does not annotate it

        def count(gradient: Tensor) -> None:
            self.vjps += 1
            if gradient.requires_grad:  # its derivative in what it was made of is a product with J
                watch(gradient, count)

        if output.requires_grad:
            watch(output, count)
        return output

    def image(self, z: Tensor) -> Tensor:
        """R D(z), (B, C, H, W)."""
        return self.reduced(self.decode(z))

    def forward(self, z: Tensor) -> Tensor:
        """H(R D(z))."""
        y: Tensor = self.operator.forward(self.image(z))
        return y

    def pinv(self, y: Tensor) -> Tensor:
        """E(R⁺ H⁺ y)."""
        return self.latents_of(self.operator.pinv(y))

    def latents_of(self, x: Tensor) -> Tensor:
        """E(R⁺ x) of images (B, C, H, W), which are clipped: an encoder knows [-1, 1]."""
        return self.encode(self.enlarged(x.clamp(-1, 1)))


@lru_cache(maxsize=4)
def shrinking(shape: tuple[int, int, int], factor: int, device: torch.device, dtype: torch.dtype) -> Linear:
    """R of large images (C, H, W): kept, as its decomposition takes longer than a batch may."""
    found = operators.build({"name": "bicubic", "factor": factor}, shape, device=device, dtype=dtype)
    assert isinstance(found, Linear)
    return found
