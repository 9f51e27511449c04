"""Time and memory to load the network of ADM's unconditional ImageNet 256 checkpoint, 552.8 M parameters.

    python benchmarks/checkpoint_loading.py adm256.pt

A file with random weights is made where there is none; the published one will do as well. Prints a
Markdown table; each row is a process of its own, on Linux. Peak memory is what loading adds to the process
after its imports, mapped pages of the file included, relative to the bytes of the weights; then again after
reading every weight. Loading includes the checksum, whose time is also given alone.
"""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from kintsugi.priors.formats import adm

LAYOUT = adm.Layout(
    channels=256,
    widths=(256, 256, 512, 512, 1024, 1024),
    blocks=2,
    attention=(3, 4, 5),
    classes=None,
    outputs=6,
    known=adm.Known(64),
)
MEASURE = """
import hashlib, sys, time
from pathlib import Path
import torch
from diffusers import UNet2DModel
from kintsugi.priors.formats import adm
def peak():  # not ru_maxrss, which a process inherits from the one that starts it
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
def seconds(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result
torch.set_num_threads(1)
path, before = Path(sys.argv[1]), peak()
described, layout = seconds(lambda: adm.describe(path=path))
loaded, prior = seconds(lambda: adm.adm(path=path))
weights = 4 * layout.parameters
after_loading = (peak() - before) / weights
for weight in prior.network.parameters():
    weight.sum()
after_reading = (peak() - before) / weights
hashed, _ = seconds(lambda: hashlib.file_digest(path.open("rb"), "sha256"))
print(f"| {described:.2f} | {loaded:.2f} | {hashed:.2f} | {after_loading:.3f} | {after_reading:.3f} |")
"""


def make(file: Path) -> None:
    """The layout with random weights, in the published format."""
    file.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    torch.save(
        {entry.file: 0.02 * torch.randn(entry.shape, generator=generator) for entry in adm.entries(LAYOUT)},
        file,
    )


def main(
    file: Annotated[Path, typer.Argument(help="The checkpoint; made if missing, 2.2 GB.")],
    repeats: Annotated[int, typer.Option(help="Processes to measure.")] = 3,
) -> None:
    if not file.exists():
        make(file)
    print(f"{LAYOUT.parameters:,} parameters, {4 * LAYOUT.parameters / 1e9:.2f} GB of weights\n")
    print("| describe, s | load, s | checksum alone, s | peak memory, loaded | peak memory, all read |")
    print("|---|---|---|---|---|", flush=True)
    for _ in range(repeats):
        subprocess.run([sys.executable, "-c", MEASURE, str(file)], check=True)


if __name__ == "__main__":
    typer.run(main)
