"""Pictures and shards of them, and measurements."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.transform import resize

from kintsugi import operators
from kintsugi.pipeline.data.pictures import array_file

SIZE = 32


def picture(number: int, size: int = SIZE) -> np.ndarray:
    """A crop of a photograph, (size, size, 3) uint8, different for each number."""
    photograph = resize(data.astronaut(), (128, 128), anti_aliasing=True)
    rng = np.random.default_rng(number)
    top, left = rng.integers(0, 128 - size + 1, 2)
    return (photograph[top : top + size, left : left + size] * 255).round().astype(np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def measured(image: np.ndarray, operator: dict) -> np.ndarray:
    """H x of an image (H, W, 3) uint8, (C, h, w) float32."""
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    return operators.build(operator, tuple(x.shape[1:])).forward(x)[0].numpy()


def tar_of_arrays(path: Path, arrays: list[np.ndarray]) -> Path:
    return write_tar(path, [(f"image_{i:03d}.npy", array_file(a)) for i, a in enumerate(arrays)])
