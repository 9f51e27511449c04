"""Train the latent prior: `python -m kintsugi.priors.natural_latent.train --help`.

Resumable: the same command continues from `state.pt`. All images are encoded first, and remembered.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor, nn

from kintsugi.priors.natural.train import LARGEST_WEIGHT, T_MIN, load_images
from kintsugi.priors.natural_latent.autoencoder import NaturalAutoencoder
from kintsugi.priors.natural_latent.network import LatentUNet
from kintsugi.priors.natural_latent.training import Training, save_half, train
from kintsugi.priors.paths import VariancePreserving

CROPS = (64, 128, 192)
"""Sides of the crops of images whose latents a step sees, chosen at random."""


@torch.no_grad()
def encoded(autoencoder: NaturalAutoencoder, images: list[np.ndarray]) -> list[np.ndarray]:
    """The latents (4, h, w) of images (H, W, 3) uint8 and of their mirror images, in half precision.

    Images are cut to sides divisible by the factor, every other one from half of it on: faces, which are
    aligned, are not always on the same grid.
    """
    latents = []
    for index, image in enumerate(images):
        start, factor = index % 2 * (autoencoder.factor // 2), autoencoder.factor
        height, width = ((side - start) // factor * factor for side in image.shape[:2])
        x = torch.from_numpy(image[start : start + height, start : start + width].copy())
        x = x.permute(2, 0, 1).float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):
            z = torch.stack([autoencoder.encode(each[None])[0] for each in (x, x.flip(-1))])
        latents += list(z.half().numpy())
    return latents


def cut(latents: list[np.ndarray], count: int, size: int, rng: np.random.Generator) -> Tensor:
    """Random crops (count, 4, size, size)."""
    batch = np.empty((count, latents[0].shape[0], size, size), np.float32)
    for i in range(count):
        z = latents[rng.integers(len(latents))]
        top, left = (rng.integers(side - size + 1) for side in z.shape[1:])
        batch[i] = z[:, top : top + size, left : left + size]
    return torch.from_numpy(batch)


def main(
    natural: Annotated[list[str], typer.Option(help="Shards of natural images (repeatable).")],
    faces: Annotated[list[str], typer.Option(help="Shards of faces (repeatable).")],
    autoencoder: Annotated[Path, typer.Option(help="Its weights (safetensors).")],
    out: Annotated[Path, typer.Option(help="Folder for state.pt, log.jsonl and the weights.")],
    init: Annotated[Path | None, typer.Option(help="Weights to begin with (safetensors).")] = None,
    steps: int = 4000,
    batch: Annotated[int, typer.Option(help="Crops of the smallest size per step.")] = 32,
    lr: float = 1e-3,
    ema: float = 0.999,
    face_share: Annotated[float, typer.Option(help="Share of the crops taken from faces.")] = 0.3,
    threads: int = 1,
    seed: int = 0,
    save_every: int = 250,
) -> None:
    """Train `LatentUNet` by ε-prediction on the VP path and export half-precision weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    network, encoder, path = LatentUNet(), NaturalAutoencoder().eval(), VariancePreserving()
    encoder.load_state_dict(load_file(autoencoder))
    if init is not None:
        network.load_state_dict(load_file(init))
    scenes, people = (encoded(encoder, load_images(shards)) for shards in (natural, faces))
    typer.echo(f"{len(scenes)} latents of natural images, {len(people)} of faces")

    def loss_of(rng: np.random.Generator) -> Tensor:
        size = int(rng.choice(CROPS))
        count, side = batch * CROPS[0] ** 2 // size**2, size // encoder.factor
        of_people = rng.binomial(count, face_share)
        z0 = torch.cat([cut(scenes, count - of_people, side, rng), cut(people, of_people, side, rng)])
        # Quadratic in the uniform variable: two thirds of the steps go to t < 0.4, where samplers work.
        t = torch.from_numpy(T_MIN + (1 - T_MIN) * rng.random(count) ** 2)
        noise = torch.from_numpy(rng.standard_normal(z0.shape, np.float32))
        a, s = (c.float().view(-1, 1, 1, 1) for c in (path.a(t), path.s(t)))
        with torch.autocast("cpu", torch.bfloat16):
            prediction = network(a * z0 + s * noise, t.float())
        # That of v-prediction, for high noise not to be neglected: see the prior of pixels.
        weight = (1 / a**2).clamp(max=LARGEST_WEIGHT)
        return (weight * (prediction.float() - noise).square()).mean()

    def export(averaged: nn.Module) -> None:
        save_half(averaged, out / "natural_latent.safetensors")
        (out / "config.json").write_text(json.dumps(network.config, indent=2) + "\n")

    training = Training(network, lr, ema)
    train(training, loss_of, export, out, steps=steps, seed=seed, save_every=save_every)


if __name__ == "__main__":
    typer.run(main)
