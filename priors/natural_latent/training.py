"""What the training of the autoencoder and that of the prior share: a resumable loop, and its state."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn

from kintsugi.priors.natural.train import Optimiser


class Training:
    """A network in training, the moving average of its weights, and how far it is.

    Attributes:
        step: steps done. seconds: that they took.
        losses: of the steps since the last record.
    """

    def __init__(self, network: nn.Module, lr: float, ema: float):
        def average(mean: Tensor, new: Tensor, n: Tensor | int) -> Tensor:
            # A short memory at first: a constant decay would remember the start.
            return torch.lerp(mean, new, 1 - min(ema, (1 + float(n)) / (10 + float(n))))

        self.network, self.lr = network, lr
        self.averaged = torch.optim.swa_utils.AveragedModel(network, avg_fn=average)
        self.optimiser = Optimiser(network, lr)
        self.step, self.seconds = 0, 0.0
        self.losses: list[Tensor] = []

    def load(self, file: Path) -> None:
        """Continue from a file that `save` wrote."""
        state = torch.load(file, weights_only=True)
        for part in ("network", "averaged", "optimiser"):
            getattr(self, part).load_state_dict(state[part])
        self.step, self.seconds = state["step"], state["seconds"]

    def save(self, file: Path) -> None:
        """Write all that `load` needs."""
        state = {part: getattr(self, part).state_dict() for part in ("network", "averaged", "optimiser")}
        unfinished = file.with_suffix(".tmp")
        torch.save(state | {"step": self.step, "seconds": self.seconds}, unfinished)
        unfinished.replace(file)

    def advance(self, loss: Tensor, rate: float) -> None:
        """One step down the gradient of a loss at a learning rate."""
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.optimiser.step(rate)
        self.averaged.update_parameters(self.network)
        self.losses.append(loss.detach())
        self.step += 1


def train(
    training: Training,
    loss_of: Callable[[np.random.Generator], Tensor],
    export: Callable[[nn.Module], None],
    out: Path,
    *,
    steps: int,
    seed: int,
    save_every: int,
    warmup: int = 100,
) -> None:
    """Train to a number of steps with a cosine decay; continue where `out` has a state.

    Args:
        loss_of: the loss of a step, whose draws are all from the generator that it is given.
        export: writes the averaged network.
        out: folder of `state.pt` and `log.jsonl`.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (state := out / "state.pt").exists():
        training.load(state)
        typer.echo(f"continuing at step {training.step}")
    clock = time.perf_counter() - training.seconds
    while (step := training.step) < steps:
        rate = training.lr * min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
        # One generator per step: a resumed run sees the crops that an undisturbed run would see.
        training.advance(loss_of(np.random.default_rng([seed, step])), rate)
        training.seconds = time.perf_counter() - clock
        done = training.step == steps
        if training.step % 100 == 0 or done:
            loss = torch.stack(training.losses).mean().item()
            training.losses.clear()
            record = {"step": training.step, "loss": round(loss, 5), "lr": round(rate, 7)}
            record["seconds"] = round(training.seconds)
            typer.echo(record)
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
        if training.step % save_every == 0 or done:
            training.save(state)
            export(training.averaged.module)


def save_half(network: nn.Module, file: Path) -> None:
    """Write weights in half precision."""
    save_file({k: v.half().contiguous() for k, v in network.state_dict().items()}, file)
