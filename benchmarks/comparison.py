"""Every sampler on the literature's tasks at equal budgets, each with its strength tuned on other images.

    python benchmarks/comparison.py --tune 'classic/*.tar' --evaluate 'imagenet256/*.tar' --out DIR
    python benchmarks/comparison.py ... --out DIR --table

One JSON line per trial in DIR/trials.jsonl: a trial that is there is not run again, so the same command
continues. --table runs nothing, and writes what there is to DIR/comparison.md. --only TEXT limits a run to
the tasks that contain it: several processes can share the work and DIR, and a last run without it ends it.
On a GPU: --device cuda --size 256 --images 100.

Tuning, by mean PSNR on the tuning images: the strength climbs along its grid from the value given
here, at 5 evaluations and from there at 10 and 20; at 5, the start (H⁺y or linear MMSE) and the final
projection are chosen as well, except for the sampler called "as published". Seconds per image are
measured last, one sampler after the other on the first four images of the first task: for these the
machine should have nothing else to do.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from glob import glob
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
import webdataset as wds
from conjugate_vs_pigdm import interval
from PIL import Image

from kintsugi import operators, priors, samplers
from kintsugi.pipeline.data.decode import resize_crop, to_rgb
from kintsugi.pipeline.execution.degrade import add_noise
from kintsugi.pipeline.execution.stage import PRECISIONS
from kintsugi.pipeline.job import Degradation
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.metrics.texture import PATCH, finest_laplacian, patch_distance, patches_of
from kintsugi.priors import speed
from kintsugi.priors.base import Prior
from kintsugi.samplers import KeyedNoise, Restoration, Sampler
from kintsugi.samplers.noise import Noise
from kintsugi.samplers.problem import Init, Problem

Spec = dict[str, Any]

TASKS: dict[str, Spec] = {
    "SR 4×": {"name": "bicubic", "factor": 4},
    "deblurring": {"name": "gaussian_blur", "sigma": 3.0},
    "inpainting, box": {"name": "inpaint", "mask": "box"},
    "inpainting, 30 % known": {"name": "inpaint", "mask": "random", "keep": 0.3},
}
SIGMAS = {"noiseless": 0.0, "σ 0.05": 0.1}
"""Standard deviation of the noise on the [-1, 1] scale; the names give it on [0, 1]."""
BUDGETS = (5, 10, 20)
WARM: Spec = {"start": 0.4, "init": "pinv"}
STARTING: dict[str, Init] = {"H⁺y": "pinv", "linear MMSE": "lmmse"}
SHARES = (0.0, 0.3, 0.6, 0.85, 1.0)


@dataclass(frozen=True)
class Entry:
    """A sampler, its strength's name and grid, and where the climb begins."""

    spec: Spec
    strength: str = ""
    grid: tuple[float, ...] = ()
    first: float = 0.0
    choices: bool = True
    """Whether the start and the projection are tuned."""
    noisy: tuple[str, tuple[float, ...], float] | None = None
    """Another strength, with its grid and where to begin, for noisy measurements."""

    def for_noise(self, sigma_y: float) -> "Entry":
        if self.noisy is None or sigma_y == 0:
            return self
        strength, grid, first = self.noisy
        return replace(self, strength=strength, grid=grid, first=first)


PUBLISHED = "C-ΠGDM as published"
ENTRIES: dict[str, Entry] = {
    PUBLISHED: Entry({"name": "conjugate"}, "w", (1, 2, 4, 7, 10, 15, 20, 30), 10, choices=False),
    "C-ΠGDM": Entry({"name": "conjugate"}, "w", (1, 2, 4, 7, 10, 15, 20, 30), 10),
    "ΠGDM": Entry({"name": "pigdm"}, "w", (0.5, 1, 2, 4, 6, 10), 2),
    "ΠGDM, discrete": Entry({"name": "pigdm_discrete"}, "w", (0.03, 0.1, 0.2, 0.4, 0.7, 1), 0.2),
    "DPS": Entry({"name": "dps"}, "zeta", (1, 2, 4, 8, 16, 32, 64), 8),
    "MCG": Entry({"name": "mcg"}, "zeta", (0, 0.3, 1, 2, 4, 8), 0.3),
    "DDRM": Entry({"name": "ddrm"}, "eta", SHARES, 0.85),
    "DDNM": Entry({"name": "ddnm"}, "eta", SHARES, 0.85),
    "DiffPIR": Entry(
        {"name": "diffpir"}, "zeta", SHARES, 0.3, noisy=("lam", (0.03, 0.1, 0.3, 1, 3, 8, 20), 3)
    ),
    "RED-diff": Entry({"name": "reddiff"}, "lr", (0.003, 0.01, 0.03, 0.1, 0.3), 0.03),
    "DAPS": Entry({"name": "daps", "ode_steps": 1}, "lr", (1e-6, 1e-5, 1e-4, 1e-3, 1e-2), 1e-4),
    "DDIM": Entry({"name": "ddim"}),
}
USUAL: dict[str, Spec] = {
    "DPS, 1000": {"name": "dps", "steps": 1000},
    "DAPS, 100": {"name": "daps", "steps": 100, "ode_steps": 2},
    "DAPS, 1000": {"name": "daps", "steps": 1000},
}
"""From pure noise, as published (DAPS: 50 levels of 2 steps, 200 of 5), on the first four images."""
FEW = 4
PATCHES_PER_IMAGE = 128


