"""What a job costs beside its network: images per second and core of each stage, and of the whole.

    python benchmarks/beside_network.py               photographs that it makes itself
    python benchmarks/beside_network.py --folder F    the images of a folder, or its shards

Images of 256² are read, degraded (bicubic, 4 times smaller, σ = 0.05), scored beside what needs no network,
and written, by a sampler that returns H⁺y; its time is left out. By CPU time of all threads, one thread to an
operation, so that a busy machine and waiting for a disk change little; the best of a few rounds.

Then the share of the time in which a device waits whose network takes 10, 100 or 1,000 ms for a batch of 16:
of all but these pauses, by the clock, with scores beside the next batch and before it.
"""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
import typer
from kit.plugins import know_stand_ins
from PIL import Image
from skimage import data

from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.degrade import degrade
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.pipeline.execution.worker import Worker
from kintsugi.pipeline.job import Job

SIZE, UNIT, BATCH = 256, 32, 16
THREE = ["psnr", "ssim", "ms_ssim"]
VARIANTS: dict[str, dict[str, Any]] = {
    "three metrics": {"metrics": THREE},
    "three metrics, features (`swd`)": {"metrics": [*THREE, "swd"]},
    "three metrics, `images: all`": {"metrics": THREE, "images": "all"},
}
NETWORKS = (10, 100, 1000)
STAGES = ("read, decode", "degrade", "score", "encode", "write")

T = TypeVar("T")


def main(
    folder: Annotated[Path | None, typer.Option(help="Of images or shards, in place of made ones.")] = None,
    images: Annotated[int, typer.Option(min=1)] = 32,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Print a table of images per second and core."""
    know_stand_ins()
    print(f"| images/s and core at {SIZE}² | {' | '.join(STAGES)} | the whole job |\n|{'---|' * 7}")
    with tempfile.TemporaryDirectory() as name:
        shards = str(folder or photographs(Path(name), images))
        for title, fields in VARIANTS.items():
            found = [spent(run_of(shards, Path(name, f"{title}{i}"), fields)) for i in range(rounds)]
            best = [min(times) for times in zip(*found, strict=True)]
            print(f"| {title} | {' | '.join(f'{1 / seconds:,.0f}' for seconds in best)} |", flush=True)
        print(f"\n| the device waits | {' | '.join(f'{ms} ms' for ms in NETWORKS)} |\n|{'---|' * 4}")
        for title, beside in (("scores before the next batch", False), ("scores beside it", True)):
            shares = []
            for ms in NETWORKS:
                fields = {"sampler": {"name": "identity", "pause": ms / 1000 / BATCH}, "metrics": THREE}
                fields["compute"] = {"unit_size": images, "batch_size": BATCH, "cpus_per_actor": 1}
                shares.append(waited(run_of(shards, Path(name, f"{beside}{ms}"), fields), beside))
            print(f"| {title} | {' | '.join(f'{share:.0%}' for share in shares)} |", flush=True)


def photographs(folder: Path, count: int) -> Path:
    """A tar of crops of three photographs, as PNG."""
    rng, sources = np.random.default_rng(0), (data.astronaut(), data.coffee(), data.chelsea())
    with tarfile.open(folder / "made.tar", "w") as tar:
        for i in range(count):
            source = sources[i % 3]
            top, left = (rng.integers(0, side - SIZE + 1) for side in source.shape[:2])
            buffer = io.BytesIO()
            Image.fromarray(source[top : top + SIZE, left : left + SIZE]).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{i:06d}.png")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return folder / "made.tar"


def run_of(shards: str, output: Path, fields: dict[str, Any]) -> Run:
    """A new run."""
    return open_or_plan(
        Job.model_validate(
            {
                "data": {"shards": shards, "size": SIZE},
                "degradation": {"operator": {"name": "bicubic", "factor": 4}, "sigma": 0.05},
                "sampler": {"name": "identity", "pause": 0},
                "images": "none",
                "compute": {"unit_size": UNIT, "batch_size": BATCH, "cpus_per_actor": 1},
                "output": str(output),
                **fields,
            }
        )
    )


def spent(run: Run) -> list[float]:
    """CPU seconds of an image by stage, and of the whole job; the sampler's are in none of them."""
    worker = Worker(run.job, run.folder, "cpu")
    units, stage = list(run.outstanding()), worker.stage
    assert isinstance(stage, Stage)
    totals = dict.fromkeys((*STAGES, "sampler", "whole"), 0.0)

    def timed(part: str, work: Callable[..., T], *arguments: Any) -> T:
        mark = time.process_time()
        result = work(*arguments)
        totals[part] += time.process_time() - mark
        return result

    worker.restore(next(worker.batches(units[0], ())))  # what is computed once per job
    for unit in units:
        for batch in timed("read, decode", lambda unit: list(worker.batches(unit, ())), unit):
            y = timed("degrade", measured, stage, batch)
            timed("sampler", stage.problems.of_images((3, SIZE, SIZE)).operator.pinv, y)
            results = timed("score", worker.restore, batch)
            timed("encode", worker.encoded, unit, batch, results, {})
        committed = timed("whole", worker.process, Task(unit))
        totals["write"] += committed.seconds["write"]
    totals["score"] -= totals["degrade"] + totals["sampler"]
    totals["whole"] -= totals["sampler"]
    count = sum(unit.samples for unit in units)
    return [max(totals[part], 1e-6) / count for part in (*STAGES, "whole")]


def waited(run: Run, beside: bool) -> float:
    """The share of a unit's time that is not in the sampler."""
    worker = Worker(run.job, run.folder, "cpu")
    stage, (unit, *_) = worker.stage, list(run.outstanding())
    worker.restore(next(worker.batches(unit, ())))  # what is computed once per job
    if not beside:
        worker.stage.begin = lambda samples: partial(list, stage.run(samples))  # type: ignore[method-assign]
    spent = worker.process(Task(unit)).seconds
    return 1 - spent["sample"] / spent["total"]


def measured(stage: Stage, batch: list[Decoded]) -> torch.Tensor:
    """The measurements of a batch."""
    arrays = np.stack([sample.array for sample in batch])
    problem = stage.problems.of_samples(arrays.shape[1:])
    return degrade(stage.job, problem, [sample.key for sample in batch], torch.from_numpy(arrays), [])[0]


if __name__ == "__main__":
    typer.run(main)
