"""What features for FID cost an image: by the batch, and where they are kept from an earlier run.

    python benchmarks/features.py [--device cuda]

By Inception with random weights, which takes as long as the published one, in pytorch-fid's layout; images of
256². By CPU time on a CPU, one thread, and by the clock on a GPU; the best of a few rounds.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from unittest import mock

import numpy as np
import torch
import torchvision
import typer

from kintsugi import numerics
from kintsugi.device import default_device
from kintsugi.pipeline.metrics import weights
from kintsugi.pipeline.metrics.features import Extractor

SPACE = "legacy_pytorch"
BATCHES = (1, 2, 4, 8, 16)


def main(
    device: str = default_device(),
    images: Annotated[int, typer.Option(min=1)] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Print a table of milliseconds an image."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 256, (images, 256, 256, 3), np.uint8))
    with tempfile.TemporaryDirectory() as name, mock.patch.dict("os.environ", {"KINTSUGI_CACHE": name}):
        torch.hub.set_dir(name)
        save_random(Path(name, "checkpoints"))
        extract, keys = Extractor([SPACE], device), [str(i) for i in range(images)]
        print("| images at once | ms an image |\n|---|---|")
        for count in BATCHES:
            with mock.patch.dict(numerics.TOGETHER, {torch.device(device).type: count}):
                took = best(lambda: extract(keys, pictures), device, rounds)
            print(f"| {count} | {1000 * took / images:.1f} |", flush=True)
        took = best(lambda: extract(keys, pictures, of_data=True), device, rounds)
        print(f"| kept before | {1000 * took / images:.1f} |")


def save_random(folder: Path) -> None:
    """Inception's weights where they are looked for, so that values stay in range."""
    model = torchvision.models.inception_v3(num_classes=1008, aux_logits=False, init_weights=False)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1 / 6)
    folder.mkdir()
    torch.save(model.state_dict(), folder / weights.PT_INCEPTION.name)


def best(work: Callable[[], object], device: str, rounds: int) -> float:
    """Seconds of the fastest round, of this process on a CPU."""
    clock, found = time.perf_counter if device == "cuda" else time.process_time, []
    work()
    for _ in range(rounds):
        mark = clock()
        work()  # which reads what it made
        found.append(clock() - mark)
    return min(found)


if __name__ == "__main__":
    typer.run(main)