def fast_candidates() -> Iterator[tuple[str, Spec]]:
    """Settings at 3 to 5 evaluations, for the presets."""
    for steps, start in ((3, 0.2), (3, 0.3), (5, 0.3)):
        for name, spec in (
            ("C-ΠGDM", {"name": "conjugate", "w": 10}),
            ("DDNM", {"name": "ddnm"}),
            ("DDRM", {"name": "ddrm"}),
        ):
            yield f"{name}, {steps} from {start}", {**spec, "steps": steps, "start": start, "init": "lmmse"}


def fine_energy(restored: torch.Tensor, truth: torch.Tensor) -> float:
    """Energy of the finest Laplacian level relative to the truth's; 1 is ideal, less is blurred."""
    energies = [finest_laplacian(x).square().mean() for x in (restored, truth)]
    return (energies[0] / energies[1]).item()


def sliced_wasserstein(restored: torch.Tensor, truth: torch.Tensor) -> float:
    """Sliced Wasserstein-1 distance between 7×7 patches of the finest Laplacian level of two sets.

    The metric `swd` with more patches an image, as these sets are small, and the unit from all pixels.

    Args:
        restored, truth: (N, C, H, W) on one scale.
    """
    generator = torch.Generator().manual_seed(0)
    count, _, height, width = truth.shape
    places = (count, PATCHES_PER_IMAGE)
    rows = torch.randint(height - PATCH + 1, places, generator=generator)
    columns = torch.randint(width - PATCH + 1, places, generator=generator)
    scale = finest_laplacian(truth).std((0, 2, 3), keepdim=True)
    patches = [
        patches_of(finest_laplacian(x) / scale, rows, columns).flatten(2).flatten(0, 1)
        for x in (restored, truth)
    ]
    return patch_distance(patches[0], patches[1], generator)


