"""Non-linear operators: `covariance` beside surrogates, DPS and DAPS at equal forwards + VJPs.

    python benchmarks/nonlinear.py imagenet256-sample-0000.tar ffhq256-png-0000.tar

The images of each tar (png or jpg) are cut square and made 128². The embedded prior in bfloat16, from a warm
start. Prints PSNR / SWD × 1000 / energy of the finest Laplacian over the truth's, as a Markdown table. The
non-linear blur has random weights, for the published ones are not at hand: of it only that it runs is shown.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from kit.operators import blur_file
from kit.photographs import on_unit, squares
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.numerics import finest_laplacian
from kintsugi.pipeline.metrics.features import patches
from kintsugi.pipeline.metrics.texture import patch_distance
from kintsugi.priors.speed import half_precision
from kintsugi.samplers import KeyedNoise

SIZE = 128
TASKS: dict[str, tuple[dict[str, Any], float]] = {
    "JPEG, quality 10": ({"name": "jpeg", "quality": 10}, 0.0),
    "2 bits": ({"name": "quantize", "bits": 2}, 0.0),
    "HDR": ({"name": "hdr", "factor": 2.0}, 0.0),
    "HDR, σ 0.05": ({"name": "hdr", "factor": 2.0}, 0.05),
    "phase retrieval": ({"name": "phase_retrieval"}, 0.0),
    "random network": ({"name": "nonlinear_blur", "weights": blur_file()}, 0.0),
}
OURS = {"name": "covariance", "covariance": "natural"}
DAPS = {"name": "daps", "steps": 10, "ode_steps": 1}
SAMPLERS: dict[str, dict[str, Any] | None] = {
    "H⁺y": None,
    "covariance, 5, η 0.85": {**OURS, "steps": 5, "eta": 0.85},
    "covariance, 5": {**OURS, "steps": 5},
    "covariance, 5, β 0.25": {**OURS, "steps": 5, "extrapolate": 0.25},
    "covariance, 10, η 0.85": {**OURS, "steps": 10, "eta": 0.85},
    "covariance, 10": {**OURS, "steps": 10},
    **{f"ddnm, {steps}, η 0.85": {"name": "ddnm", "steps": steps, "eta": 0.85} for steps in (5, 10)},
    **{f"diffpir, {steps}": {"name": "diffpir", "steps": steps} for steps in (5, 10)},
    **{f"dps, 5 + 5, ζ {zeta}": {"name": "dps", "steps": 5, "zeta": float(zeta)} for zeta in (4, 16, 64)},
    **{f"daps, 10, lr {lr:g}": {**DAPS, "lr": lr} for lr in (1e-5, 1e-4, 1e-3)},
}


def scores(image: Tensor, truth: Tensor, keys: list[str]) -> str:
    """PSNR / SWD × 1000 / energy of details, of images on [-1, 1] as files hold them."""
    pictures = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (image, truth)]
    restored, known = (x / 255 for x in pictures)
    psnr = -10 * (restored - known).square().mean((1, 2, 3)).log10().mean().item()
    drawn = [
        torch.from_numpy(
            np.stack(
                [patches(key, y.permute(1, 2, 0).byte().numpy()) for key, y in zip(keys, x, strict=True)]
            )
        )
        .float()
        .view(-1, 49, 3)
        for x in pictures
    ]
    scale = drawn[1].flatten(0, 1).std(0)
    distance = patch_distance(*((x / scale).flatten(1) for x in drawn), torch.Generator().manual_seed(0))
    details = [finest_laplacian(x).square().mean((1, 2, 3)) for x in (restored, known)]
    return f"{psnr:.2f} / {1000 * distance:.0f} / {(details[0] / details[1]).mean():.2f}"


def main(
    tars: Annotated[list[Path], typer.Argument(help="Images.")],
    images: Annotated[int, typer.Option(help="How many of each tar.")] = 4,
    only: Annotated[str, typer.Option(help="What names of samplers begin with.")] = "",
    on: Annotated[str, typer.Option(help="What names of tasks begin with.")] = "",
) -> None:
    """Print the table, a row for each sampler."""
    torch.set_num_threads(1)
    prior = priors.load({"name": "natural"})
    half_precision(prior, torch.bfloat16)
    found = [squares(str(tar), images, SIZE) for tar in tars]
    keys = [key for some, _ in found for key in some]
    truth = torch.cat([on_unit(squared) for _, squared in found]).float()
    built = {
        task: operators.build(spec, (3, SIZE, SIZE)).float()
        for task, (spec, _) in TASKS.items()
        if task.startswith(on)
    }
    print(f"| | {' | '.join(built)} |")
    print("|---|" + "---|" * len(built))
    for name, spec in SAMPLERS.items():
        if not name.startswith(only):
            continue
        sampler = spec and samplers.build({"start": 0.4, "init": "lmmse", **spec})
        print(f"| {name}", end="", flush=True)
        for task, operator in built.items():
            sigma = TASKS[task][1]
            y = operator.forward(truth)
            y = y + 2 * sigma * KeyedNoise(1, keys).normal("y", tuple(y.shape[1:]))
            image = operator.pinv(y)
            if sampler:
                image = sampler(prior, operator, y, KeyedNoise(0, keys), sigma_y=2 * sigma).image
            print(f" | {scores(image, truth, keys)}", end="", flush=True)
        print(" |", flush=True)


if __name__ == "__main__":
    typer.run(main)
