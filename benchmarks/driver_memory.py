"""Memory of the driver while it plans and follows 200 and 20,000 samples; and import times.

    python benchmarks/driver_memory.py

Each measurement is a process of its own; resident memory is read from the operating system.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PER_SHARD = 1000
MEASURE = """
import resource, sys
from pathlib import Path
from pipeline.job import Job
from pipeline.run import open_or_plan
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
import scipy.special, webdataset, pyarrow.parquet
before = peak()
run = open_or_plan(Job.model_validate({{"data": {{"shards": "{shards}"}},
    "degradation": {{"operator": {{"name": "denoise"}}}}, "output": "{output}"}}))
outstanding = sum(1 for _ in run.outstanding())
print(f"| {samples} | {{outstanding}} | {{before:.1f}} | {{peak():.1f}} |")
"""
IMPORT = """
import time, torch
started = time.perf_counter()
import operators, samplers
print(time.perf_counter() - started)
"""


def make_shards(folder: Path, samples: int) -> None:
    for shard in range(-(-samples // PER_SHARD)):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(shard * PER_SHARD, min(samples, (shard + 1) * PER_SHARD)):
                info = tarfile.TarInfo(f"sample_{i:08d}.png")
                info.size = 100
                tar.addfile(info, io.BytesIO(bytes(100)))


def main() -> None:
    print(
        "| planned samples | units to do | before planning, MiB | peak, MiB |\n|---|---|---|---|", flush=True
    )
    for samples in (200, 20_000):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_shards(folder, samples)
            code = MEASURE.format(shards=folder / "*.tar", output=folder / "run", samples=samples)
            subprocess.run([sys.executable, "-c", code], check=True)
    command = [sys.executable, "-c", IMPORT]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(5)]
    times = sorted(float(output) for output in outputs)
    print(f"\nimport operators, samplers after torch: {times[0]:.3f} to {times[-1]:.3f} s in 5 processes")


if __name__ == "__main__":
    main()
