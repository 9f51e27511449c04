"""One report of four samplers on the same images: `kintsugi compare` timed, its memory and its size.

    python benchmarks/compare_report.py 'imagenet256/*.tar'

The runs are ordinary ones with the embedded prior, at 64² so that a CPU makes them in minutes; those that
are there are not made again.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

SAMPLERS = {
    "conjugate": "{name: conjugate, steps: 5, w: 15}",
    "pigdm_discrete": "{name: pigdm_discrete, steps: 5, start: 0.4, init: lmmse}",
    "ddnm": "{name: ddnm, steps: 5}",
    "ddrm": "{name: ddrm, steps: 5, start: 0.4, eta: 0, init: lmmse}",
}


def main(
    shards: Annotated[str, typer.Argument(help="Images, as of data.shards.")],
    out: Annotated[Path, typer.Option(help="Keep the runs and compare/ here.")] = Path("comparison"),
    limit: Annotated[int, typer.Option()] = 200,
    size: Annotated[int, typer.Option()] = 64,
) -> None:
    kintsugi = [sys.executable, "-m", "kintsugi"]
    for name, sampler in SAMPLERS.items():
        fields = {
            "data": f"{{shards: '{shards}', size: {size}, fit: resize_crop, limit: {limit}}}",
            "degradation": "{operator: {name: bicubic, factor: 4}, sigma: 0.02}",
            "sampler": sampler,
            "metrics": "[psnr, ssim, spectrum_ratio, swd]",
            "compute": "{actors: 1, gpus_per_actor: 0, batch_size: 10, unit_size: 20}",
            "output": str(out / name),
        }
        sets = [it for field, value in fields.items() for it in ("--set", f"{field}={value}")]
        subprocess.run([*kintsugi, "run", "quickstart", *sets, "--address", "none"], check=True)
    started = time.perf_counter()
    command = [*kintsugi, "compare", *(str(out / name) for name in SAMPLERS), "--out", str(out / "compare")]
    process = subprocess.Popen(command)
    _, status, spent = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("kintsugi compare failed")
    page = out / "compare" / "compare.html"
    print("| samplers × images | s | s of processors | memory at most, MiB | compare.html, MiB |")
    print("|---|---|---|---|---|")
    print(
        f"| {len(SAMPLERS)} × {limit} | {time.perf_counter() - started:.1f} "
        f"| {spent.ru_utime + spent.ru_stime:.1f} | {spent.ru_maxrss / 1024:.0f} "
        f"| {page.stat().st_size / 2**20:.2f} |"
    )


if __name__ == "__main__":
    typer.run(main)
