"""The seams of tiles beside the sampler's own noise.

    python benchmarks/tiles.py
    python benchmarks/tiles.py --shards classic-set14-0000.tar

Restores images that also fit whole, whole and by two windows per axis, from the same noise, by
4× super-resolution in 5 steps of C-ΠGDM with the embedded prior. Figures are in levels of 255.
"""

import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from skimage import data
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.pipeline.data.decode import to_rgb
from kintsugi.pipeline.data.photographs import PHOTOGRAPHS
from kintsugi.priors.tiled import Tiled, windows
from kintsugi.samplers import KeyedNoise

FACTOR = 4
SAMPLER = {"name": "conjugate", "steps": 5, "w": 15}
NEAR = 4
"""Pixels on either side of a window's edge that count as near it."""
BESIDE = (8, 16)
"""Distances of the lines that an edge is compared to: they lie alike on the grid of the measurement."""
OVERLAPS = [0, 16, 32, 64, 128]


def photographs(shards: list[Path] | None) -> Iterator[tuple[str, Image.Image]]:
    """Names and images, of shards or of scikit-image."""
    for name in PHOTOGRAPHS if shards is None else ():
        with Image.open(Path(data.__file__).parent / name) as image:
            yield name, to_rgb(image)
    for path in shards or ():
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".png", ".jpg")):
                    with Image.open(tar.extractfile(member)) as image:
                        yield member.name, to_rgb(image)


def centre(image: Image.Image, width: int, height: int) -> Tensor:
    """The central crop, (1, 3, height, width) in [-1, 1]."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    crop = image.crop((left, top, left + width, top + height))
    levels = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).view(1, height, width, 3)
    return levels.permute(0, 3, 1, 2).float() / 127.5 - 1


def edges(tiled: Tiled, side: int) -> Tensor:
    """The lines of an axis where a window begins or ends: c is the line between pixels c − 1 and c."""
    axis = windows(side, tiled.tile, tiled.multiple, tiled.overlap, torch.device("cpu"), torch.float32)
    first = axis.index.view(axis.count, -1)[:, 0]
    return torch.cat([first[1:], first[:-1] + axis.length])


def near_edges(tiled: Tiled, height: int, width: int) -> Tensor:
    """(H, W), true within NEAR pixels of a window's edge."""
    masks = []
    for side in (height, width):
        distances = torch.arange(side)[:, None] + 0.5 - edges(tiled, side)
        masks.append((distances.abs() < NEAR).any(1))
    return masks[0][:, None] | masks[1]


def jump_ratio(image: Tensor, tiled: Tiled) -> float:
    """The mean absolute jump across the windows' edges over that across the lines beside them."""
    at, beside = [], []
    for dim in (2, 3):
        lines = edges(tiled, image.shape[dim])
        jumps = image.diff(dim=dim).abs().movedim(dim, 0).flatten(1).mean(1)  # [c − 1]: across line c
        distances = (torch.arange(1, image.shape[dim])[:, None] - lines).abs().min(1).values
        at.append(jumps[distances == 0])
        beside.append(jumps[torch.isin(distances, torch.tensor(BESIDE))])
    return (torch.cat(at).mean() / torch.cat(beside).mean()).item()


def rms(difference: Tensor) -> float:
    return 127.5 * difference.square().mean().sqrt().item()


def main(
    shards: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="A tar, instead of scikit-image's photographs. Repeat for several."),
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the crops; smaller images are left out.")] = 512,
    overlap: Annotated[list[int], typer.Option(help="Repeat for several.")] = OVERLAPS,
    limit: Annotated[int | None, typer.Option(help="Images.")] = None,
    threads: int = 1,
) -> None:
    """Restore whole and by tiles of (size + overlap) / 2, and print the differences as a table."""
    torch.set_num_threads(threads)
    prior: Any = priors.load({"name": "natural"})
    operator = operators.build({"name": "bicubic", "factor": FACTOR}, (3, size, size))
    sampler = samplers.build(SAMPLER)
    tiled = [Tiled(prior, (size + pixels) // 2, prior.multiple, pixels) for pixels in overlap]
    rows: list[list[tuple[float, ...]]] = [[] for _ in tiled]
    for name, image in photographs(shards):
        if min(image.size) < size or len(rows[0]) == limit:
            continue
        truth = centre(image, size, size)
        y = operator.forward(truth)
        whole, other = (sampler(prior, operator, y, KeyedNoise(seed, [name])).image for seed in (0, 1))
        noise, error = rms(whole - other) / math.sqrt(2), rms(whole - truth)
        print(f"{name}: sampler's noise {noise:.2f}, error of the whole {error:.2f}", flush=True)
        for candidate, found in zip(tiled, rows, strict=True):
            result = sampler(candidate, operator, y, KeyedNoise(0, [name])).image
            mask = near_edges(candidate, size, size)
            difference = result - whole
            near, far = rms(difference[..., mask]), rms(difference[..., ~mask])
            gain = 20 * math.log10(error / rms(result - truth))
            ratios = jump_ratio(result, candidate), jump_ratio(whole, candidate)
            found.append((near, far, noise, near / noise, gain, *ratios))
    print(f"\n{len(rows[0])} images of {size}², means over the images\n")
    print(
        f"| overlap | tile | RMS within {NEAR} px of an edge | RMS elsewhere | sampler's noise | "
        "near an edge / noise, worst image | PSNR − whole's, dB | jump at edges / beside | whole, there |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for candidate, found in zip(tiled, rows, strict=True):
        values = torch.tensor(found)
        near, far, noise, _, gain, jump, jump_whole = values.mean(0).tolist()
        print(
            f"| {candidate.overlap} | {candidate.tile} | {near:.2f} | {far:.2f} | {noise:.2f} | "
            f"{values[:, 3].max():.2f} | {gain:+.3f} | {jump:.3f} | {jump_whole:.3f} |"
        )


if __name__ == "__main__":
    typer.run(main)
