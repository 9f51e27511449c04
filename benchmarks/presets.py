"""Choose the presets of the jobs fast-*, from distortion to texture, among the settings of presets.yaml.

    kintsugi suite benchmarks/presets.yaml && python benchmarks/presets.py runs/presets

Of the settings with one number of evaluations in one task, by the means over the shards:

* distortion has the best PSNR;
* texture has the least SWD within 2 dB of that;
* balanced has the least SWD within half of what texture loses, and within 0.75 dB;
* both with at most 1.15 times the truth's energy of fine details.

It prints the `variants` of each task's job, with PSNR, dB / SWD × 1000 behind each.
"""

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, NamedTuple

import typer
import yaml

MEASURES = ("psnr", "swd", "spectrum_ratio")


class Setting(NamedTuple):
    """What a setting has in a task: means over the shards; swd × 1000."""

    sampler: str
    psnr: float
    swd: float
    energy: float


def presets(settings: list[Setting]) -> dict[str, Setting]:
    """The three of one number of evaluations."""
    distortion = max(settings, key=lambda one: one.psnr)
    natural = [one for one in settings if one.energy <= 1.15] or [distortion]

    def finest(loss: float) -> Setting:
        near = [one for one in natural if one.psnr >= distortion.psnr - loss]
        return min(near or [distortion], key=lambda one: one.swd)

    texture = finest(2)
    balanced = finest(min(0.75, (distortion.psnr - texture.psnr) / 2))
    return {"distortion": distortion, "balanced": balanced, "texture": texture}


def read(folder: Path) -> dict[str, dict[int, list[Setting]]]:
    """The settings of a suite's page, by task and number of evaluations."""
    suite: dict[str, Any] = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    samplers = {(run["task"], run["method"]): run["job"]["sampler"] for run in suite["runs"]}
    rows: dict[tuple[str, str], list[dict[str, str]]] = {}
    specs: dict[tuple[str, str], dict[str, Any]] = {}
    with (folder / "suite.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if spec := samplers.get((row["task"], row["method"])):  # no baseline
                _, task = row["task"].split(maxsplit=1)  # the first axis is that of the shards
                specs[task, row["method"]] = spec
                rows.setdefault((task, row["method"]), []).append(row)
    found: dict[str, dict[int, list[Setting]]] = {}
    for (task, method), of_shards in rows.items():
        spec = specs[task, method]
        psnr, swd, energy = (mean(float(row[name]) for row in of_shards) for name in MEASURES)
        written = yaml.safe_dump(spec, default_flow_style=True, sort_keys=False, width=1000).strip()
        setting = Setting(written, psnr, 1000 * swd, energy)
        found.setdefault(task, {}).setdefault(spec["steps"], []).append(setting)
    return found


def main(folder: Annotated[Path, typer.Argument(help="The suite's.")]) -> None:
    """Print the variants."""
    for task, budgets in read(folder).items():
        print(f"\n# {task}\nvariants:")
        for steps, settings in sorted(budgets.items()):
            for name, one in presets(settings).items():
                print(f"  {name}-{steps}: {{sampler: {one.sampler}}}  # {one.psnr:.2f} / {one.swd:.0f}")


if __name__ == "__main__":
    typer.run(main)
