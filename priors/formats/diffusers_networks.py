"""Networks of latents that diffusers has, called alike: of latents, times and what they are told beside."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kintsugi.errors import SpecError
from kintsugi.priors.formats.diffusers_files import misfit
from kintsugi.priors.formats.diffusers_training import SCHEDULERS, score_ve

MOST_CHANNELS = 256


class LatentNetwork(nn.Module):
    """A network of diffusers as a function of latents x (B, C, h, w), times (B,) and conditions of B entries.

    Its output is (B, C, h, w): a variance that it may predict beside is left out.

    Args:
        module: of a class in NETWORKS. factor: sides of images over those of latents.

    Attributes:
        channels: of its latents. divisor: what their sides must be divisible by.
        classes: how many, with one that stands for none; None where it knows none. null: that one, if known.
        text: how prompts become its conditions (`prompts.READERS`); None where it knows no prompts.
        told_guidance: the guidance that a distilled network is told where no other is given, else None.
        most: bounds of numbers in its configuration that make what no file of weights has.
    """

    classes: int | None = None
    null: int | None = None
    text: str | None = None
    told_guidance: float | None = None
    divisor = 1
    most: ClassVar[Mapping[str, int]] = {}

    def __init__(self, module: Any, factor: int):
        super().__init__()
        self.module, self.factor = module, factor
        self.channels: int = module.config.in_channels

    def check(self, scheduler: Any, channels: int) -> None:
        """Refuse a network that takes or gives more than latents; raises a CheckpointError."""
        config, taken = self.module.config, self.channels
        if taken != channels:
            raise misfit("config.json", "in_channels", config.in_channels, more_channels(taken, channels))
        if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
            raise misfit("config.json", "out_channels", config.out_channels, "as many as in_channels fit")

    def sizes(self) -> Mapping[str, int]:
        """The lengths of what it is told of a prompt: `text` of each token, `pooled` of all."""
        return {}


class LatentUNet(LatentNetwork):
    """A `UNet2DModel`, told nothing or classes (B,): of LDM."""

    def __init__(self, module: Any, factor: int):
        super().__init__(module, factor)
        self.classes = module.config.num_class_embeds
        self.divisor = 2 ** (len(module.config.block_out_channels) - 1)

    def check(self, scheduler: Any, channels: int) -> None:
        """As of any network, and what a `UNet2DModel` on pixels needs."""
        super().check(scheduler, channels)
        check_unet(self.module, scheduler)

    def forward(self, x: Tensor, time: Tensor, classes: Tensor | None = None) -> Tensor:
        """The output (B, C, h, w)."""
        return self.module(x, time, classes, return_dict=False)[0][:, : self.channels]


class DiT(LatentNetwork):
    """A `DiTTransformer2DModel` (2212.09748), told classes (B,), of squares: of DiTPipeline."""

    # 2048² images, four times the sides of any that was published: at width 1152 positions of 0.3 GB at most.
    most: ClassVar[Mapping[str, int]] = {"sample_size": 256}

    def __init__(self, module: Any, factor: int):
        super().__init__(module, factor)
        self.null = module.config.num_embeds_ada_norm
        self.classes = module.config.num_embeds_ada_norm + 1
        self.divisor = module.config.patch_size

    def forward(self, x: Tensor, time: Tensor, classes: Tensor) -> Tensor:
        """The output (B, C, h, h); raises a SpecError for other sides."""
        if x.shape[2] != x.shape[3]:
            raise SpecError("data.size: a DiT's images are square; give one side, or tiles")
        return self.module(x, time, classes, return_dict=False)[0][:, : self.channels]


class TextUNet(LatentNetwork):
    """A `UNet2DConditionModel`: of Stable Diffusion, SDXL, and their distilled forms.

    One with `time_cond_proj_dim` is told the guidance of which it is a distillation (2310.04378).
    """

    def __init__(self, module: Any, factor: int):
        super().__init__(module, factor)
        self.sized = module.config.addition_embed_type == "text_time"
        self.text = "clip_pair" if self.sized else "clip"
        self.told_guidance = 8.5 if module.config.time_cond_proj_dim else None

    def check(self, scheduler: Any, channels: int) -> None:
        """As of any network; neither is anything told that is not understood."""
        super().check(scheduler, channels)
        config = self.module.config
        for field in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "attention_type"):
            if config[field] not in (None, "default"):
                raise misfit(
                    "config.json", field, config[field], "only prompts by text encoders are understood"
                )
        if config.time_cond_proj_dim is not None and config.time_cond_proj_dim < 4:
            raise misfit("config.json", "time_cond_proj_dim", config.time_cond_proj_dim, "4 or more fit")
        if config.addition_embed_type not in (None, "text_time"):
            raise misfit("config.json", "addition_embed_type", config.addition_embed_type, "text_time fits")
        if not isinstance(config.cross_attention_dim, int):
            raise misfit("config.json", "cross_attention_dim", config.cross_attention_dim, "one number fits")
        if self.sized and self.sizes()["pooled"] < 1:
            raise misfit(
                "config.json", "projection_class_embeddings_input_dim",
                config.projection_class_embeddings_input_dim, "six sizes and a pooled prompt are expected",
            )  # fmt: skip

    def sizes(self) -> Mapping[str, int]:
        """See `LatentNetwork`."""
        config = self.module.config
        if not self.sized:
            return {"text": config.cross_attention_dim}
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {"text": config.cross_attention_dim, "pooled": pooled}

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        pooled: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The output (B, C, h, w); SDXL's is told that the image has its own size and is not cropped."""
        added = None
        if self.sized:
            # Height and width of the whole image, (0, 0) where it begins, and both again as what is wanted.
            sizes = x.new_zeros(len(x), 6)
            sizes[:, 0::4], sizes[:, 1::4] = x.shape[2] * self.factor, x.shape[3] * self.factor
            added = {"text_embeds": pooled, "time_ids": sizes}
        return self.module(
            x,
            time,
            text,
            timestep_cond=None if guidance is None else self.embedded(guidance),
            added_cond_kwargs=added,
            return_dict=False,
        )[0][:, : self.channels]

    def embedded(self, guidance: Tensor) -> Tensor:
        """Sinusoids (B, time_cond_proj_dim) of 1000 (w − 1), as LatentConsistencyModelPipeline has them."""
        width = self.module.config.time_cond_proj_dim
        places = torch.arange(width // 2, device=guidance.device, dtype=torch.float32)
        angles = 1000 * (guidance[:, None] - 1) * torch.exp(-places * (math.log(1e4) / (width // 2 - 1)))
        return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, width % 2))


class SD3(LatentNetwork):
    """An `SD3Transformer2DModel` (2403.03206): of Stable Diffusion 3 and 3.5."""

    text = "clip_pair_t5"

    def __init__(self, module: Any, factor: int):
        super().__init__(module, factor)
        self.divisor = module.config.patch_size

    def sizes(self) -> Mapping[str, int]:
        """See `LatentNetwork`."""
        config = self.module.config
        return {"text": config.joint_attention_dim, "pooled": config.pooled_projection_dim}

    def forward(self, x: Tensor, time: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """The output (B, C, h, w); raises a SpecError for more than it has positions for."""
        config = self.module.config
        most = config.pos_embed_max_size * config.patch_size
        if max(x.shape[2:]) > most:
            raise SpecError(
                f"data.size: the network has positions for images up to {most * self.factor} only"
            )
        return self.module(x, text, pooled, time, return_dict=False)[0]


class Flux(LatentNetwork):
    """A `FluxTransformer2DModel`: of FLUX.1 dev, which is told its guidance, and schnell, which is not."""

    divisor = 2

    def __init__(self, module: Any, factor: int):
        super().__init__(module, factor)
        self.channels = module.config.in_channels // 4
        self.told_guidance = 3.5 if module.config.guidance_embeds else None
        self.text = "clip_t5_512" if module.config.guidance_embeds else "clip_t5_256"

    def check(self, scheduler: Any, channels: int) -> None:
        """As of any network, and that its latents are packed as FLUX.1's."""
        super().check(scheduler, channels)
        config = self.module.config
        for field, fitting in (("patch_size", [1]), ("out_channels", [None, config.in_channels])):
            if config[field] not in fitting:
                raise misfit("config.json", field, config[field], "FLUX.1 dev and schnell are understood")
        if len(config.axes_dims_rope) != 3 or sum(config.axes_dims_rope) != config.attention_head_dim:
            raise misfit(
                "config.json", "axes_dims_rope", config.axes_dims_rope, "three that add up to a head"
            )

    def sizes(self) -> Mapping[str, int]:
        """See `LatentNetwork`."""
        config = self.module.config
        return {"text": config.joint_attention_dim, "pooled": config.pooled_projection_dim}

    def forward(
        self, x: Tensor, time: Tensor, text: Tensor, pooled: Tensor, guidance: Tensor | None = None
    ) -> Tensor:
        """The output (B, C, h, w), by way of tokens (B, hw/4, 4C) of two by two latents, and their places."""
        b, c, h, w = x.shape
        tokens = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)
        rows, columns = torch.meshgrid(
            torch.arange(h // 2, device=x.device), torch.arange(w // 2, device=x.device), indexing="ij"
        )
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).view(-1, 3).to(x.dtype)
        output = self.module(
            tokens,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=time / 1000,  # which the network undoes
            img_ids=places,
            txt_ids=places.new_zeros(text.shape[1], 3),
            guidance=guidance,
            return_dict=False,
        )[0]
        return output.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


NETWORKS: Mapping[str, type[LatentNetwork]] = {
    "UNet2DModel": LatentUNet,
    "DiTTransformer2DModel": DiT,
    "UNet2DConditionModel": TextUNet,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
}
"""How each class of networks is called."""


def fill_positions(module: Any) -> None:
    """Give an `empty` DiT the positions that no file has: they follow from its configuration."""
    from diffusers.models.embeddings import PatchEmbed

    for part in module.modules():
        if isinstance(part, PatchEmbed) and part.pos_embed is not None and part.pos_embed.is_meta:
            made = PatchEmbed(
                height=part.height * part.patch_size,
                width=part.width * part.patch_size,
                patch_size=part.patch_size,
                in_channels=1,
                embed_dim=part.pos_embed.shape[-1],
                interpolation_scale=part.interpolation_scale,
            )
            part.pos_embed = made.pos_embed
    if idle := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise misfit("config.json", "_class_name", type(module).__name__, f"{idle[0]} is in no file")


def more_channels(taken: int, channels: int) -> str:
    """Why a network with so many channels for latents of so many is not understood."""
    given = {
        2 * channels + 1: "it is for inpainting, and is given a mask and an image beside; the model that it "
        "was made from fits, as an operator does the inpainting",
        2 * channels: "it is given another image beside",
        channels + 1: "it is given a depth map or a mask beside",
        channels + 3: "it is given a small image beside, to enlarge it",
    }
    return f"the autoencoder has {channels}; " + given.get(taken, "they do not belong together")


def check_unet(network: Any, scheduler: Any) -> None:
    """Refuse a `UNet2DModel` with other inputs, or with times that the scheduler does not give.

    Raises:
        CheckpointError: the message names the field of config.json.
    """
    config = network.config
    channels = config.in_channels
    learned_variance = str(scheduler.config.get("variance_type")).startswith("learned")
    embeddings = ["positional"]
    if SCHEDULERS[type(scheduler).__name__] is score_ve:
        # It takes the logarithm of the time and divides by it: a noise level, never 0 or negative.
        embeddings.append("fourier")
    problems = {
        "in_channels": not 1 <= channels <= MOST_CHANNELS and f"1 to {MOST_CHANNELS} channels are expected",
        "out_channels": config.out_channels
        not in ([channels, 2 * channels] if learned_variance else [channels])
        and f"{channels} channels are expected, or {2 * channels} with a learned variance_type",
        "num_class_embeds": config.num_class_embeds is not None
        and config.num_class_embeds < 1
        and "1 class or more is expected",
        "class_embed_type": config.class_embed_type is not None
        and "only classes by their numbers are understood (num_class_embeds)",
        "time_embedding_type": config.time_embedding_type not in embeddings
        and f"{type(scheduler).__name__} needs {' or '.join(embeddings)}",
        "down_block_types": next(network.buffers(), None) is not None
        and "blocks with fixed filters do not load",
    }
    for field, problem in problems.items():
        if problem:
            raise misfit("config.json", field, config[field], problem)
