"""The network of the embedded latent prior: diffusers' `UNet2DModel` on the latents of the autoencoder."""

from diffusers import UNet2DModel
from torch import Tensor, nn

from kintsugi.priors.natural_latent.autoencoder import NaturalAutoencoder


class LatentUNet(nn.Module):
    """ε-predicting, fully convolutional network.

    Args:
        channels: width of each level; every level after the first halves the resolution.
        layers: residual blocks per level.

    It takes latents on the VP path whose sides are divisible by `multiple`.
    """

    def __init__(self, channels: tuple[int, ...] = (64, 96, 128), layers: int = 1):
        super().__init__()
        self.multiple = 2 ** (len(channels) - 1)
        self.config = {"channels": list(channels), "layers": layers, "multiple": self.multiple}
        self.unet = UNet2DModel(
            in_channels=NaturalAutoencoder.channels,
            out_channels=NaturalAutoencoder.channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            add_attention=False,
        )

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        """ε, of z's shape (B, 4, H, W), at VP times t (B,) in [0, 1]."""
        # The sinusoidal embedding was designed for labels 0 to 999.
        u: Tensor = self.unet(z, 1000.0 * t, return_dict=False)[0]
        return u
