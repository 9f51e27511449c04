"""The report of many rows: seconds, memory, and the size of its files.

    python benchmarks/report.py --rows 200 --images all
    python benchmarks/report.py --rows 1000000

Synthetic rows in units of 256, a thousand labels, shards of 10,000; one row in 67 failed. Pictures are
photographs of scikit-image at 256², degraded by the quickstart's operator; restorations are H⁺y with noise
that grows from one to the next. Rows with pictures hold the measures of these, the others made-up ones.
The report is made in a process that did not make the rows; memory is read from
the operating system.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
import yaml

from kintsugi import operators
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.data.photographs import scikit_image_shard
from kintsugi.pipeline.data.pictures import encode
from kintsugi.pipeline.data.units import PlanSummary, Unit
from kintsugi.pipeline.execution.commit import ROWS, commit
from kintsugi.pipeline.execution.degrade import levels
from kintsugi.pipeline.execution.rows import GALLERY
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.worker import provenance
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.scoring import Scorer, residual
from kintsugi.priors import Examined

SHARD, LABELS, SIZE = 10_000, 1000, 256
UNIT = 256  # rows
JOB = """
data: {shards: "builtin:scikit-image", size: 256}
degradation: {operator: {name: bicubic, factor: 4}, sigma: 0.01}
sampler: {name: conjugate, steps: 5, w: 15}
metrics: [psnr, ssim, ms_ssim, spectrum_ratio]
"""


class Synthetic(Run):
    """A run without a plan."""

    def units(self) -> Iterator[Unit]:
        for number in range(self.summary.units):
            yield Unit(f"00000-{number:07d}", "", 0, UNIT * number, UNIT * number, UNIT, 0, 0)


def synthetic(folder: Path, rows: int, images: str) -> Synthetic:
    """A run of this many rows, of which nothing is committed."""
    job = Job.model_validate(yaml.safe_load(JOB) | {"images": images, "output": str(folder)})
    shards = [f"/data/set-{n:05d}.tar" for n in range(-(-rows // SHARD))]
    summary = PlanSummary(shards, -(-rows // UNIT), rows, {}, [])
    return Synthetic(folder, job, Examined("0" * 64, "synthetic"), summary)


def examples(folder: Path, job: Job) -> list[dict[str, Any]]:
    """Truth, measurement and restoration of each photograph, and the measures of the restoration."""
    import webdataset

    operator = operators.build(job.degradation.operator, job.image_shape)
    scorer = Scorer(job.metrics)
    found = []
    shard = str(scikit_image_shard(folder / "shards", SIZE))
    for number, sample in enumerate(webdataset.WebDataset(shard, shardshuffle=False).decode("rgb8")):
        x = torch.tensor(sample["png"]).permute(2, 0, 1)[None].float() / 127.5 - 1
        y = operator.forward(x)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        restored = operator.pinv(y) + 0.01 * number * noise
        pictures = {"truth": x, "measurement": y, "restored": restored}
        measures = {name: value for name, (value,) in scorer(restored, x).items()}
        measures["residual"] = residual(operator.forward(restored), y)[0]
        found.append(measures | {name: encode(levels(picture, 8)[0]) for name, picture in pictures.items()})
    return found


def make(folder: Path, rows: int, images: str) -> None:
    run = synthetic(folder, rows, images)
    restored = examples(folder, run.job)
    random = np.random.default_rng(0)
    for unit, first in enumerate(range(0, rows, UNIT)):
        numbers = range(first, min(first + UNIT, rows))
        values = {
            "psnr": random.normal(26, 3, len(numbers)),
            "ssim": random.beta(8, 2, len(numbers)),
            "ms_ssim": random.beta(12, 2, len(numbers)),
            "spectrum_ratio": random.lognormal(-0.3, 0.4, len(numbers)),
            "residual": random.gamma(4, 0.001, len(numbers)),
        }
        found = []
        for number, *each in zip(numbers, *(of.tolist() for of in values.values()), strict=True):
            error = "UnreadableImage: the file ends before the picture does" if number % 67 == 20 else None
            shard = run.summary.shards[number // SHARD]
            fields: dict[str, Any] = dict.fromkeys(ROWS.names)
            fields |= {"key": f"sample_{number:08d}", "shard": shard, "label": number % LABELS}
            if error is not None:
                fields |= {"status": "failed", "error": error}
            else:
                fields |= {"status": "ok", "forwards": 5, "vjps": 5} | dict(zip(values, each, strict=True))
            if error is None and (number < GALLERY or images == "all"):
                fields |= restored[number % len(restored)]
            found.append(fields)
        commit(
            folder,
            f"00000-{unit:07d}",
            found,
            time.perf_counter() - 101,
            {"read": 0.4, "degrade": 0.6, "sample": 95.0, "score": 4.1, "encode": 0.3},
            config_hash=run.config_hash,
            prior_sha256="0" * 64,
            attempt=1,
            sample_seconds=[0.35 + number % 7 / 100 for number in numbers],
            made_by=provenance(torch.device("cpu")),
        )


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def main(
    rows: Annotated[int, typer.Option()] = 200,
    images: Annotated[
        str, typer.Option(help="none, restored or all: of the rows beyond the first 16.")
    ] = "none",
    out: Annotated[Path | None, typer.Option(help="Keep the run here.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = out or Path(name)
        folder.mkdir(exist_ok=True)
        process = multiprocessing.get_context("spawn").Process(target=make, args=(folder, rows, images))
        process.start()
        process.join()
        assert process.exitcode == 0
        before, started, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
        html = write_report(synthetic(folder, rows, images))
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        print("| rows | images | s | s of CPU | memory before, MiB | at most, MiB |")
        spent = f"{seconds:.1f} | {busy:.1f}"
        print("|---|---|---|---|---|---|")
        print(f"| {rows:,} | {images} | {spent} | {before:.0f} | {memory('VmHWM'):.0f} |\n")
        print("| file | MiB |\n|---|---|")
        for file in sorted(Path(str(html)).parent.iterdir()):
            print(f"| {file.name} | {file.stat().st_size / 2**20:.2f} |")


if __name__ == "__main__":
    typer.run(main)
