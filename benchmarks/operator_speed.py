"""Milliseconds of every operator's forward, adjoint and pseudo-inverse, beside deepinv's where both have it.

    python benchmarks/operator_speed.py
    python benchmarks/operator_speed.py --device cuda --batch 32

Prints a Markdown table; each cell is the median of the repeats and, in brackets, the fastest. For a
non-linear operator "adjoint" is its vector-Jacobian product. deepinv (pip install deepinv) is optional.
"""

import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch
import typer

from kintsugi import operators

SPECS: dict[str, dict[str, Any]] = {
    "average_pool": {},
    "bicubic": {},
    "resize": {"factor": 2.5},
    "gaussian_blur": {},
    "gaussian_blur, circular": {"boundary": "circular"},
    "uniform_blur": {},
    "anisotropic_blur": {},
    "anisotropic_blur, 30°": {"angle": 30.0},
    "motion_blur": {},
    "gaussian_blur_rediff": {},
    "inpaint": {"mask": "random"},
    "denoise": {},
    "colorize": {},
    "compressed_sensing": {},
    "compressed_sensing, block 32": {"block": 32},
    "compose": {"operators": [{"name": "bicubic"}, {"name": "colorize"}]},
    "jpeg": {},
    "quantize": {},
    "hdr": {},
    "phase_retrieval": {},
}
REPEATS = 30
SECONDS = 1.0
"""For one cell; what is slow is repeated less often."""


def measure(function: Callable[..., Any], *arguments: Any) -> str:
    """Median and fastest of at most REPEATS calls within about SECONDS, after one to warm up."""
    on_gpu = arguments[0].is_cuda
    times: list[float] = []
    while len(times) <= REPEATS and sum(times) < SECONDS:
        started = time.perf_counter()
        function(*arguments)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    times = sorted(times[1:] or times)
    return f"{times[len(times) // 2] * 1e3:.2f} ({times[0] * 1e3:.2f})"


def counterpart(label: str, ours: operators.Operator, device: str) -> Any | None:
    """deepinv's operator for the same task, or None if it has none.

    The boundary of its `Blur` differs from ours by not repeating the last pixel, and its
    `Downsampling` samples elsewhere in the block; the work is the same.
    """
    from deepinv import physics

    shape = ours.image_shape
    kernel = torch.exp(-0.5 * (torch.arange(-30.0, 31.0) / 3.0) ** 2)
    kernel = (torch.outer(kernel, kernel) / kernel.sum() ** 2)[None, None].to(device)
    match label:
        case "bicubic":
            return physics.Downsampling(shape, filter="bicubic", factor=4, padding="reflect", device=device)
        case "gaussian_blur":
            return physics.Blur(filter=kernel, padding="reflect", device=device)
        case "gaussian_blur, circular":
            return physics.BlurFFT(shape, filter=kernel, device=device)
        case "inpaint":
            return physics.Inpainting(shape, mask=ours.singular_values, device=device)
        case "colorize":
            return physics.Decolorize(channels=shape[0], srf="flat", device=device)
        case "compressed_sensing":
            return physics.SinglePixelCamera(m=shape[1] * shape[2] // 2, img_size=shape, device=device)
    return None


def theirs(label: str, ours: operators.Operator, x: torch.Tensor, y: torch.Tensor, device: str) -> list[str]:
    if importlib.util.find_spec("deepinv") is None:
        return ["not installed", "", "", ""]
    other = counterpart(label, ours, device)
    if other is None:
        return ["none", "", "", ""]
    if label == "compressed_sensing":
        y = other.A(x)  # theirs keeps the zeros
    cells = [measure(other.A, x), measure(other.A_adjoint, y), measure(other.A_dagger, y)]
    return [type(other).__name__, *cells]


@torch.no_grad()
def main(
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    threads: int = 2,
    batch: int = 8,
    size: int = 256,
) -> None:
    torch.set_num_threads(threads)
    shape = (3, size, size)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    where = torch.cuda.get_device_name() if x.is_cuda else f"{threads} threads of the CPU"
    print(f"{batch} × 3 × {size} × {size} float32 on {where}; median (fastest) in ms\n")
    print("| operator | forward | adjoint | pinv | deepinv | forward | adjoint | pinv |")
    print("|---|---|---|---|---|---|---|---|")
    for label, parameters in SPECS.items():
        spec = {"name": label.split(",")[0], **parameters}
        ours = operators.build(spec, shape, device=device)
        y = ours.forward(x)
        cells = [measure(ours.forward, x), measure(ours.vjp, x, y), measure(ours.pinv, y)]
        print("|", " | ".join([label, *cells, *theirs(label, ours, x, y, device)]), "|", flush=True)


if __name__ == "__main__":
    typer.run(main)
