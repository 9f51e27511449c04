"""Published checkpoints, known by the checksum of their file.

Checksums are those that independent users of the files have recorded; a file that is not listed runs
all the same, only without a name. Where to get each file: docs/checkpoints.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it."""

    name: str
    licence: str


PUBLISHED = {
    "a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1": Published(
        "guided-diffusion 256x256_diffusion_uncond.pt (ImageNet 256, unconditional)", "MIT"
    ),
    "9c111ab89e214862b76e1fa6a1b3f1d329b1a88281885943d2cdbe357ad57648": Published(
        "512x512_diffusion_uncond_finetune_008100.pt (ImageNet 512, made unconditional by K. Crowson)",
        "see docs/checkpoints.md",
    ),
}
