"""The page of a suite of many runs: seconds, memory, the size of its files, and how long a browser loads it.

    python benchmarks/suite_page.py
    python benchmarks/suite_page.py --tasks 1 --methods 10 --rows 10000

Made-up rows of ten methods in ten tasks, one in 67 failed, in units of 256; each run keeps the pictures of
its first 16 images: photographs of scikit-image at 256², degraded and restored by H⁺y with noise. No run has
a report, so that rows are read from the units. The page is made in a process that did not make the runs;
memory is read from the operating system, and seconds are of the processor: of one process, without waiting.
"""

import io
import multiprocessing
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from kit.browser import Browser
from kit.runs import made_up
from report import SIZE, examples, memory

from kintsugi.pipeline.analysis.suite import Entry, Wanted, summarize
from kintsugi.pipeline.analysis.suite_page import write_suite
from kintsugi.pipeline.execution.rows import GALLERY
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job

PICTURES = ("truth", "measurement", "restored")


def job_of(folder: Path, task: int, method: int) -> Job:
    """Of one run of the suite."""
    return Job.model_validate(
        {
            "data": {"shards": str(folder / "set.tar"), "size": SIZE},
            "degradation": {"operator": {"name": "bicubic", "factor": 4}, "sigma": 0.01 * task},
            "sampler": {"name": "conjugate", "steps": 3 + method, "w": 15},
            "metrics": ["psnr", "ssim", "ms_ssim", "spectrum_ratio"],
            "output": str(folder / f"run-{task}-{method}"),
        }
    )


def make(folder: Path, tasks: int, methods: int, rows: int) -> None:
    """All runs: better from method to method, at more cost, and worse from task to task."""
    with tarfile.open(folder / "set.tar", "w") as tar:
        for number in range(rows):  # never decoded: the plan only reads their names
            member = tarfile.TarInfo(f"sample_{number:08d}.png")
            member.size = 8
            tar.addfile(member, io.BytesIO(b"\x89PNG\r\n\x1a\n"))
    shown = examples(folder, job_of(folder, 1, 0))
    pictures: dict[str, list[Any]] = {
        name: [shown[i % len(shown)][name] if i < GALLERY else None for i in range(rows)] for name in PICTURES
    }
    random = np.random.default_rng(0)
    failed = range(20, rows, 67)
    for task in range(tasks):
        easy = random.normal(28 - task / 2, 3, rows)
        for method in range(methods):
            psnr = easy + random.normal(method / 5, 1, rows)
            measures = {
                "psnr": psnr,
                "ssim": psnr / 40,
                "ms_ssim": psnr / 38,
                "spectrum_ratio": random.lognormal(-0.8 + method / 12, 0.3, rows),
                "residual": random.gamma(4, 0.001, rows),
                **{f"psnr_{name}": easy - less for name, less in (("pinv", 2), ("lmmse", 1))},
            }
            columns = {name: of.tolist() for name, of in measures.items()}
            columns |= {"forwards": [3 + method] * rows, "vjps": [method % 2 * (3 + method)] * rows}
            columns |= {"seconds": [0.1 * (3 + method) + i % 7 / 100 for i in range(rows)]}
            made_up(job_of(folder, task, method), columns | pictures, failed)


def main(
    tasks: Annotated[int, typer.Option()] = 10,
    methods: Annotated[int, typer.Option()] = 10,
    rows: Annotated[int, typer.Option(help="Of each run.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Keep runs and page here; runs are made once.")] = None,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = out or Path(name)
        folder.mkdir(exist_ok=True)
        if not (folder / "set.tar").exists():
            spawned = multiprocessing.get_context("spawn")
            process = spawned.Process(target=make, args=(folder, tasks, methods, rows))
            process.start()
            process.join()
            assert process.exitcode == 0
        before, started = memory("VmRSS"), time.process_time()
        entries = [
            Entry(f"task {task}", f"method {method}", Run.open(folder / f"run-{task}-{method}"))
            for task in range(tasks)
            for method in range(methods)
        ]
        suite = summarize(entries, Wanted("A suite of made-up runs"))
        counted = time.process_time()
        page = write_suite(suite, entries, folder / "page")
        ended = time.process_time()
        print("| runs | rows of each | numbers, s | page, s | memory before, MiB | at most, MiB |")
        print("|---|---|---|---|---|---|")
        seconds = f"{counted - started:.1f} | {ended - counted:.1f}"
        print(f"| {len(entries)} | {rows:,} | {seconds} | {before:.0f} | {memory('VmHWM'):.0f} |\n")
        print("| file | MiB |\n|---|---|")
        for file in sorted(Path(str(page)).parent.iterdir()):
            print(f"| {file.name} | {file.stat().st_size / 2**20:.2f} |")
        browser = Browser(folder / "chromium")
        browser.open(Path(str(page)))
        loaded = browser.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        print(f"\nloaded by Chromium in {loaded / 1000:.2f} s")
        browser.close()


if __name__ == "__main__":
    typer.run(main)
