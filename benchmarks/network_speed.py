"""How fast the network of a checkpoint runs: forward and vector-Jacobian product, by precision and compiler.

    python benchmarks/checkpoint_loading.py adm256.pt  # makes a file of ADM's size
    python benchmarks/network_speed.py --path adm256.pt

Every row is the same module; the ratio is to plain float32 in the same run, at the same batch. What a GPU
makes of it with a sampler is for benchmarks/gpu.py.
"""

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from kit.timing import seconds

from kintsugi import priors
from kintsugi.priors import speed
from kintsugi.priors.base import NetworkPrior

SIZE = 256
MODES: dict[str, tuple[torch.dtype | None, speed.CompileMode | None]] = {
    "float32": (None, None),
    "bf16": (torch.bfloat16, None),
    "bf16, compiled": (torch.bfloat16, "default"),
    "bf16, CUDA graphs": (torch.bfloat16, "reduce-overhead"),
}


@torch.no_grad()
def forward(prior: NetworkPrior, x: torch.Tensor) -> None:
    prior(x, torch.full((len(x),), 400.0, device=x.device))


def forward_and_vjp(prior: NetworkPrior, x: torch.Tensor) -> None:
    leaf = x.clone().requires_grad_()
    torch.autograd.grad(prior(leaf, torch.full((len(x),), 400.0, device=x.device)), leaf, x)


def main(
    path: Annotated[Path, typer.Option(exists=True, help="A guided-diffusion checkpoint.")],
    device: str = "cpu",
    batches: Annotated[str, typer.Option(help="Comma-separated.")] = "1",
    modes: Annotated[str, typer.Option(help="Rows, comma-separated, by number from 0.")] = "0,1,2",
    repeats: int = 2,
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    columns = ["batch", "network", "forward, s", "forward + VJP, s", "ratio", "compiling, s"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for batch in map(int, batches.split(",")):
        x = torch.randn(batch, 3, SIZE, SIZE, device=device)
        plain = None
        for name in [list(MODES)[int(i)] for i in modes.split(",")]:
            dtype, mode = MODES[name]
            prior = priors.load({"name": "adm", "path": str(path)}, device=device)
            if dtype is not None:
                speed.half_precision(prior, dtype)
            if device == "cuda" and dtype is not None:
                speed.channels_last(prior)
            started = time.perf_counter()
            warm_up = partial(forward_and_vjp, prior, x)
            if mode is not None and (why := speed.compiled(prior, mode, batch, warm_up)):
                print(f"{name}: {why}")
                continue
            compiling = time.perf_counter() - started
            once = seconds(partial(forward, prior, x), device, repeats)
            both = seconds(partial(forward_and_vjp, prior, x), device, repeats)
            plain = plain or (once, both)
            ratios = f"{plain[0] / once:.2f}, {plain[1] / both:.2f}"
            row = [str(batch), name, f"{once:.3f}", f"{both:.3f}", ratios, f"{compiling:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
