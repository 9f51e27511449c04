"""The autoencoder of the embedded latent prior: 4 channels at a quarter of the resolution.

Convolutions alone, without norms: what a latent is depends on the pixels around it and not on the rest of
the image, so tiles with enough overlap give the latents of the whole. On a CPU most of the time would go
to full-size images; 2×2 blocks of pixels become channels first.
"""

from torch import Tensor, nn
from torch.nn.functional import silu

UNSHUFFLE = 2


class Block(nn.Module):
    """Two convolutions, added to what they are given (B, channels, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)  # an identity at first: no norm is needed

    def forward(self, x: Tensor) -> Tensor:
        """Of x's shape."""
        return x + self.second(silu(self.first(silu(x))))


class NaturalAutoencoder(nn.Module):
    """Between images (B, 3, H, W) on [-1, 1] and latents (B, 4, H/4, W/4) of zero mean and unit variance.

    Args:
        fine: channels at half the resolution of images. coarse: at that of latents.
        blocks: of the decoder on either, fine ones first; the encoder has one of each.
    """

    factor, channels, enlarge = 2 * UNSHUFFLE, 4, 1

    def __init__(self, fine: int = 32, coarse: int = 96, blocks: tuple[int, int] = (1, 2)):
        super().__init__()
        pixels = 3 * UNSHUFFLE**2
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(UNSHUFFLE),
            nn.Conv2d(pixels, fine, 3, padding=1),
            Block(fine),
            nn.Conv2d(fine, coarse, 2, stride=2),
            Block(coarse),
            nn.Conv2d(coarse, self.channels, 3, padding=1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(self.channels, coarse, 3, padding=1),
            *(Block(coarse) for _ in range(blocks[1])),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(Block(fine) for _ in range(blocks[0])),
            nn.Conv2d(fine, pixels, 3, padding=1),
            nn.PixelShuffle(UNSHUFFLE),
        )

    def encode(self, x: Tensor) -> Tensor:
        """The mean of the posterior, which has a fixed variance."""
        return in_type_of(self.encoder, x)

    def decode(self, z: Tensor) -> Tensor:
        """Images, not clipped."""
        return in_type_of(self.decoder, z)


def in_type_of(module: nn.Module, x: Tensor) -> Tensor:
    """What a module makes of x, computed in the type of its weights; in x's type."""
    output: Tensor = module(x.to(next(module.parameters()).dtype))
    return output.to(x.dtype).contiguous()
