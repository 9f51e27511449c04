"""What a sampler costs beside its network: time per step less the network's forwards and VJPs.

    python benchmarks/sampler_overhead.py

Every sampler of the registry, 10 steps at 256² on the embedded prior, noise instead of images. The
network is timed by module hooks; each figure is of the fastest of several runs. Seconds are of CPU, of all
threads, which other programs on the machine disturb little; on a GPU of the clock.
"""

import time
from typing import Any

import torch
import typer
import yaml
from kit.samplers import FEW

from kintsugi import operators, priors, samplers
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.base import of_each


class Stopwatch:
    """Seconds between the start and end hooks of a module, forward and backward."""

    def __init__(self, module: Any, device: str = "cpu"):
        self.device = device
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.reset()
        module.register_forward_pre_hook(lambda *_: self.start())
        module.register_forward_hook(lambda *_: self.stop("forward"))
        module.register_full_backward_pre_hook(lambda *_: self.start())
        module.register_full_backward_hook(lambda *_: self.stop("vjp"))

    def reset(self) -> None:
        self.seconds = {"forward": 0.0, "vjp": 0.0}
        self.started = 0.0

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def start(self) -> None:
        self.wait()
        self.started = self.clock()

    def stop(self, part: str) -> None:
        self.wait()
        self.seconds[part] += self.clock() - self.started


def main(
    operator: str = "{name: bicubic, factor: 4}",
    sigma_y: float = 0.0,
    batch: int = 1,
    size: int = 256,
    steps: int = 10,
    repeats: int = 5,
    device: str = "cpu",
    threads: int = 2,
    only: str | None = None,
) -> None:
    torch.set_num_threads(threads)
    prior: Any = priors.load({"name": "natural"}, device=device)
    degrade = operators.build(yaml.safe_load(operator), (3, size, size), device=device)
    noise = KeyedNoise(0, [str(i) for i in range(batch)])
    y = degrade.forward(0.5 * torch.randn(batch, 3, size, size, device=device))
    watch = Stopwatch(prior.network, device)
    print(f"{operator}, σ_y {sigma_y:g}, batch {batch} of 3×{size}×{size}, {device}\n")
    head = "forwards | VJPs | ms per step | outside the network, ms per step | share | prepared, ms"
    print(f"| sampler | {head} |\n|{'---|' * 7}")
    for name in sorted(set(samplers.REGISTRY) - {"external"}) if only is None else [only]:
        sampler = samplers.build({"name": name, "steps": steps, "start": 0.4, **FEW.get(name, {})})
        started = watch.clock()
        sampler.prepare(prior, degrade, sigma_y, y)  # which computes the coefficients
        prepared, runs = watch.clock() - started, []
        for repeat in range(repeats + 1):
            watch.reset()
            started = watch.clock()
            outcome = sampler(prior, degrade, y, noise, sigma_y=sigma_y)
            watch.wait()
            total = watch.clock() - started
            if repeat > 0:  # the first run loads libraries
                runs.append((total, total - sum(watch.seconds.values())))
        total, rest = min(runs)
        forwards, vjps = (max(of_each(count, batch)) for count in (outcome.forwards, outcome.vjps))
        print(
            f"| {name} | {forwards} | {vjps} | {1e3 * total / steps:.1f} | "
            f"{1e3 * rest / steps:.2f} | {rest / total:.1%} | {1e3 * prepared:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
