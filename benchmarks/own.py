"""What it costs that every sample has a mask, kernel, width or noise level of its own.

    python benchmarks/own.py imagenet256-sample-0000.tar imagenet256-sample-0001.tar --images 200

Every batch is restored by a job with one for all and by a job that draws them, in turn, so that what else the
machine does meets both. Prints a Markdown table of seconds of this process on all cores per image, of
degrading, restoring and scoring with the embedded prior at 128².
"""

import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import typer
from kit.photographs import squares

from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.job import Job

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masks": (
        {"operator": {"name": "inpaint", "mask": "freeform", "holes": [0.2, 0.3]}},
        {"operator": {"name": "inpaint", "mask": {"draw": "freeform", "holes": [0.2, 0.3]}}},
    ),
    "motion kernels": (
        {"operator": {"name": "motion_blur"}, "sigma": 0.025},
        {"operator": {"name": "blur", "kernel": {"draw": "motion"}}, "sigma": 0.025},
    ),
    "Gaussian widths": (
        {"operator": {"name": "gaussian_blur", "sigma": 2.0}, "sigma": 0.025},
        {
            "operator": {"name": "gaussian_blur", "sigma": {"draw": "uniform", "low": 1, "high": 3}},
            "sigma": 0.025,
        },
    ),
    "noise levels": (
        {"operator": {"name": "bicubic"}, "sigma": 0.05},
        {"operator": {"name": "bicubic"}, "sigma": {"draw": "uniform", "low": 0.01, "high": 0.1}},
    ),
}


def main(tars: list[Path], images: int = 200, batch: int = 16, steps: int = 5, only: str = "") -> None:
    """Time the cases, or `only` one, on these images, after a batch of each as a warm-up."""
    torch.set_num_threads(1)
    keys, squared = squares([str(tar) for tar in tars], images, 128)
    samples = [Decoded(key, i, image) for i, (key, image) in enumerate(zip(keys, squared, strict=True))]
    print("| of each sample its own | one for all, s | own, s | ratio |\n|---|---|---|---|")
    for name in [only] if only else CASES:
        degradations = CASES[name]
        stages = []
        for degradation in degradations:
            job = {
                "data": {"shards": "x", "size": 128},
                "degradation": degradation,
                "sampler": {"name": "conjugate", "steps": steps},
                "metrics": ["psnr", "ssim"],
                "compute": {"batch_size": batch},
                "output": "x",
            }
            stages.append(Stage(Job.model_validate(job), "cpu"))
            stages[-1].run(samples[:batch])
        spent = [0.0, 0.0]
        batches = iter(samples)
        turn = 0
        while part := list(islice(batches, batch)):
            for which in (0, 1) if turn % 2 else (1, 0):
                started = time.process_time()
                stages[which].run(part)
                spent[which] += time.process_time() - started
            turn += 1
        one, own = (seconds / len(samples) for seconds in spent)
        print(f"| {name} | {one:.3f} | {own:.3f} | {own / one:.3f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
