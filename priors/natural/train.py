"""Train the embedded prior: `python -m kintsugi.priors.natural.train --help`.

Resumable: the state (weights, EMA, optimisers, step) is saved every `--save-every`
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kintsugi.priors.natural.network import NaturalUNet
from kintsugi.priors.paths import VariancePreserving

T_MIN = 0.001
LARGEST_WEIGHT = 25.0
CROPS = (64, 128)
"""Sides of the crops, chosen at random for each step."""


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


class Optimiser:
    """Muon (K. Jordan, 2024) for the weights of layers, Adam for biases, norms and gains.

    Muon orthogonalises the momentum of matrices; a convolution (out, in, h, w) counts as the matrix
    (out, in h w). At equal CPU time it is ahead of Adam (README.md).
    """

    def __init__(self, network: nn.Module, lr: float):
        self.parameters = list(network.parameters())
        self.weights = [p for p in self.parameters if p.ndim >= 2]
        # The same memory, seen as matrices.
        self.matrices = [nn.Parameter(p.data.flatten(1)) for p in self.weights]
        # Steps as long as Adam's, so that one learning rate serves both.
        muon = torch.optim.Muon(self.matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        vectors = [p for p in self.parameters if p.ndim < 2]
        self.parts = [muon, torch.optim.Adam(vectors, lr=lr, betas=(0.9, 0.99), fused=True)]

    def step(self, lr: float) -> None:
        """One step with the gradients of the network's parameters, which are cleared."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for matrix, weight in zip(self.matrices, self.weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> list[dict[str, object]]:
        """The state of each part, in order."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, object]]) -> None:
        """Take over what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Training:
    """A network in training, the moving average of its weights, and how far it is.

    Attributes:
        step: steps done. seconds: that they took.
        losses: of the steps since the last record.
    """

    def __init__(self, init: Path | None, lr: float, ema: float, device: str):
        def average(mean: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
            # A short memory at first: a constant decay of 0.999 would remember the start.
            return torch.lerp(mean, new, 1 - min(ema, (1 + float(n)) / (10 + float(n))))

        self.network = NaturalUNet().to(device)
        if init is not None:
            self.network.load_state_dict(load_file(init))
        self.averaged = torch.optim.swa_utils.AveragedModel(self.network, avg_fn=average)
        self.optimiser = Optimiser(self.network, lr)
        self.device, self.step, self.seconds = device, 0, 0.0
        self.losses: list[Tensor] = []

    def load(self, file: Path) -> None:
        """Continue from a file that `save` wrote."""
        state = torch.load(file, map_location=self.device, weights_only=True)
        for part in ("network", "averaged", "optimiser"):
            getattr(self, part).load_state_dict(state[part])
        self.step, self.seconds = state["step"], state["seconds"]

    def advance(self, x0: Tensor, rate: float, rng: np.random.Generator) -> None:
        """One step on images x0 (B, 3, H, W) at a learning rate."""
        # Quadratic in the uniform variable: two thirds of the steps go to t < 0.4, where samplers work.
        t = torch.from_numpy(T_MIN + (1 - T_MIN) * rng.random(len(x0)) ** 2)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32)).to(self.device)
        path = VariancePreserving()
        a, s = (c.float().view(-1, 1, 1, 1).to(self.device) for c in (path.a(t), path.s(t)))
        with torch.autocast(self.device, torch.bfloat16):
            prediction = self.network(a * x0.to(self.device) + s * noise, t.float().to(self.device))
        # ε is nearly x at high noise, and an error in it is s/a times as large in x̂₀. With the weight
        # 1/a² the loss is that of v-prediction (Salimans and Ho 2022, 2202.00512).
        weight = (1 / a**2).clamp(max=LARGEST_WEIGHT)
        loss = (weight * (prediction.float() - noise).square()).mean()
        loss.backward()
        self.optimiser.step(rate)
        self.averaged.update_parameters(self.network)
        self.losses.append(loss.detach())
        self.step += 1

    def save(self, folder: Path) -> None:
        """Write the state, and the averaged weights in half precision with their configuration."""
        state = {part: getattr(self, part).state_dict() for part in ("network", "averaged", "optimiser")}
        unfinished = folder / "state.tmp"
        torch.save(state | {"step": self.step, "seconds": self.seconds}, unfinished)
        unfinished.replace(folder / "state.pt")
        weights = {k: v.half().contiguous() for k, v in self.averaged.module.state_dict().items()}
        save_file(weights, folder / "natural.safetensors")
        (folder / "config.json").write_text(json.dumps(self.network.config, indent=2) + "\n")


def main(
    natural: Annotated[list[str], typer.Option(help="Shards of natural images (repeatable).")],
    faces: Annotated[list[str], typer.Option(help="Shards of faces (repeatable).")],
    out: Annotated[Path, typer.Option(help="Folder for state.pt, log.jsonl and the weights.")],
    init: Annotated[Path | None, typer.Option(help="Weights to begin with (safetensors).")] = None,
    steps: int = 8000,
    batch: Annotated[int, typer.Option(help="Crops of the smaller size per step.")] = 16,
    lr: float = 1e-3,
    warmup: int = 100,
    ema: float = 0.999,
    face_share: Annotated[float, typer.Option(help="Share of the crops taken from faces.")] = 0.3,
    device: str = "cpu",
    threads: int = 2,
    seed: int = 0,
    save_every: int = 250,
) -> None:
    """Train `NaturalUNet` by ε-prediction on the VP path and export half-precision weights."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    training = Training(init, lr, ema, device)
    if (out / "state.pt").exists():
        training.load(out / "state.pt")
        typer.echo(f"continuing at step {training.step}")
    images, people = load_images(natural), load_images(faces)
    typer.echo(f"{len(images)} natural images, {len(people)} faces")
    clock = time.perf_counter() - training.seconds
    while (step := training.step) < steps:
        # One generator per step: a resumed run sees the crops that an undisturbed run would see.
        rng = np.random.default_rng([seed, step])
        size = int(rng.choice(CROPS))
        count = batch * CROPS[0] ** 2 // size**2
        of_people = rng.binomial(count, face_share)
        x0 = torch.cat([crops(images, count - of_people, size, rng), crops(people, of_people, size, rng)])
        rate = lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        training.advance(x0, rate, rng)
        training.seconds = time.perf_counter() - clock
        if training.step % 100 == 0 or training.step == steps:
            loss = torch.stack(training.losses).mean().item()
            training.losses.clear()
            record = {"step": training.step, "loss": round(loss, 5), "lr": round(rate, 7)}
            record["seconds"] = round(training.seconds)
            typer.echo(record)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        if training.step % save_every == 0 or training.step == steps:
            training.save(out)


if __name__ == "__main__":
    typer.run(main)
