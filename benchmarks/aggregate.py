"""Aggregation of many rows: time and memory.

    python benchmarks/aggregate.py

A run of synthetic rows without pictures, units of 256, 10,000 labels and shards of 900, every measure of
images; in one process that did not make them. What is in the table: reading and checking all units while
writing the flat table, and the statistics of it. Memory is read from the operating system.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from synthetic import UNIT, memory, row, synthetic

from kintsugi.pipeline.analysis.aggregate import describe_rows
from kintsugi.pipeline.analysis.rows import write_rows
from kintsugi.pipeline.execution.commit import commit
from kintsugi.pipeline.metrics import IMAGE

SHARD, LABELS = 900, 10_000


def make(folder: Path, rows: int) -> None:
    run = synthetic(folder, rows, SHARD)
    random = np.random.default_rng(0)
    measures = [*IMAGE, "residual"]
    for unit, first in enumerate(range(0, rows, UNIT)):
        numbers = range(first, min(first + UNIT, rows))
        values = random.gamma(4, 0.1, (len(numbers), len(measures)))
        found = []
        for number, each in zip(numbers, values.tolist(), strict=True):
            error = "UnreadableImage: broken" if number % 1009 == 0 else None
            shard = run.summary.shards[number // SHARD]
            found.append(row(number, shard, number % LABELS, error, dict(zip(measures, each, strict=True))))
        record = {
            "config_hash": run.config_hash,
            "prior_sha256": None,
            "attempt": 1,
            "made_by": {"torch": "none"},
        }
        seconds = [0.5 + number % 7 / 100 for number in numbers]
        commit(folder, f"{unit:07d}", found, 0.0, {}, sample_seconds=seconds, **record)


def main(rows: Annotated[int, typer.Option()] = 1_000_000) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = multiprocessing.get_context("spawn").Process(target=make, args=(folder, rows))
        process.start()
        process.join()
        this = synthetic(folder, rows, SHARD)
        table = folder / "rows.parquet"
        print("| what | s | s of processors | memory before, MiB | at most, MiB |\n|---|---|---|---|---|")
        made: list[Any] = []
        for what, act in (
            (
                f"{rows:,} rows of {this.summary.units:,} units into one table",
                lambda: write_rows(this, table),
            ),
            ("statistics", lambda: describe_rows(table)),
        ):
            before, started, spent = memory("VmRSS"), time.perf_counter(), time.process_time()
            made.append(act())
            wall, spent = time.perf_counter() - started, time.process_time() - spent
            print(f"| {what} | {wall:.1f} | {spent:.1f} | {before:.0f} | {memory('VmHWM'):.0f} |")
        tally, summary = made
        assert tally.rows == rows, "every row counts"
        print(f"\n{len(summary.measures)} measures, {sum(map(len, summary.breakdowns.values())):,} groups")


if __name__ == "__main__":
    typer.run(main)
