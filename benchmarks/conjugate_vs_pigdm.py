"""C-ΠGDM against ΠGDM: same prior, warm start and noise, each with its best w, on ordinary runs.

    python benchmarks/conjugate_vs_pigdm.py --tune 'classic/*.tar' --evaluate 'imagenet256/*.tar' --out DIR

Every trial is a run of its own in OUT; the same command continues. w is chosen by mean PSNR on the
first 16 images of the tuning shards. Prints a Markdown table with paired differences.
"""

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.parquet as pq
import typer
from rich.console import Console
from scipy.special import stdtrit

from kintsugi.jobs.display import Display
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.execution.executors import Live, on_ray
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.job import Job

GRIDS = {"conjugate": (5, 10, 15, 20, 30), "pigdm": (1, 2, 4, 6, 10)}
TUNING_IMAGES = 16


def trial(
    shards: str, output: Path, operator: dict[str, Any], sampler: dict[str, Any], limit: int | None
) -> dict[str, np.ndarray]:
    """The rows of a run as columns, sorted by key; run it, or continue it, first."""
    job = Job.model_validate(
        {
            "data": {"shards": shards, "size": 256, "fit": "resize_crop", "limit": limit},
            "degradation": {"operator": operator},
            "sampler": sampler,
            "metrics": ["psnr", "ssim"],
            "compute": {"batch_size": 1, "unit_size": 4},
            "images": "none",
            "output": str(output),
        }
    )
    run = open_or_plan(job)
    live = Live()
    before = run.progress()
    display = Display(Console(stderr=True), run.summary.samples, before, live)
    if before.units < run.summary.units:
        with display.running():
            for commit in on_ray(run.job, run.folder, run.outstanding(), live, None):
                display.add(commit)
    write_report(run)
    rows = pq.read_table(run.folder / "report" / "rows.parquet").sort_by("key")
    return {name: rows[name].to_numpy() for name in ("key", "psnr", "ssim", "seconds")}


def interval(values: np.ndarray, digits: int = 3) -> str:
    """Mean and the half-width of its 95 % confidence interval."""
    half = float(stdtrit(len(values) - 1, 0.975)) * values.std(ddof=1) / math.sqrt(len(values))
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


def main(
    tune: Annotated[str, typer.Option(help="Shards to choose w on.")],
    evaluate: Annotated[str, typer.Option(help="Shards to compare on.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs.")],
    operator: str = "{name: bicubic, factor: 4}",
    steps: int = 5,
    limit: int | None = None,
) -> None:
    import yaml

    task = yaml.safe_load(operator)
    results = {}
    print(f"{task}, {steps} steps\n\n| sampler | w | PSNR on {TUNING_IMAGES} tuning images |\n|---|---|---|")
    for name, grid in GRIDS.items():
        scores = {}
        for w in grid:
            rows = trial(
                tune, out / f"tune-{name}-w{w}", task, {"name": name, "steps": steps, "w": w}, TUNING_IMAGES
            )
            scores[w] = rows["psnr"].mean()
            print(f"| {name} | {w} | {scores[w]:.3f} |", flush=True)
        best = max(scores, key=lambda w: scores[w])
        sampler = {"name": name, "steps": steps, "w": best}
        results[name, best] = trial(evaluate, out / f"evaluate-{name}-w{best}", task, sampler, limit)
    print("\n| sampler | w | n | PSNR, dB | SSIM | s per image |\n|---|---|---|---|---|---|")
    for (name, w), rows in results.items():
        cells = " | ".join(interval(rows[measure]) for measure in ("psnr", "ssim", "seconds"))
        print(f"| {name} | {w} | {len(rows['key'])} | {cells} |")
    first, second = results.values()
    assert (first["key"] == second["key"]).all()
    psnr, ssim = (first[measure] - second[measure] for measure in ("psnr", "ssim"))
    print(
        f"\nPaired differences, {' minus '.join(name for name, _ in results)}: "
        f"PSNR {interval(psnr)} dB, SSIM {interval(ssim)}; better PSNR on {(psnr > 0).mean():.0%} of images."
    )


if __name__ == "__main__":
    typer.run(main)
