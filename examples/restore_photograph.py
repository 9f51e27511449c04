"""Restore one photograph from a copy of a quarter: python examples/restore_photograph.py [IMAGE [RESULT]]."""

import sys

from PIL import Image
from skimage.data import astronaut

import kintsugi

image = (
    Image.open(sys.argv[1]) if len(sys.argv) > 1 else Image.fromarray(astronaut()).crop((144, 0, 272, 128))
)
side = (image.width // 32 * 8, image.height // 32 * 8)  # the prior needs sides of the result divisible by 8
small = image.convert("RGB").resize(side, Image.Resampling.BICUBIC)
large = kintsugi.restore(small, {"name": "bicubic", "factor": 4}, sampler={"name": "conjugate", "steps": 5})
large.save(sys.argv[2] if len(sys.argv) > 2 else "restored.png")
print(f"{small.size} became {large.size}")
