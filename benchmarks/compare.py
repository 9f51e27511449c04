"""`kintsugi compare` of two runs of many images: seconds, memory.

    python benchmarks/compare.py
    python benchmarks/compare.py --rows 1000000

Made-up rows with psnr, ssim, ms_ssim, residual and seconds, and what H⁺y and the linear MMSE estimate have in
the first three; one in 67 failed, others in each run, and the second run has them in another order. Memory
is read from the operating system, in a process that did not make the rows, one for each number of rows.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from kintsugi.pipeline.analysis.compare import compare
from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.metrics.registry import BASELINES, baseline_column

METRICS = {"psnr": (26, 3), "ssim": (0.8, 0.1), "ms_ssim": (0.9, 0.05)}


def make(file: Path, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    order = np.arange(rows) if seed == 0 else random.permutation(rows)
    failed = order % 67 == 20 + seed
    columns = {name: random.normal(*of, rows) for name, of in METRICS.items()}
    for baseline in BASELINES:
        columns |= {
            baseline_column(name, baseline): np.sort(random.normal(*of, rows))[order]
            for name, of in METRICS.items()
        }
    columns |= {"residual": random.gamma(4, 0.001, rows), "seconds": random.normal(0.3, 0.01, rows)}
    table = {
        "key": [f"sample_{number:08d}" for number in order.tolist()],
        "status": np.where(failed, "failed", "ok").tolist(),
        "error": np.where(failed, "UnreadableImage: it ends", None).tolist(),
        "forwards": pa.array(np.full(rows, 5, np.int32)),
        "vjps": pa.array(np.full(rows, 5, np.int32)),
        **{name: pa.array(of, mask=failed) for name, of in columns.items()},
    }
    pq.write_table(pa.table(table), file, row_group_size=1 << 16)


def memory(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(files: list[Path], rows: int) -> None:
    inputs = [Input(file.name, file, None, {"metrics": {}}) for file in files]
    before, mark, busy = memory("VmRSS"), time.perf_counter(), time.process_time()
    found = compare(inputs)
    wall, busy, most = time.perf_counter() - mark, time.process_time() - busy, memory("VmHWM")
    assert found.images < rows
    print(f"| {rows:,} | {wall:.1f} | {busy:.1f} | {before:.0f} | {most - before:.0f} |", flush=True)


def main(rows: Annotated[list[int] | None, typer.Option(help="Of each; repeatable.")] = None) -> None:
    print("| rows of each | s | s of CPU | memory before, MiB | more, MiB |\n|---|---|---|---|---|")
    for count in rows or [10_000, 100_000, 1_000_000]:
        with tempfile.TemporaryDirectory() as name:
            files = [Path(name) / f"{seed}.parquet" for seed in range(2)]
            context = multiprocessing.get_context("spawn")
            making = [(make, (file, count, seed)) for seed, file in enumerate(files)]
            for work, given in [*making, (measure, (files, count))]:
                process = context.Process(target=work, args=given)
                process.start()
                process.join()
                assert process.exitcode == 0


if __name__ == "__main__":
    typer.run(main)
