"""How good the embedded latent prior is: the round trip, denoising of latents, seconds.

    python benchmarks/latent_prior_quality.py --shards 'imagenet256/*.tar' --shards 'ffhq256/*.tar'

Denoising is beside the best Gaussian with a diagonal covariance in the DCT of each channel: its variances
are those of the very latents that it denoises, so that any Gaussian fitted to others is behind it. Images
are 256²; prints Markdown, means with 95 % intervals over the images.
"""

import math
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from kit.photographs import on_unit, squares
from torch import Tensor

from kintsugi import priors
from kintsugi.numerics import cosines
from kintsugi.pipeline.execution.stage import PRECISIONS
from kintsugi.priors import speed
from kintsugi.priors.base import data_prediction
from kintsugi.samplers import KeyedNoise

SIDE = 256
SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Standard deviations of the noise, beside latents of unit variance."""


def psnr(images: Tensor, truth: Tensor) -> Tensor:
    """dB of each (B,), of images that are clipped to [-1, 1] first."""
    return -10 * torch.log10((images.clamp(-1, 1) - truth).square().mean((1, 2, 3)) / 4)


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of all, one at a time."""
    return torch.cat([function(one[None]) for one in x])


def with_interval(values: Tensor, digits: int = 2) -> str:
    return f"{values.mean():.{digits}f} ± {1.96 * values.std() / len(values) ** 0.5:.{digits}f}"


def wiener(z: Tensor, noisy: Tensor, sigma: float) -> Tensor:
    """E[z | noisy] under the Gaussian of latents z (B, C, h, w); noisy = z + σ n."""
    basis = cosines(z.shape[-1]).to(z)
    mean = z.mean((0, 2, 3), keepdim=True)
    power = (basis @ (z - mean) @ basis.T).square().mean(0)
    return mean + basis.T @ (power / (power + sigma**2) * (basis @ (noisy - mean) @ basis.T)) @ basis


def speeds(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least seconds of 25 rounds of all calls: what else a machine does comes and goes."""
    taken = dict.fromkeys(calls, math.inf)
    for _ in range(25):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name] = min(taken[name], time.perf_counter() - start)
    return taken


def quality(prior: priors.Prior, shards: str, count: int) -> None:
    """Print what the prior makes of the first images of shards."""
    keys, images = squares(shards, count, SIDE)
    x = on_unit(images)
    z = each(prior.autoencoder.encode, x)
    noise = KeyedNoise(0, keys).normal("denoise", z.shape[1:])
    print(f"\n{len(x)} images of `{shards.split('/')[-2]}`: round trip "
          f"{with_interval(psnr(each(prior.autoencoder.decode, z), x))} dB\n")  # fmt: skip
    print("| σ | MSE of latents, Gaussian | network | PSNR of images, dB, Gaussian | network | difference |")
    print("|---|---|---|---|---|---|")
    for sigma in SIGMAS:
        t = prior.path.time_of(-torch.tensor([sigma], dtype=torch.float64).log())
        p, q = (value.item() for value in data_prediction(prior.path, prior.parametrization, t))
        noisy = z + sigma * noise
        state = prior.path.a(t).item() * noisy
        denoised = each(lambda x, p=p, q=q, t=t: p * x + q * prior(x, t.float()), state)
        found = [wiener(z, noisy, sigma), denoised]
        errors = [(zs - z).square().mean().item() for zs in found]
        quality = [psnr(each(prior.autoencoder.decode, zs), x) for zs in found]
        cells = [*(f"{error:.4f}" for error in errors), *map(with_interval, quality)]
        print(f"| {sigma} | {' | '.join(cells)} | {with_interval(quality[1] - quality[0])} |", flush=True)


def main(
    shards: Annotated[
        list[str] | None, typer.Option(help="Braces and globs work (repeatable); without, seconds alone.")
    ] = None,
    count: Annotated[int, typer.Option(help="Images of each.")] = 16,
    precision: str = "float32",
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    prior, pixels = priors.load({"name": "natural_latent"}), priors.load({"name": "natural"})
    if (dtype := PRECISIONS[precision]) is not None:
        speed.half_precision(prior, dtype)
        speed.half_precision(pixels, dtype)
    for each_shards in shards or ():
        quality(prior, each_shards, count)
    x, t = torch.zeros(1, 3, SIDE, SIDE), torch.tensor([0.3])
    z = prior.autoencoder.encode(x)
    found = speeds(
        {
            "encode": lambda: prior.autoencoder.encode(x),
            "decode": lambda: prior.autoencoder.decode(z),
            "forward": lambda: prior(z, t),
            "forward of `natural`": lambda: pixels(x, t),
        }
    )
    print(f"\n| {' | '.join(found)} |\n|{'---|' * len(found)}")
    print(f"| {' | '.join(f'{1000 * value:.0f} ms' for value in found.values())} |")


if __name__ == "__main__":
    typer.run(main)