@dataclass(frozen=True)
class Images:
    keys: list[str]
    pixels: torch.Tensor
    """(N, 3, size, size) in [-1, 1]."""

    @classmethod
    def load(cls, shards: str, size: int, count: int, device: str) -> "Images":
        """`count` images spread evenly over the shards, resized and cropped."""
        samples = list(wds.WebDataset(sorted(glob(shards)), shardshuffle=False, empty_check=False))
        chosen = [samples[i * len(samples) // count] for i in range(count)]
        arrays = []
        for sample in chosen:
            encoded = next(sample[suffix] for suffix in ("png", "jpg", "jpeg") if suffix in sample)
            arrays.append(np.asarray(resize_crop(to_rgb(Image.open(BytesIO(encoded))), size)))
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
        return cls([sample["__key__"] for sample in chosen], pixels)

    def first(self, count: int) -> "Images":
        return Images(self.keys[:count], self.pixels[:count])


class Missing(Exception):
    """A trial that was not run."""


class Trials:
    """The trials done, on disk as JSON lines."""

    def __init__(self, path: Path, only_look: bool):
        self.path, self.only_look = path, only_look
        self.done: dict[str, Any] = {}
        content = path.read_text() if path.exists() else ""
        for line in content.splitlines():
            try:
                trial = json.loads(line)
            except json.JSONDecodeError:  # cut off by an interruption
                continue
            self.done[trial["id"]] = trial
        if content and not content.endswith("\n") and not only_look:
            with path.open("ab", buffering=0) as file:
                file.write(b"\n")

    def get(self, identity: Spec, run: Callable[[], Spec]) -> Any:
        """The trial with this identity; run it first if it is not there."""
        key = json.dumps(identity, sort_keys=True)
        if key not in self.done:
            if self.only_look:
                raise Missing
            trial = {"id": key, **identity, **run()}
            # One write: several processes may append.
            with self.path.open("ab", buffering=0) as file:
                file.write(f"{json.dumps(trial)}\n".encode())
            self.done[key] = trial
            typer.echo(
                f"{identity['task']}, {identity['noise']}, {identity['set']}: {identity['sampler']} → "
                f"PSNR {np.mean(trial['psnr']):.2f}, {trial['seconds']:.2f} s per image",
                err=True,
            )
        return self.done[key]


@dataclass(frozen=True)
class Row:
    """A line of the tables."""

    name: str
    trial: Any

    @property
    def evaluations(self) -> int:
        return int(self.trial["forwards"])

    def values(self, measure: str) -> np.ndarray:
        return np.atleast_1d(np.asarray(self.trial[measure]))


@dataclass
class Benchmark:
    prior: Prior
    prior_sha256: str
    trials: Trials
    tuning: Images
    evaluation: Images
    precision: str
    batch: int

    def trial(self, task: str, noise: str, sampler: Spec, images: Images, purpose: str) -> Any:
        identity = {
            "task": task,
            "noise": noise,
            "sampler": sampler,
            "set": purpose,
            "keys": images.keys,
            "size": images.pixels.shape[-1],
            "precision": self.precision,
            "prior": self.prior_sha256,
        }
        return self.trials.get(identity, lambda: self.run(task, noise, sampler, images))

    def run(self, task: str, noise: str, spec: Spec, images: Images) -> Spec:
        size = images.pixels.shape[-1]
        operator = operators.build(TASKS[task], (3, size, size), device=images.pixels.device)
        sampler = no_sampler(spec["init"]) if spec["name"] == "start" else samplers.build(spec)
        sigma_y = SIGMAS[noise]
        degradation = Degradation(operator=TASKS[task], sigma=sigma_y, sigma_range="[-1,1]")
        restored, seconds = [], 0.0
        for first in range(0, len(images.keys), self.batch):
            part = slice(first, first + self.batch)
            keyed = KeyedNoise(0, images.keys[part])
            y = add_noise(operator.forward(images.pixels[part]), degradation, keyed)
            started = perf_counter()
            outcome = sampler(self.prior, operator, y, keyed, sigma_y=sigma_y)
            restored.append(outcome.image.cpu())
            seconds += perf_counter() - started
        image, truth = torch.cat(restored), images.pixels.cpu()
        if not image.isfinite().all():
            raise FloatingPointError(f"{task}, {noise}: {spec} gave a result that is not finite")
        image = image.clamp(-1, 1)
        return {
            **Scorer(["psnr", "ssim"])(image, truth),
            "swd": sliced_wasserstein(image, truth),
            "fine": fine_energy(image, truth),
            "seconds": seconds / len(images.keys),
            "forwards": outcome.forwards,
            "vjps": outcome.vjps,
        }

    def tuning_score(self, task: str, noise: str, sampler: Spec) -> float:
        return float(np.mean(self.trial(task, noise, sampler, self.tuning, "tuning")["psnr"]))

    def climb(self, task: str, noise: str, entry: Entry, spec: Spec, first: float) -> Spec:
        """`spec` with the strength at a maximum along its grid, reached by steps to a neighbour."""
        if not entry.strength:
            return spec
        position = entry.grid.index(first)
        scores: dict[int, float] = {}

        def at(i: int) -> float:
            if not 0 <= i < len(entry.grid):
                return -math.inf
            if i not in scores:
                scores[i] = self.tuning_score(task, noise, {**spec, entry.strength: entry.grid[i]})
            return scores[i]

        best = at(position)
        for direction in (1, -1):
            while at(position + direction) > best:
                position += direction
                best = at(position)
        return {**spec, entry.strength: entry.grid[position]}

    def tuned(self, task: str, noise: str, entry: Entry) -> Iterator[Spec]:
        """The tuned settings at each budget."""
        entry = entry.for_noise(SIGMAS[noise])
        spec, first = {**entry.spec, **WARM}, entry.first
        for budget in BUDGETS:
            spec = self.climb(task, noise, entry, {**spec, "steps": budget}, first)
            if budget == BUDGETS[0] and entry.choices:
                variants = [{**spec, "init": init} for init in STARTING.values()]
                if SIGMAS[noise] == 0:
                    variants += [{**variant, "project": True} for variant in variants]
                spec = max(variants, key=lambda variant: self.tuning_score(task, noise, variant))
            first = spec.get(entry.strength, 0.0)
            yield spec

    def cell(self, task: str, noise: str) -> Iterator[Row]:
        """The starts; every sampler at every budget; the candidates for presets."""
        for name, init in STARTING.items():
            spec = {"name": "start", "init": init}
            yield Row(name, self.trial(task, noise, spec, self.evaluation, "evaluation"))
        for name, entry in ENTRIES.items():
            for spec in self.tuned(task, noise, entry):
                yield Row(name, self.trial(task, noise, spec, self.evaluation, "evaluation"))
        for name, spec in fast_candidates():
            full = {**spec, **({"project": True} if SIGMAS[noise] == 0 else {})}
            yield Row(name, self.trial(task, noise, full, self.evaluation, "evaluation"))

    def usual(self, task: str, noise: str) -> Iterator[Row]:
        few = self.evaluation.first(FEW)
        for name, spec in USUAL.items():
            yield Row(name, self.trial(task, noise, spec, few, "usual budget"))

    def timing(self) -> Iterator[Row]:
        """Every sampler's seconds per image, on the settings of the first task."""
        task, noise = next(iter(TASKS)), next(iter(SIGMAS))
        few = self.evaluation.first(FEW)
        for name, entry in ENTRIES.items():
            for spec in self.tuned(task, noise, entry):
                yield Row(name, self.trial(task, noise, spec, few, "timing"))


CELLS = [(task, noise) for noise in SIGMAS for task in TASKS]


def no_sampler(init: Init) -> Sampler:
    """The start alone, as if it were a sampler."""

    def estimate(
        prior: Prior, operator: operators.Operator, y: torch.Tensor, noise: Noise, *, sigma_y: float
    ) -> Restoration:
        problem = Problem(operator, y, noise, sigma_y)
        return Restoration(problem.estimate(init, variance=1.0), forwards=0, vjps=0)

    return cast(Sampler, estimate)


def settings(row: Row) -> str:
    """The sampler's settings; a strength at the end of its grid is marked, as more might be better."""
    sampler = row.trial["sampler"]
    hidden = ("name", "steps", "start") if sampler.get("start") == WARM["start"] else ("name", "steps")
    edges = {}
    if (entry := ENTRIES.get(row.name)) is not None:
        entry = entry.for_noise(SIGMAS[row.trial["noise"]])
        edges = {entry.strength: (entry.grid[0], entry.grid[-1])} if entry.grid else {}
    return ", ".join(
        f"{k} {v}{' (end of the grid)' if v in edges.get(k, ()) and v not in (0, 1) else ''}"
        for k, v in sampler.items()
        if k not in hidden
    )


def upto(rows: Iterator[Row]) -> list[Row]:
    """The rows as far as their trials were run."""
    found: list[Row] = []
    try:
        found += rows
    except Missing:
        return found
    return found


def table(rows: list[Row], seconds: dict[tuple[str, int], float]) -> Iterator[str]:
    """One cell: mean and 95 % interval over the images; differences are paired, to C-ΠGDM as published."""
    reference = {row.evaluations: row for row in rows if row.name == PUBLISHED}
    yield (
        "| sampler | forwards + VJPs | PSNR, dB | paired difference | SSIM | paired difference | SWD | fine "
        "energy | s per image | settings |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in sorted(rows, key=lambda row: (row.evaluations, -row.values("psnr").mean())):
        base = reference.get(row.evaluations)
        differences = [
            "" if base is None or base is row else interval(row.values(m) - base.values(m), digits)
            for m, digits in (("psnr", 2), ("ssim", 3))
        ]
        time = seconds.get((row.name, row.evaluations))
        cells = [
            row.name,
            f"{row.trial['forwards']} + {row.trial['vjps']}",
            interval(row.values("psnr"), 2),
            differences[0],
            interval(row.values("ssim"), 3),
            differences[1],
            f"{1000 * row.trial['swd']:.0f}",
            f"{row.trial['fine']:.2f}",
            "" if time is None else f"{time:.2f}",
            settings(row),
        ]
        yield "| " + " | ".join(cells) + " |"


def winners(rows: list[Row]) -> Iterator[str]:
    """For each budget the best sampler by each measure, and the place of C-ΠGDM as published."""
    for budget in BUDGETS:
        entries = [row for row in rows if row.evaluations == budget and row.name in ENTRIES]
        cells = []
        for axis, sign in (("psnr", 1), ("ssim", 1), ("swd", -1)):
            ranked = sorted(entries, key=lambda row: -sign * row.values(axis).mean())
            place = 1 + [row.name for row in ranked].index(PUBLISHED) if ranked else 0
            cells.append(f"{ranked[0].name} ({place} of {len(ranked)})" if ranked else "")
        yield f"{budget} | " + " | ".join(cells)


def fastest(rows: list[Row]) -> Row:
    """At 5 evaluations or fewer: the smallest sum of the ranks in PSNR and in SWD."""
    few = [row for row in rows if 0 < row.evaluations <= BUDGETS[0]]
    by_psnr = sorted(few, key=lambda row: -row.values("psnr").mean())
    by_swd = sorted(few, key=lambda row: row.trial["swd"])
    return min(few, key=lambda row: by_psnr.index(row) + by_swd.index(row))


def write_tables(benchmark: Benchmark) -> Iterator[str]:
    seconds = {(row.name, row.evaluations): row.trial["seconds"] for row in upto(benchmark.timing())}
    cells = {cell: upto(benchmark.cell(*cell)) for cell in CELLS}
    images = len(benchmark.evaluation.keys)
    size = benchmark.evaluation.pixels.shape[-1]
    yield f"{images} images at {size}², network in {benchmark.precision}. Best sampler by each measure,"
    yield "and in brackets the place of C-ΠGDM as published:\n"
    yield "| task | evaluations | PSNR | SSIM | SWD |\n|---|---|---|---|---|"
    for (task, noise), rows in cells.items():
        yield from (f"| {task}, {noise} | {line} |" for line in winners(rows) if rows)
    yield "\nAt 5 evaluations or fewer, the smallest sum of ranks in PSNR and SWD, on these same images:\n"
    yield "| task | setting | PSNR | SSIM | SWD | forwards + VJPs |\n|---|---|---|---|---|---|"
    for (task, noise), rows in cells.items():
        if rows:
            best = fastest(rows)
            yield (
                f"| {task}, {noise} | {best.name}: {settings(best)} | "
                f"{best.values('psnr').mean():.2f} | {best.values('ssim').mean():.3f} | "
                f"{1000 * best.trial['swd']:.0f} | {best.trial['forwards']} + {best.trial['vjps']} |"
            )
    yield f"\nAt their usual budgets, on the first {FEW} images, beside the same images at 20 evaluations:\n"
    yield "| task | sampler | PSNR | SSIM | C-ΠGDM as published | best at 20 evaluations |"
    yield "|---|---|---|---|---|---|"
    for cell, rows in cells.items():
        at_most = {
            row.name: row.values("psnr")[:FEW].mean() for row in rows if row.evaluations == BUDGETS[-1]
        }
        for row in upto(benchmark.usual(*cell)):
            best_name = max(at_most, key=lambda name: at_most[name])
            yield (
                f"| {', '.join(cell)} | {row.name} | {row.values('psnr').mean():.2f} | "
                f"{row.values('ssim').mean():.3f} | {at_most[PUBLISHED]:.2f} | "
                f"{best_name} {at_most[best_name]:.2f} |"
            )
    for (task, noise), rows in cells.items():
        if rows:
            yield f"\n## {task}, {noise}\n"
            yield from table(rows, seconds)


def main(
    tune: Annotated[str, typer.Option(help="Shards to tune on.")],
    evaluate: Annotated[str, typer.Option(help="Shards to compare on.")],
    out: Annotated[Path, typer.Option(help="Folder for trials.jsonl and comparison.md.")],
    size: int = 128,
    images: int = 16,
    tuning_images: int = 2,
    batch: int = 16,
    precision: str = "bf16",
    device: str = "cpu",
    threads: int = 2,
    only: Annotated[str, typer.Option(help="Only tasks whose names contain this, untimed.")] = "",
    table: Annotated[bool, typer.Option("--table", help="Run nothing; write the tables.")] = False,
) -> None:
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    prior: Any = priors.load({"name": "natural"}, device=device)
    sha256 = prior.sha256
    if (dtype := PRECISIONS[precision]) is not None:
        speed.half_precision(prior, dtype)
    benchmark = Benchmark(
        prior,
        sha256,
        Trials(out / "trials.jsonl", table),
        Images.load(tune, size, tuning_images, device),
        Images.load(evaluate, size, images, device),
        precision,
        batch,
    )
    if not table:
        for rows in (benchmark.cell, benchmark.usual):
            for cell in CELLS:
                if only in ", ".join(cell):
                    list(rows(*cell))
        if not only:
            list(benchmark.timing())
        benchmark.trials.only_look = True  # the tables run nothing
    (out / "comparison.md").write_text("\n".join(write_tables(benchmark)) + "\n")


if __name__ == "__main__":
    typer.run(main)
