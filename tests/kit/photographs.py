"""Photographs from shards, for benchmarks."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.data.decode import crop_centre, resize_crop


def squares(
    shards: str | list[str], count: int, side: int, resized: bool = True
) -> tuple[list[str], np.ndarray]:
    """Keys, and the central squares of the first images, (B, side, side, 3) uint8.

    Args:
        shards: as `data.shards` of a job. resized: of images made as small as that; else cut out.
    """
    found = Collection("shards", shards)
    keys = list(found.places)[:count]
    make = resize_crop if resized else crop_centre
    images = (Image.fromarray(sample.array) for sample in found.read_all(keys))
    return keys, np.stack([np.asarray(make(image.convert("RGB"), side)) for image in images])


def on_unit(images: np.ndarray) -> Tensor:
    """Images (B, H, W, C) uint8 as (B, C, H, W) float32 on [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
