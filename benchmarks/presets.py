"""The variants of the jobs fast-*, from distortion to texture at 1 to 10 evaluations, on images of one's own.

    python benchmarks/presets.py imagenet256-sample-0001.tar ffhq256-png-0001.tar --out runs/presets

Every variant restores the first images of each shard at 128² in this process; the same command continues. It
prints a Markdown table for each job: PSNR, dB / SWD × 1000, of the shards one after the other.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

import kintsugi
from kintsugi.jobs.files import ready_jobs, variants_of


def measured(run: kintsugi.Run) -> str:
    """PSNR / SWD × 1000 of a run."""
    found: dict[str, Any] = run.results()
    return f"{found['metrics']['psnr']['mean']:.2f} / {1000 * found['sets']['swd']['value']:.0f}"


def main(
    shards: Annotated[list[Path], typer.Argument(help="Tars of images.")],
    out: Annotated[Path, typer.Option(help="A folder for the runs.")],
    images: Annotated[int, typer.Option(help="How many of each tar.")] = 16,
    only: Annotated[str, typer.Option(help="What names of jobs begin with.")] = "fast-",
) -> None:
    """Print the tables."""
    for name, path in ready_jobs().items():
        if not name.startswith(only):
            continue
        table = [f"\n{name}\n\n| | distortion | balanced | texture |\n|---|---|---|---|"]
        found: dict[str, dict[str, str]] = {}
        for variant in variants_of(path):
            aim, steps = variant.rsplit("-", 1)
            said = []
            for shard in shards:
                fields = {
                    "data.shards": str(shard.absolute()),
                    "data.size": 128,
                    "data.limit": images,
                    "metrics": ["psnr", "swd"],
                    "compute": {"precision": "bf16", "batch_size": 8},
                    "output": str(out / f"{name}-{variant}-{shard.stem}"),
                }
                said.append(measured(kintsugi.run(f"{name}:{variant}", sets=fields)))
            found.setdefault(steps, {})[aim] = " \\| ".join(said)
        table += [f"| {steps} | {' | '.join(cells.values())} |" for steps, cells in found.items()]
        print("\n".join(table), flush=True)


if __name__ == "__main__":
    typer.run(main)
