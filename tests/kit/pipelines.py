"""Pipelines as diffusers saves them."""

import json
import shutil
from fnmatch import fnmatch

import torch
from diffusers import UNet2DModel


def make_unet(**config):
    torch.manual_seed(0)
    settings = {
        "sample_size": 32,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**settings | config).eval()


def save(folder, scheduler, unet=None):
    """A pipeline as DiffusionPipeline.save_pretrained lays it out."""
    unet = unet or make_unet()
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "SomePipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


class Hub:
    """Copies what is asked for from a folder into a cache, as snapshot_download does."""

    def __init__(self, source, cache):
        self.source, self.cache, self.revisions = source, cache, set()

    def __call__(self, repository, *, revision, allow_patterns):
        assert repository == "someone/ddpm-tiny"
        self.revisions.add(revision)
        for file in self.source.rglob("*"):
            name = str(file.relative_to(self.source))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, self.cache / name)
        return str(self.cache)

    def downloaded(self):
        return {str(file.relative_to(self.cache)) for file in self.cache.rglob("*") if file.is_file()}
