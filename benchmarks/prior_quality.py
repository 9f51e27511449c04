"""How good the embedded prior is: denoising, beside classical methods.

    python benchmarks/prior_quality.py --shards 'imagenet256/*.tar' --out quality.jsonl
    python benchmarks/prior_quality.py --shards 'imagenet256/*.tar' --out old.jsonl --weights old.safetensors
    pip install bm3d  # for --classical; its licence allows non-commercial use
    python benchmarks/prior_quality.py --shards 'imagenet256/*.tar' --out bm3d.jsonl --classical --count 16

Appends a line per image and task to a file, does only what is missing there, and prints means with 95 %
intervals as a Markdown table. Images are 256².
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import track
from safetensors.torch import load_file

from kintsugi import priors
from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.shards import expand
from kintsugi.pipeline.data.units import read_members, read_units
from kintsugi.pipeline.execution.stage import PRECISIONS
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.parts import Data
from kintsugi.priors import speed
from kintsugi.priors.base import data_prediction
from kintsugi.samplers import KeyedNoise

SIZE = 256
UNIT = 16
SIGMAS = (0.05, 0.1, 0.2, 0.5)
METRICS = ["psnr", "ssim"]
Work = Callable[[str, torch.Tensor], torch.Tensor]


def images(shards: str, count: int, folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Keys and images (1, 3, 256, 256) in [-1, 1]."""
    data = Data(shards=shards, size=SIZE, fit="resize_crop", limit=count)
    make_plan(data, expand(data.shards), UNIT, folder / "plan.parquet")
    for unit in read_units(folder / "plan.parquet"):
        members = read_members(folder / "plan.parquet", unit)
        for batch in read_unit(unit, members, Images(SIZE, data.fit), UNIT):
            for sample in batch:
                if sample.image is not None:
                    image = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)
                    yield sample.key, image[None].float() / 127.5 - 1


def noise_of(key: str) -> torch.Tensor:
    return KeyedNoise(0, [key]).normal("denoise", (3, SIZE, SIZE))


def by_prior(prior: priors.Prior, sigma: float) -> Work:
    """x̂₀ at the time whose s/a is 2σ (σ on [0, 1])."""
    t = prior.path.time_of(-torch.tensor([2 * sigma], dtype=torch.float64).log())
    p, q = (value.item() for value in data_prediction(prior.path, prior.parametrization, t))
    a, s = prior.path.a(t).item(), prior.path.s(t).item()

    def denoise(key: str, truth: torch.Tensor) -> torch.Tensor:
        x = a * truth + s * noise_of(key)
        return p * x + q * prior(x, t.float())

    return denoise


def by_bm3d(sigma: float) -> Work:
    """BM3D for colour images (Dabov et al. 2007), which is told σ."""
    from bm3d import bm3d_rgb

    def denoise(key: str, truth: torch.Tensor) -> torch.Tensor:
        noisy = (truth + 2 * sigma * noise_of(key))[0].permute(1, 2, 0).double().numpy()
        return torch.from_numpy(bm3d_rgb(noisy, 2 * sigma)).permute(2, 0, 1)[None].float()

    return denoise


def by_wavelets(sigma: float) -> Work:
    """Translation-invariant BayesShrink on YCbCr wavelets (scikit-image), which is told σ."""
    from skimage.restoration import cycle_spin, denoise_wavelet

    def denoise(key: str, truth: torch.Tensor) -> torch.Tensor:
        noisy = ((truth + 2 * sigma * noise_of(key))[0].permute(1, 2, 0).double().numpy() + 1) / 2
        settings = {"sigma": sigma, "channel_axis": -1, "convert2ycbcr": True, "rescale_sigma": True}
        cleaned = cycle_spin(noisy, func=denoise_wavelet, max_shifts=3, func_kw=settings, channel_axis=-1)
        return torch.from_numpy(2 * cleaned - 1).permute(2, 0, 1)[None].float()

    return denoise


def print_table(file: Path) -> None:
    rows = defaultdict(list)
    for line in file.read_text().splitlines():
        row = json.loads(line)
        rows[row["task"]].append([row["psnr"], row["ssim"]])
    print("| | PSNR, dB | SSIM | images |\n|---|---|---|---|")
    for task, values in rows.items():
        mean = np.mean(values, 0)
        half = 1.96 * np.std(values, 0, ddof=1) / np.sqrt(len(values))
        print(f"| {task} | {mean[0]:.2f} ± {half[0]:.2f} | {mean[1]:.3f} ± {half[1]:.3f} | {len(values)} |")


def main(
    shards: Annotated[str, typer.Option(help="Braces and globs work.")],
    out: Annotated[Path, typer.Option(help="Results, one JSON object per line; read again on resumption.")],
    count: Annotated[int, typer.Option(help="Images.")] = 200,
    weights: Annotated[Path | None, typer.Option(help="Other weights of the same network.")] = None,
    classical: Annotated[bool, typer.Option(help="Classical denoisers instead of the prior.")] = False,
    precision: str = "bf16",
    threads: int = 2,
) -> None:
    import tempfile

    torch.set_num_threads(threads)
    prior = priors.load({"name": "natural"})
    if weights is not None:
        prior.network.load_state_dict(load_file(weights))
    if (dtype := PRECISIONS[precision]) is not None:
        speed.half_precision(prior, dtype)
    work: dict[str, Work] = {}
    for sigma in SIGMAS:
        if classical:
            work[f"BM3D, σ = {sigma}"] = by_bm3d(sigma)
            work[f"wavelets, σ = {sigma}"] = by_wavelets(sigma)
        else:
            work[f"denoising, σ = {sigma}"] = by_prior(prior, sigma)
    scorer, done = Scorer(METRICS), set()
    if out.exists():
        done = {(row["task"], row["key"]) for row in map(json.loads, out.read_text().splitlines())}
    with tempfile.TemporaryDirectory() as folder, out.open("a") as file:
        found = images(shards, count, Path(folder))
        for key, truth in track(found, total=count, description="images"):
            for task, denoise in work.items():
                if (task, key) not in done:
                    with torch.no_grad():
                        values = scorer(denoise(key, truth), truth)
                    row = {"task": task, "key": key} | {name: values[name][0] for name in METRICS}
                    file.write(json.dumps(row) + "\n")
                    file.flush()
    print_table(out)


if __name__ == "__main__":
    typer.run(main)
