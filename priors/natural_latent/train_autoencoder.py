"""Train the autoencoder: `python -m kintsugi.priors.natural_latent.train_autoencoder --help`.

Resumable: the same command continues from `state.pt`. With `--init` only the decoder is trained on, so that
the latents stay what they were, and a prior of them stays valid.
"""

from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor, nn

from kintsugi.priors.natural.train import CROPS, crops, load_images
from kintsugi.priors.natural_latent.autoencoder import NaturalAutoencoder
from kintsugi.priors.natural_latent.training import Training, save_half, train

NOISE = 0.05
"""Standard deviation of the posterior."""
RATE = 1e-3
"""Weight of its KL divergence from N(0, 1), which is the mean of z²/2 but for a constant."""


@torch.no_grad()
def whitened(autoencoder: NaturalAutoencoder, x: Tensor) -> NaturalAutoencoder:
    """One with latents of zero mean and identity covariance over images x (B, 3, H, W), else the same.

    A shift, and a rotation to the principal components of the channels, become part of the convolutions
    before and behind the latents.
    """
    result = deepcopy(autoencoder).eval()
    mean, covariance = moments(result, x)
    variances, directions = torch.linalg.eigh(covariance)
    to_white = (directions / variances.sqrt()).T.flip(0)
    last: Any = result.encoder[-1]
    last.weight.copy_(torch.einsum("ab,bchw->achw", to_white, last.weight.double()))
    last.bias.copy_(to_white @ (last.bias.double() - mean))
    first: Any = result.decoder[0]
    weight = first.weight.double()
    first.bias.add_(torch.einsum("achw,c->a", weight, mean))
    first.weight.copy_(torch.einsum("achw,cd->adhw", weight, torch.linalg.inv(to_white)))
    return result


def moments(autoencoder: NaturalAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (4,) and covariance (4, 4) of the latents of images x (B, 3, H, W), float64."""
    parts = [autoencoder.encode(x[first : first + 16]) for first in range(0, len(x), 16)]
    values = torch.cat(parts).double().transpose(0, 1).flatten(1)
    return values.mean(1), torch.cov(values)


def distortion(restored: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of images (B, 3, H, W), plus half of that of their gradient."""
    error = restored - x
    return error.abs().mean() + 0.5 * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())


def mixed(
    images: list[np.ndarray],
    people: list[np.ndarray],
    count: int,
    size: int,
    face_share: float,
    rng: np.random.Generator,
) -> Tensor:
    """Random crops (count, 3, size, size) on [-1, 1], a share of them of faces."""
    faces = rng.binomial(count, face_share)
    return torch.cat([crops(images, count - faces, size, rng), crops(people, faces, size, rng)])


def main(
    natural: Annotated[list[str], typer.Option(help="Shards of natural images (repeatable).")],
    faces: Annotated[list[str], typer.Option(help="Shards of faces (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for state.pt, log.jsonl and the weights.")],
    init: Annotated[Path | None, typer.Option(help="Weights whose decoder is trained on.")] = None,
    steps: int = 8000,
    batch: Annotated[int, typer.Option(help="Crops of the smaller size per step.")] = 16,
    lr: float = 1e-3,
    ema: float = 0.999,
    face_share: Annotated[float, typer.Option(help="Share of the crops taken from faces.")] = 0.3,
    threads: int = 1,
    seed: int = 0,
    save_every: int = 500,
) -> None:
    """Train `NaturalAutoencoder` and export half-precision weights."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    autoencoder = NaturalAutoencoder()
    if init is not None:
        autoencoder.load_state_dict(load_file(init))
    trained: nn.Module = autoencoder if init is None else autoencoder.decoder
    training = Training(trained, lr, ema)
    images, people = load_images(natural), load_images(faces)
    typer.echo(f"{len(images)} natural images, {len(people)} faces")
    seen = mixed(images, people, 256, 128, face_share, np.random.default_rng(seed))

    def loss_of(rng: np.random.Generator) -> Tensor:
        size = int(rng.choice(CROPS))
        x = mixed(images, people, batch * CROPS[0] ** 2 // size**2, size, face_share, rng)
        latent = (len(x), autoencoder.channels, size // autoencoder.factor, size // autoencoder.factor)
        noise = torch.from_numpy(rng.standard_normal(latent, np.float32))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.set_grad_enabled(init is None):
                z = autoencoder.encode(x).float()
            restored = autoencoder.decode(z + NOISE * noise).float()
        return distortion(restored, x) + RATE / 2 * z.square().mean()

    def export(averaged: Any) -> None:
        whole = deepcopy(autoencoder)
        if init is None:
            whole = whitened(averaged, seen)
        else:
            whole.decoder = averaged
        save_half(whole, out / "autoencoder.safetensors")

    train(training, loss_of, export, out, steps=steps, seed=seed, save_every=save_every)


if __name__ == "__main__":
    typer.run(main)
