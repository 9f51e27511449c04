"""How good the embedded prior is: denoising, and 5-step restoration with and without conjugation.

    python benchmarks/prior_quality.py --shard imagenet256-sample-0000.tar

Prints a Markdown table of mean PSNR over the first images of a shard at 256².
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

import operators
import priors
import samplers
from pipeline.job import Data
from pipeline.plan import make_plan, read_keys, read_units
from pipeline.read import read_unit
from priors.base import data_prediction
from priors.paths import log_snr
from samplers import KeyedNoise

SIZE = 256
TASKS = {
    "SR 4×": {"name": "bicubic", "factor": 4},
    "Gaussian deblurring": {"name": "gaussian_blur"},
    "inpainting, 30 % known": {"name": "inpaint", "mask": "random", "keep": 0.3},
}
SAMPLERS = {
    "conjugate w 15": {"name": "conjugate", "steps": 5, "w": 15},
    "pigdm w 4": {"name": "pigdm", "steps": 5, "w": 4},
}


def load(shard: Path, count: int, folder: Path) -> tuple[list[str], torch.Tensor]:
    """Keys and images (N, 3, 256, 256) in [-1, 1]."""
    data = Data(shards=str(shard), size=SIZE, fit="resize_crop", limit=count)
    make_plan(data, [shard], count, folder / "plan.parquet")
    (unit,) = read_units(folder / "plan.parquet")
    keys = read_keys(folder / "plan.parquet", unit.unit)
    (batch,) = read_unit(unit, keys, SIZE, data.fit, count)
    images = np.stack([sample.image for sample in batch if sample.image is not None])
    return keys, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(restored: torch.Tensor, truth: torch.Tensor) -> float:
    """Mean over images, clipped to the valid range, dB."""
    squared = ((restored.clamp(-1, 1) - truth).double() / 2).square().mean((1, 2, 3))
    return float((-10 * squared.log10()).mean())


@torch.no_grad()
def denoise(prior: priors.Prior, x0: torch.Tensor, sigma: float, keys: list[str]) -> torch.Tensor:
    """x̂₀ at the time whose s/a is 2σ (σ on [0, 1])."""
    t = prior.path.time_of(-torch.tensor([2 * sigma], dtype=torch.float64).log())
    assert torch.allclose(log_snr(prior.path, t).exp() * 2 * sigma, torch.ones(1, dtype=torch.float64))
    p, q = data_prediction(prior.path, prior.parametrization, t)
    a, s = prior.path.a(t).item(), prior.path.s(t).item()
    x = a * x0 + s * KeyedNoise(0, keys).normal("denoise", tuple(x0.shape[1:]))
    return p.item() * x + q.item() * prior(x, t.float().expand(len(x)))


def main(
    shard: Annotated[Path, typer.Option(exists=True)],
    count: int = 16,
    threads: int = 2,
    restoration: Annotated[bool, typer.Option(help="Also run the samplers.")] = True,
) -> None:
    import tempfile

    torch.set_num_threads(threads)
    prior = priors.load({"name": "natural"})
    with tempfile.TemporaryDirectory() as folder:
        keys, images = load(shard, count, Path(folder))
    pairs = list(zip(keys, images.split(1), strict=True))
    print("| | PSNR, dB |\n|---|---|")
    for sigma in (0.05, 0.1, 0.2, 0.5):
        values = [psnr(denoise(prior, x0, sigma, [key]), x0) for key, x0 in pairs]
        print(f"| denoising, σ = {sigma} on [0,1] | {np.mean(values):.2f} |", flush=True)
    for task, spec in TASKS.items() if restoration else ():
        operator = operators.build(spec, (3, SIZE, SIZE))
        values = [psnr(operator.pinv(operator.forward(x0)), x0) for _, x0 in pairs]
        print(f"| {task}, H⁺y | {np.mean(values):.2f} |")
        for name, sampler_spec in SAMPLERS.items():
            sampler = samplers.build(sampler_spec)
            values = [
                psnr(sampler(prior, operator, operator.forward(x0), KeyedNoise(0, [key])).image, x0)
                for key, x0 in pairs
            ]
            print(f"| {task}, {name} | {np.mean(values):.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
