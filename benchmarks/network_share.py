"""The share of a job's wall time that is spent inside the network: its forwards and VJPs.

    python benchmarks/network_share.py --shards imagenet256-sample-0000.tar --limit 8

Runs the job in this process. The parts are those of the commit record; beside them, the network's time by
hooks of its module, which wait for the device: another way to the same numbers.
"""

import tempfile
import time
from typing import Annotated, Any

import torch
import typer

from kintsugi.device import default_device
from kintsugi.pipeline.execution.directory import commit_file
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.job import Job


class Stopwatch:
    """Seconds between the start and end hooks of a module, forward and backward."""

    def __init__(self, module: Any, device: str = "cpu"):
        self.device = device
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
        self.started = time.perf_counter()

    def stop(self, part: str) -> None:
        self.wait()
        self.seconds[part] += time.perf_counter() - self.started


def main(
    shards: Annotated[str, typer.Option()],
    limit: int = 8,
    batch_size: int = 1,
    threads: int = 2,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = Job.model_validate(
            {
                "data": {"shards": shards, "size": 256, "fit": "resize_crop", "limit": limit},
                "degradation": {"operator": {"name": "bicubic", "factor": 4}},
                "sampler": {"name": "conjugate", "steps": 5, "w": 15},
                "compute": {"batch_size": batch_size, "unit_size": limit, "cpus_per_actor": threads},
                "output": folder,
            }
        )
        run = open_or_plan(job)
        worker = Worker(run.job, run.folder, default_device())
        (unit,) = run.units()
        # The first execution loads libraries; the second is what a long job does all the time.
        worker.process(Task(unit))
        commit_file(run.folder, unit.unit).unlink()
        watch = Stopwatch(worker.stage.prior.network)
        started = time.perf_counter()
        commit = worker.process(Task(unit))
        wall = time.perf_counter() - started
    parts = dict(commit.seconds)
    total, sample = parts.pop("total"), parts.pop("sample")
    beside = {part: parts.pop(part) for part in ("fetch", "decode")}
    network = parts["forward"] + parts["vjp"]
    parts["sampler beside the network"] = sample - network
    parts["commit and the rest"] = wall - sum(parts.values())
    print(f"{limit} images, batch {batch_size}: {wall:.2f} s wall, of which {total:.2f} s in the record")
    print("| part | s | share |\n|---|---|---|")
    for name, seconds in parts.items():
        print(f"| {name} | {seconds:.3f} | {seconds / wall:.1%} |")
    print(f"\ninside the network: {network / wall:.1%} of the wall time")
    for title, others in (("by hooks of its module", watch.seconds), ("in other threads", beside)):
        print(f"{title}: " + ", ".join(f"{part} {seconds:.3f} s" for part, seconds in others.items()))


if __name__ == "__main__":
    typer.run(main)
