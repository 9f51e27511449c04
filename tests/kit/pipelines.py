"""Pipelines as diffusers saves them."""

import json

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
