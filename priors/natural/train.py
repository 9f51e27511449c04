"""Train the embedded prior: `python -m priors.natural.train --help`.

Resumable: the state (weights, EMA, optimiser, step) is saved every `--save-every`
steps, and the same command continues from it. Changing `--steps` on resumption moves the end of
the cosine decay.
"""

import json
import math
import time
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import webdataset as wds
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from priors.natural.network import NaturalUNet
from priors.paths import VariancePreserving

T_MIN = 0.001


def load_images(shards: list[str]) -> list[np.ndarray]:
    """Decode every image of the shards into memory as uint8 arrays (H, W, 3)."""
    samples = wds.WebDataset(shards, shardshuffle=False, empty_check=False)
    return [
        np.asarray(Image.open(BytesIO(sample[ext])).convert("RGB"))
        for sample in samples
        for ext in ("jpg", "png")
        if ext in sample
    ]


def crops(images: list[np.ndarray], n: int, size: int, rng: np.random.Generator) -> Tensor:
    """n random crops, flipped left to right half of the time: (n, 3, size, size) in [-1, 1]."""
    batch = np.empty((n, size, size, 3), np.uint8)
    for i in range(n):
        image = images[rng.integers(len(images))]
        top = rng.integers(image.shape[0] - size + 1)
        left = rng.integers(image.shape[1] - size + 1)
        crop = image[top : top + size, left : left + size]
        batch[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def main(
    natural: Annotated[list[str], typer.Option(help="Shards of natural images (repeatable).")],
    faces: Annotated[list[str], typer.Option(help="Shards of faces (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for state.pt, log.jsonl and the weights.")],
    steps: int = 8000,
    batch: int = 32,
    crop: int = 64,
    lr: float = 8e-4,
    warmup: int = 200,
    ema: float = 0.9995,
    face_share: Annotated[float, typer.Option(help="Share of the crops taken from faces.")] = 0.3,
    device: str = "cpu",
    seed: int = 0,
    save_every: int = 500,
) -> None:
    """Train `NaturalUNet` by ε-prediction on the VP path and export half-precision weights."""
    out.mkdir(parents=True, exist_ok=True)
    state_file, log_file = out / "state.pt", out / "log.jsonl"
    torch.manual_seed(seed)
    network = NaturalUNet().to(device)

    def average(mean: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
        # A short memory at first: a constant decay of 0.9995 would remember the random start.
        return torch.lerp(mean, new, 1 - min(ema, (1 + float(n)) / (10 + float(n))))

    averaged = torch.optim.swa_utils.AveragedModel(network, avg_fn=average)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    start, seconds = 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        averaged.load_state_dict(state["averaged"])
        optimiser.load_state_dict(state["optimiser"])
        start, seconds = state["step"], state["seconds"]
        typer.echo(f"continuing at step {start}")
    sets = {"natural": load_images(natural), "faces": load_images(faces)}
    typer.echo(f"{len(sets['natural'])} natural images, {len(sets['faces'])} faces")

    path = VariancePreserving()
    losses: list[Tensor] = []
    clock = time.perf_counter()
    for step in range(start, steps):
        # One generator per step: a resumed run sees the crops that an undisturbed run would see.
        rng = np.random.default_rng([seed, step])
        n_faces = rng.binomial(batch, face_share)
        x0 = torch.cat(
            [
                crops(sets["natural"], batch - n_faces, crop, rng),
                crops(sets["faces"], n_faces, crop, rng),
            ]
        ).to(device)
        # Quadratic in the uniform variable: two thirds of the steps go to t < 0.4, where samplers work.
        t = torch.from_numpy(T_MIN + (1 - T_MIN) * rng.random(batch) ** 2)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(device)
        a, s = (c.float().view(-1, 1, 1, 1).to(device) for c in (path.a(t), path.s(t)))
        rate = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = lr * rate
        with torch.autocast(device, torch.bfloat16):
            prediction = network(a * x0 + s * noise, t.float().to(device))
        loss = (prediction.float() - noise).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        averaged.update_parameters(network)
        losses.append(loss.detach())

        if (step + 1) % 100 == 0 or step + 1 == steps:
            spent = seconds + time.perf_counter() - clock
            record = {"step": step + 1, "loss": round(torch.stack(losses).mean().item(), 5)}
            record |= {"lr": round(lr * rate, 7), "seconds": round(spent)}
            losses.clear()
            typer.echo(record)
            with log_file.open("a") as log:
                log.write(json.dumps(record) + "\n")
        if (step + 1) % save_every == 0 or step + 1 == steps:
            state = {
                "network": network.state_dict(),
                "averaged": averaged.state_dict(),
                "optimiser": optimiser.state_dict(),
                "step": step + 1,
                "seconds": seconds + time.perf_counter() - clock,
            }
            torch.save(state, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)
            weights = {k: v.half().contiguous() for k, v in averaged.module.state_dict().items()}
            save_file(weights, out / "natural.safetensors")
            (out / "config.json").write_text(json.dumps(network.config, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
