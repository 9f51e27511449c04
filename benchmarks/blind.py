"""Blind deblurring: the width of a Gaussian blur estimated with each image, and what that costs in PSNR.

    python benchmarks/blind.py imagenet256-sample-0000.tar
    python benchmarks/blind.py imagenet256-sample-0000.tar --motion --images 12

With --motion it is a straight motion: lengths are drawn from [5, 25] and estimated within [3, 30], angles are
drawn and estimated within [0, 180], and the table's errors are those of the length.

The images (a tar of png or jpg) are cut square and made --size²; each is blurred by a width drawn uniformly
from [1, 4] pixels, which is then estimated within [0.5, 6], and restored with the estimate and with the
truth. Prints a Markdown table. σ_y is on [0, 1]. "8 bits": y rounded as in a file. "no threshold": y also
holds what the operator of the restoration takes for lost.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from kit.photographs import on_unit, squares
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.operators.family import Family
from kintsugi.samplers.blind import restore

LOW, HIGH = 1.0, 4.0
SHORT, LONG = 5.0, 25.0
CASES = {
    "noiseless": (0.0, False, 3e-2),
    "noiseless, 8 bits": (0.0, True, 3e-2),
    "noiseless, 8 bits, no threshold": (0.0, True, 0.0),
    "σ_y 0.02": (0.02, False, 3e-2),
}


def psnr(image: Tensor, truth: Tensor) -> float:
    """In dB, of images on [-1, 1]."""
    return -10 * float((image.clamp(-1, 1) - truth).div(2).square().mean().log10())


def main(
    tar: Annotated[Path, typer.Argument(help="Images.")],
    images: Annotated[int, typer.Option(help="How many.")] = 50,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 128,
    sampler: Annotated[str, typer.Option(help="Its name.")] = "ddnm",
    steps: Annotated[int, typer.Option(help="Network evaluations.")] = 5,
    motion: Annotated[bool, typer.Option(help="Straight motion in place of Gaussian blurs.")] = False,
    only: Annotated[str | None, typer.Option(help="One of the measurements.")] = None,
) -> None:
    torch.set_num_threads(1)
    prior, built = (
        priors.load({"name": "natural"}),
        samplers.build({"name": sampler, "steps": steps, "start": 0.4}),
    )
    shape = (3, size, size)
    shares = torch.rand(2, images, generator=torch.Generator().manual_seed(0)).tolist()
    blurs = [{"name": "gaussian_blur", "sigma": LOW + share * (HIGH - LOW)} for share in shares[0]]
    ranges = {"sigma": [0.5, 6.0]}
    if motion:
        blurs = [
            {"name": "linear_motion_blur", "length": SHORT + share * (LONG - SHORT), "angle": 180 * angle}
            for share, angle in zip(*shares, strict=True)
        ]
        ranges = {"length": [3.0, 30.0], "angle": [0.0, 180.0]}
    unknown = {name: {"estimate": between} for name, between in ranges.items()}
    family, number = Family({"name": blurs[0]["name"], **unknown}, shape), next(iter(ranges))
    keys, squared = squares(str(tar), images, size)
    truths = on_unit(squared)
    print(
        "| measurement | relative error: median, 90 %, worst | stated deviation | within 2 of these "
        "| PSNR blind | known | difference: mean, median |\n|---|---|---|---|---|---|---|"
    )
    for name, (sigma, rounded, threshold) in CASES.items():
        if only not in (None, name):
            continue
        errors, deviations, blind, known = [], [], [], []
        for key, x, spec in zip(keys, truths.split(1), blurs, strict=True):
            y = operators.build({**spec, "threshold": threshold}, shape).forward(x)
            noise = samplers.KeyedNoise(0, [key])
            y = y + 2 * sigma * noise.normal("measurement", shape)
            y = ((y + 1) * 127.5).round() / 127.5 - 1 if rounded else y
            found = restore(built, prior, family, y, noise, sigma_y=2 * sigma)
            given = built(prior, operators.build(spec, shape), y, noise, sigma_y=2 * sigma)
            errors.append(found.estimate[number].item() / spec[number] - 1)
            deviations.append(found.deviation[number].item() / spec[number])
            blind.append(psnr(found.image, x))
            known.append(psnr(given.image, x))
        off, stated = torch.tensor(errors).abs(), torch.tensor(deviations)
        lost = np.array(blind) - np.array(known)
        cells = [
            name,
            f"{off.median():.1%}, {off.quantile(0.9):.1%}, {off.max():.1%}",
            f"{stated.median():.1%}",
            f"{(off < 2 * stated).float().mean():.0%}",
            *(f"{np.mean(values):.2f}" for values in (blind, known)),
            f"{lost.mean():+.2f}, {np.median(lost):+.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
