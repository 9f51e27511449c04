"""Channels beyond those of a network, two ways: as `priors.grouped` shows them to it, and one by one.

    python benchmarks/channels.py --shards 'imagenet256/*.tar'

Restores crops of 128² of 2 and 5 channels with the embedded prior. Prints as a Markdown table mean PSNR,
dB, and SSIM of the channels that whole groups leave over, and the PSNR of all. The channels are R, G and B
of photographs; their luma Y; S, the square root of that moved by two pixels; O, that of another.
"""

from typing import Annotated

import numpy as np
import torch
import typer
from kit.photographs import on_unit, squares
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.priors.grouped import Grouped
from kintsugi.samplers import KeyedNoise

SIDE, BATCH = 128, 4
IMAGES = ("RB", "YS", "YO", "RGBYS")
CONJUGATE, DIFFPIR = {"name": "conjugate"}, {"name": "diffpir", "steps": 10}
TASKS = {
    "bicubic 4, σ 0.1": ({"name": "bicubic", "factor": 4}, 0.1, CONJUGATE),
    "30 % of pixels": ({"name": "inpaint", "mask": "random", "keep": 0.3}, 0.0, CONJUGATE),
    "denoise, σ 0.4": ({"name": "denoise"}, 0.4, DIFFPIR),
}


class OneByOne:
    """Shows what is left over by whole groups as grey images, each by itself."""

    def __init__(self, prior: priors.Prior):
        self.grouped, self.path, self.parametrization = Grouped(prior, 3), prior.path, prior.parametrization

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        whole = x.shape[1] // 3 * 3
        parts = [x[:, :whole]] * (whole > 0) + list(x[:, whole:].split(1, 1))
        return torch.cat([self.grouped(part, t) for part in parts], 1)


def channels_of(rgb: Tensor) -> dict[str, Tensor]:
    """By letter, channels (B, 1, H, W) on [-1, 1] of photographs (B, 3, H, W)."""
    luma = (rgb * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    shifted = 2 * ((luma.roll((2, 2), (2, 3)) + 1) / 2).clamp(0, 1).sqrt() - 1
    return dict(zip("RGBYSO", (*rgb.split(1, 1), luma, shifted, luma.roll(1, 0)), strict=True))


def restored(
    prior: priors.Prior, h: operators.Operator, y: Tensor, spec: dict[str, object], sigma_y: float
) -> Tensor:
    """The restorations of measurements y (B, C, h, w)."""
    keys = [str(place) for place in range(len(y))]
    parts = []
    for first in range(0, len(y), BATCH):
        some = slice(first, first + BATCH)
        noise = KeyedNoise(0, keys[some])
        parts.append(samplers.build(spec)(prior, h, y[some], noise, sigma_y=sigma_y).image)
    return torch.cat(parts)


def main(
    shards: Annotated[str, typer.Option(help="as data.shards")],
    count: Annotated[int, typer.Option(help="images")] = 20,
) -> None:
    """Print the table."""
    channels = channels_of(on_unit(squares(shards, count, SIDE, resized=False)[1]))
    network, scorer = priors.load({"name": "natural"}), Scorer(["psnr", "ssim"])
    print("| channels | task | one by one | grouped |\n|---|---|---|---|")
    for letters in IMAGES:
        truth = torch.cat([channels[letter] for letter in letters], 1)
        for task, (of, sigma_y, spec) in TASKS.items():
            h = operators.build(of, tuple(truth.shape[1:]))
            y = h.forward(truth)
            y = y + sigma_y * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
            cells = []
            for prior in (OneByOne(network), Grouped(network, 3)):
                image = restored(prior, h, y, spec, sigma_y)
                scores = [scorer(image[:, i : i + 1], truth[:, i : i + 1]) for i in range(len(letters))]
                psnr, ssim = (np.array([one[name] for one in scores]).mean(1) for name in ("psnr", "ssim"))
                left = len(letters) % 3
                cells.append(f"{psnr[-left:].mean():.2f}, {ssim[-left:].mean():.3f}; {psnr.mean():.2f}")
            print(f"| {letters} | `{spec['name']}` {task} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
