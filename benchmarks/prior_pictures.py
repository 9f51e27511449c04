"""Pictures for the model card: photographs restored in 5 steps with older weights and with the embedded ones.

    git show REVISION:priors/natural/natural.safetensors > old.safetensors
    python benchmarks/prior_pictures.py --old old.safetensors --out docs/prior.jpg

Rows: 4× super-resolution, Gaussian deblurring, box inpainting. Columns: measurement (or its
pseudo-inverse), older weights, embedded weights, truth. The photographs are scikit-image's.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from prior_quality import SIZE, TASKS, by_sampler, images
from safetensors.torch import load_file

from kintsugi import operators, priors
from kintsugi.pipeline.data.photographs import scikit_image_shard
from kintsugi.pipeline.execution.degrade import levels

GAP = 4


def main(
    old: Annotated[Path, typer.Option(exists=True, help="Weights of the same network (safetensors).")],
    out: Annotated[Path, typer.Option(help="A JPEG.")],
    photographs: Annotated[tuple[int, int, int], typer.Option(help="One a row, by number.")] = (0, 3, 8),
    threads: int = 2,
) -> None:
    torch.set_num_threads(threads)
    new, older = priors.load({"name": "natural"}), priors.load({"name": "natural"})
    older.network.load_state_dict(load_file(old))
    with tempfile.TemporaryDirectory() as folder:
        shard = scikit_image_shard(Path(folder) / "shards", SIZE)
        found = list(images(str(shard), max(photographs) + 1, Path(folder)))
    tiles = []
    for spec, number in zip(TASKS.values(), photographs, strict=True):
        key, truth = found[number]
        operator = operators.build(spec, (3, SIZE, SIZE))
        y = operator.forward(truth)
        if y.shape != truth.shape:
            y = torch.nn.functional.interpolate(y, size=(SIZE, SIZE), mode="nearest")
        with torch.no_grad():
            tiles += [y, by_sampler(older, spec)(key, truth), by_sampler(new, spec)(key, truth), truth]
    framed = torch.nn.functional.pad(torch.cat(tiles), (GAP,) * 4, value=1.0)
    rows = [torch.cat(list(row), -1) for row in framed.split(4)]
    Image.fromarray(levels(torch.cat(rows, -2)[None], 8)[0]).save(out, quality=88)


if __name__ == "__main__":
    typer.run(main)
