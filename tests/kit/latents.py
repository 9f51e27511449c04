"""Pipelines on latents as diffusers saves them: random weights, each less than a megabyte."""

import json

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, VQModel

CHARACTERS = [chr(code) for code in range(33, 127)]


def seeded(make, **config):
    torch.manual_seed(0)
    return make(**config).eval()


def make_kl(**config):
    """KL autoencoder of factor 4."""
    settings = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.7,
    }
    return seeded(AutoencoderKL, **settings | config)


def make_vq(**config):
    settings = {
        "block_out_channels": (8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "norm_num_groups": 4,
        "latent_channels": 3,
        "num_vq_embeddings": 32,
    }
    return seeded(VQModel, **settings | config)


def make_tiny(**config):
    settings = {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    }
    return seeded(AutoencoderTiny, **settings | config)


def make_dit(**config):
    settings = {
        "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "out_channels": 8,
        "sample_size": 8,
    }  # fmt: skip
    return seeded(diffusers.DiTTransformer2DModel, **settings | config)


def make_text_unet(**config):
    settings = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    return seeded(diffusers.UNet2DConditionModel, **settings | config)


def make_sdxl_unet(**config):
    return make_text_unet(
        cross_attention_dim=32,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
        **config,
    )


def make_sd3(**config):
    settings = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 40, "caption_projection_dim": 16,
        "pooled_projection_dim": 16, "pos_embed_max_size": 8,
    }  # fmt: skip
    return seeded(diffusers.SD3Transformer2DModel, **settings | config)


def make_flux(**config):
    settings = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    return seeded(diffusers.FluxTransformer2DModel, **settings | config)


def make_clip(projected=False):
    """A text encoder of width 16, pooled to 8, and its tokenizer of single characters, at most 16."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    words = [*CHARACTERS, *(f"{one}</w>" for one in CHARACTERS), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    last = len(words) - 1
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=8, bos_token_id=last - 1,
        eos_token_id=last, pad_token_id=last,
    )  # fmt: skip
    torch.manual_seed(int(projected))
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval(), tokenizer


def make_t5(width):
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((one, -3.0) for one in CHARACTERS)]
    tokenizer = T5Tokenizer(vocab=words, extra_ids=0)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=16, num_layers=2, num_heads=2)
    torch.manual_seed(2)
    return T5EncoderModel(config).eval(), tokenizer


def save_latent(folder, network, autoencoder, scheduler, encoders=(), **index):
    """A pipeline as DiffusionPipeline.save_pretrained lays it out; encoders as (encoder, tokenizer)."""
    parts = {
        "unet" if "UNet" in type(network).__name__ else "transformer": network,
        "vqvae" if isinstance(autoencoder, VQModel) else "vae": autoencoder,
        "scheduler": scheduler,
    }
    for number, pair in zip(("", "_2", "_3"), encoders, strict=False):
        parts |= {f"text_encoder{number}": pair[0], f"tokenizer{number}": pair[1]}
    listed = {"_class_name": "SomePipeline", "safety_checker": [None, None]}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        library = "diffusers" if type(part).__module__.startswith("diffusers") else "transformers"
        listed[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(listed | index))
    return folder
