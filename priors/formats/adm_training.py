"""What no file of ADM or improved-diffusion tells: heads of attention, the order of q, k, v, and the noise.

Published layouts are known by what can be seen of them; for others a spec says it.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kintsugi.checkpoint import CheckpointError
from kintsugi.priors.paths import DDPM

Schedule = Literal["linear", "cosine"]


class Signature(NamedTuple):
    """What tells layouts apart.

    Attributes:
        channels: model channels. widths: of each level. blocks: residual ones per level.
        attention: the levels with it.
        convolved: levels are resampled by convolutions, as in improved-diffusion, not in residual blocks.
        modulated: the embedding scales and shifts, too.
    """

    channels: int
    widths: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    convolved: bool = False
    modulated: bool = True


@dataclass(frozen=True)
class Training:
    """The noise that a network was trained with.

    Attributes:
        steps: number of labels.
        rescaled: the network sees labels times 1000 / steps.
    """

    schedule: Schedule = "linear"
    steps: int = 1000
    rescaled: bool = True

    def path(self) -> DDPM:
        """That of its betas (2006.11239, section 4, and 2102.09672, equation 17)."""
        if self.schedule == "linear":
            return DDPM(0.1 / self.steps, 20 / self.steps, self.steps)
        times = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        alpha_bar = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
        return DDPM(betas=(1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    def seen(self, t: Tensor) -> Tensor:
        """What the network sees of labels (B,)."""
        return t * (1000 / self.steps) if self.rescaled and self.steps != 1000 else t

    @property
    def said(self) -> str:
        """In words, if it is not DDPM's."""
        return "" if self == DDPM_TRAINING else f"{self.schedule} betas, {self.steps} labels"


DDPM_TRAINING = Training()


@dataclass(frozen=True)
class Known:
    """What is known of a layout.

    Attributes:
        head_channels: channels per head of attention, or 0. heads: their number at every width, or 0.
        thirds: the file has all of q, then k and v; otherwise those of each head together.
    """

    head_channels: int = 0
    heads: int = 0
    thirds: bool = False
    training: Training = DDPM_TRAINING


ADM: dict[Signature, Known] = {
    # ImageNet 256, conditional or not, and LSUN.
    Signature(256, (256, 256, 512, 512, 1024, 1024), 2, (3, 4, 5)): Known(64),
    # ImageNet 512.
    Signature(256, (128, 256, 256, 512, 512, 1024, 1024), 2, (4, 5, 6)): Known(64),
    # FFHQ 256, of the authors of DPS.
    Signature(128, (128, 128, 256, 256, 512, 512), 1, (4,)): Known(64),
}
CONDITIONAL: dict[Signature, Known] = {
    # ImageNet 64 and 128 of ADM, and ImageNet 64 of improved-diffusion.
    Signature(192, (192, 384, 576, 768), 3, (1, 2, 3)): Known(64, thirds=True, training=Training("cosine")),
    Signature(256, (256, 256, 512, 768, 1024), 2, (2, 3, 4)): Known(heads=4),
    Signature(192, (192, 384, 576, 768), 3, (2, 3), True): Known(
        heads=4, training=Training("cosine", 4000, False)
    ),
}
UNCONDITIONAL: dict[Signature, Known] = {
    # Of improved-diffusion ImageNet 64, CIFAR-10 and LSUN bedroom.
    Signature(128, (128, 256, 384, 512), 3, (2, 3), True): Known(heads=4, training=Training("cosine", 4000)),
    Signature(128, (128, 256, 256, 256), 3, (1, 2), True): Known(heads=4, training=Training("cosine", 4000)),
    Signature(128, (128, 128, 256, 256, 512, 512), 2, (4,), True, False): Known(heads=1),
}


@dataclass(frozen=True)
class Told:
    """The fields of a spec that say what no file tells; None where they are left out."""

    head_channels: int | None = None
    heads: int | None = None
    schedule: Schedule | None = None
    steps: int | None = None
    rescaled: bool | None = None

    def known(self, signature: Signature, conditional: bool, common: int) -> Known:
        """All of it, as it is told or published.

        Args:
            common: what the channels of every attention are divisible by.

        Raises:
            CheckpointError: what is neither told nor known, or does not fit; the message names the field.
        """
        of_classes = CONDITIONAL if conditional else UNCONDITIONAL
        published = ADM.get(signature) or of_classes.get(signature)
        known = published or Known()
        if self.head_channels and self.heads:
            raise CheckpointError("heads: the channels per head are given, too; give one of the two")
        if self.head_channels or self.heads:
            known = replace(known, head_channels=self.head_channels or 0, heads=self.heads or 0)
        if not known.head_channels and not known.heads:
            plausible = [n for n in (16, 32, 64, 128, 256) if common % n == 0]
            raise CheckpointError(
                "head_channels: the file does not tell the channels per attention head, and its layout "
                f"is none of the published ones (which have 64); give {' or '.join(map(str, plausible))}, "
                "or heads, their number at every width"
            )
        if common % (known.head_channels or known.heads):
            field = "head_channels" if known.head_channels else "heads"
            raise CheckpointError(
                f"{field}: must divide the channels of every attention, {common} "
                f"(got {known.head_channels or known.heads})"
            )
        if published is None and self.schedule is None and signature.convolved:
            raise CheckpointError(
                "schedule: the file is of improved-diffusion, and does not tell its --noise_schedule; give "
                "linear or cosine, steps if --diffusion_steps were not 1000, and rescaled: false after "
                "--rescale_timesteps False"
            )
        of = known.training
        rescaled = of.rescaled if self.rescaled is None else self.rescaled
        training = Training(self.schedule or of.schedule, self.steps or of.steps, rescaled)
        return replace(known, training=training)
