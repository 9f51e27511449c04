"""w and λ of the job files: a sweep for each task and dataset, with conjugate and ΠGDM steps.

    python benchmarks/settings.py --data 'imagenet=imagenet256/*.tar' --data 'ffhq=ffhq256/*.tar'

Every sweep is an ordinary `kintsugi sweep` and resumes; --table prints the table of those that are done. The
images are shrunk to 128², the network runs in bfloat16: hours on a CPU. PSNR alone would choose blurred
images: of the settings within 0.3 dB of its best, the one whose spectrum is nearest to the truth's is chosen.
"""

import csv
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from kintsugi.pipeline.analysis.aggregate import committed
from kintsugi.pipeline.execution.run import Run

TASKS = [
    f"{task}{noise}"
    for task in ("sr4", "deblur", "inpaint-box", "inpaint-random", "inpaint-freeform")
    for noise in ("", "-noisy")
]
STEPS = {
    "C-ΠGDM": "{name: conjugate, steps: 5}",
    "ΠGDM": "{name: conjugate, steps: 5, absorb: unconditional, schedule: pigdm}",
}
W = {"C-ΠGDM": "2,5,10,15,20", "ΠGDM": "0.5,1,2,4,6"}
RELEASED = {"C-ΠGDM": "15", "ΠGDM": "6"}  # w with λ 0, in ImageNet super-resolution and deblurring
LAM = "-0.2,0,0.2"


def sweep(job: str, steps: str, shards: str, out: Path) -> None:
    sets = {
        "data.shards": shards,
        "data.size": 128,
        "data.subset.fraction": 0.5,
        "metrics": "[psnr,ssim,spectrum_ratio]",
        "sampler": STEPS[steps],
        "compute.gpus_per_actor": 0,
        "compute.precision": "bf16",
        "compute.batch_size": 8,
        "compute.unit_size": 8,
    }
    options = [it for field, value in sets.items() for it in ("--set", f"{field}={value}")]
    options += [
        "--vary",
        f"sampler.w={W[steps]}",
        "--vary",
        f"sampler.lam={LAM}",
        "--tune",
        "16",
        "--halve",
        "1",
        "--within",
        "0.3",
        "--then",
        "spectrum_ratio",
    ]
    command = [
        sys.executable,
        "-m",
        "kintsugi",
        "sweep",
        job,
        *options,
        "--address",
        "none",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True)


def spectrum_ratios(trial: Path) -> dict[str, float]:
    """By key, of the images that are done."""
    tables = [table for table, _ in committed(Run.open(trial), ["key", "spectrum_ratio"])]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["key"]: row["spectrum_ratio"] for row in rows if row["spectrum_ratio"] is not None}


def line(folder: Path, task: str, dataset: str, steps: str) -> str:
    """A row of the table: the chosen setting beside the released one."""
    with (folder / "sweep.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    [chosen] = [trial for trial in trials if trial["chosen"] == "1"]
    [released] = [
        trial for trial in trials if (trial["sampler.w"], trial["sampler.lam"]) == (RELEASED[steps], "0")
    ]
    best = max(trials, key=lambda trial: float(trial["psnr"]))

    def setting(trial: dict[str, str]) -> str:
        return f"{trial['sampler.w']}, {trial['sampler.lam']}"

    cells = [
        task,
        dataset,
        steps,
        setting(chosen),
        *(f"{float(trial['psnr']):.2f}" for trial in (chosen, released, best)),
        *(
            f"{np.mean(list(spectrum_ratios(folder / 'trials' / it['trial']).values())):.2f}"
            for it in (chosen, released, best)
        ),
        setting(best),
    ]
    return f"| {' | '.join(cells)} |"


def main(
    data: Annotated[list[str], typer.Option(help="DATASET=SHARDS, imagenet or ffhq; repeatable.")],
    only: Annotated[list[str] | None, typer.Option(help="C-ΠGDM or ΠGDM; both if left out.")] = None,
    out: Path = Path("runs/settings"),
    table: Annotated[bool, typer.Option(help="Only print the table.")] = False,
) -> None:
    of = ["chosen", "released", "best"]
    heads = [
        "task",
        "images",
        "steps",
        "w, λ",
        *(f"{it}: PSNR" for it in of),
        *(f"{it}: spectrum" for it in of),
    ]
    print(f"| {' | '.join([*heads, 'best: w, λ'])} |\n{'|---' * 11}|")
    for entry in data:
        dataset, _, shards = entry.partition("=")
        for task, steps in itertools.product(TASKS, only or STEPS):
            job = f"{dataset}-{task}"
            folder = out / f"{job}-{steps.lower().replace('π', 'pi')}"
            if not table:
                sweep(job, steps, shards, folder)
            if (folder / "sweep.csv").exists():
                print(line(folder, task, dataset, steps), flush=True)


if __name__ == "__main__":
    typer.run(main)
