"""Restore measurements in a folder, of half the size: python examples/measurements.py [FOLDER]."""

import sys
from pathlib import Path

from PIL import Image
from skimage import data

import kintsugi

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "measurements")
if not folder.exists():
    folder.mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(data, name)()).resize((32, 32), Image.Resampling.BICUBIC).save(
            folder / f"{name}.png"
        )
job = {
    "data": {"kind": "measurements", "shards": f"{folder}/"},
    "degradation": {"operator": {"name": "bicubic", "factor": 2}},
    "sampler": {"name": "conjugate", "steps": 2},
    "metrics": [],
    "images": "restored",
    "output": "runs/measurements",
}
run = kintsugi.run(job)
for key in run.rows()["key"].to_pylist():
    print(key, run.picture(key).size)
print("files:", run.folder / "restored")
