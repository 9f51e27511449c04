"""Grey images by a network for colours, three ways: what `priors.grouped` does, and what it does not.

    python benchmarks/grey.py --shards 'imagenet256/*.tar'

Restores grey crops of 128² with the embedded prior, and prints mean PSNR and SSIM as a Markdown table.

copies: three equal channels, noise and all, at the time of the grey image; the output's mean.
grouped: copies with the noise that they lack, at the noise level that they then have (`priors.grouped`).
in colours: the state is RGB, and the operator measures the mean of its channels.
"""

from typing import Annotated

import numpy as np
import torch
import typer
from kit.photographs import squares
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.operators import Linear
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.priors.grouped import Grouped
from kintsugi.samplers import KeyedNoise

SIDE, BATCH = 128, 4
TASKS = {
    "bicubic 4": ({"name": "bicubic", "factor": 4}, 0.0),
    "bicubic 4, σ 0.1": ({"name": "bicubic", "factor": 4}, 0.1),
    "30 % of pixels": ({"name": "inpaint", "mask": "random", "keep": 0.3}, 0.0),
    "box of 40 %": ({"name": "inpaint", "mask": "box", "box": 0.4}, 0.0),
    "gaussian_blur, σ 0.1": ({"name": "gaussian_blur"}, 0.1),
    "denoise, σ 0.4": ({"name": "denoise"}, 0.4),
}
SAMPLERS = ({"name": "conjugate"}, {"name": "diffpir", "steps": 20})


class Copies:
    """Shows the network three copies, and takes the mean."""

    def __init__(self, prior: priors.Prior):
        self.prior, self.path, self.parametrization = prior, prior.path, prior.parametrization

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.prior(x.expand(-1, 3, -1, -1), t).mean(1, keepdim=True)


class OfMean(Linear):
    """H of the mean of three channels, for a linear H of one."""

    def __init__(self, h: Linear):
        super().__init__((3, *h.image_shape[1:]), h.measurement_shape, h.singular_values / 3**0.5)
        self.h = h

    def forward(self, x: Tensor) -> Tensor:
        return self.h.forward(x.mean(1, keepdim=True))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.h.adjoint(y).expand(-1, 3, -1, -1) / 3

    def pinv(self, y: Tensor) -> Tensor:
        return self.h.pinv(y).repeat(1, 3, 1, 1)

    def to_spectral(self, x: Tensor) -> Tensor:
        return self.h.to_spectral(x.sum(1, keepdim=True) / 3**0.5)

    def from_spectral(self, c: Tensor) -> Tensor:
        return self.h.from_spectral(c).expand(-1, 3, -1, -1) / 3**0.5


def luma(images: np.ndarray) -> Tensor:
    """That of images (B, H, W, 3) uint8, in 8 bits: (B, 1, H, W) on [-1, 1]."""
    return torch.from_numpy(images @ np.array([0.299, 0.587, 0.114])).float()[:, None].round() / 127.5 - 1


def main(
    shards: Annotated[str, typer.Option(help="as data.shards")],
    count: Annotated[int, typer.Option(help="images")] = 20,
) -> None:
    """Print the table."""
    keys, images = squares(shards, count, SIDE, resized=False)
    truth = luma(images)
    network, scorer = priors.load({"name": "natural"}), Scorer(["psnr", "ssim"])
    print("| sampler | task | copies | grouped | in colours |\n|---|---|---|---|---|")
    for spec in SAMPLERS:
        for task, (of, sigma_y) in TASKS.items():
            h = operators.build(of, (1, SIDE, SIDE))
            assert isinstance(h, Linear)
            y = h.forward(truth)
            y = y + sigma_y * KeyedNoise(0, keys).normal("measurement", tuple(y.shape[1:])).to(y)
            cells = []
            for prior, operator in ((Copies(network), h), (Grouped(network, 3), h), (network, OfMean(h))):
                restored = []
                for first in range(0, len(keys), BATCH):
                    some = slice(first, first + BATCH)
                    noise = KeyedNoise(0, keys[some])
                    found = samplers.build(spec)(prior, operator, y[some], noise, sigma_y=sigma_y)
                    restored.append(found.image.mean(1, keepdim=True))
                means = {name: np.mean(of) for name, of in scorer(torch.cat(restored), truth).items()}
                cells.append(f"{means['psnr']:.2f}, {means['ssim']:.3f}")
            print(f"| `{spec['name']}` | {task} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
