"""Runs of made-up rows, for the benchmarks of what comes after restoring."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kintsugi.pipeline.data.units import PlanSummary
from kintsugi.pipeline.execution.commit import ROWS, read_commits
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.priors import Examined

UNIT = 256  # rows
JOB = """
data: {shards: "builtin:scikit-image", size: 256}
degradation: {operator: {name: bicubic, factor: 4}, sigma: 0.01}
sampler: {name: conjugate, steps: 5, w: 15}
metrics: [psnr, ssim, ms_ssim, spectrum_ratio]
"""


class Synthetic(Run):
    """A run without a plan."""

    def commits(self) -> Iterator[Any]:
        names = map("{:07d}".format, range(self.summary.units))
        return read_commits(self.folder, names, self.config_hash)


def synthetic(folder: Path, rows: int, shard_size: int, images: str = "none") -> Synthetic:
    """A run of this many rows in shards of `shard_size`, of which nothing is committed."""
    job = Job.model_validate(yaml.safe_load(JOB) | {"images": images, "output": str(folder)})
    shards = [f"/data/set-{n:05d}.tar" for n in range(-(-rows // shard_size))]
    summary = PlanSummary(shards, -(-rows // UNIT), rows, {}, [])
    return Synthetic(folder, job, Examined("0" * 64, "synthetic"), summary)


def row(number: int, shard: str, label: int, error: str | None, measures: dict[str, float]) -> dict[str, Any]:
    """Of a sample without pictures; failed if there is an error."""
    found: dict[str, Any] = dict.fromkeys(ROWS.names)
    found |= {"key": f"sample_{number:08d}", "shard": shard, "label": label, "status": "ok"}
    if error is not None:
        return found | {"status": "failed", "error": error}
    return found | {"forwards": 5, "vjps": 5} | measures


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
