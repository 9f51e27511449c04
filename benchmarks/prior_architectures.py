"""Architectures and optimisers for the embedded prior, each trained for the same CPU time.

    python benchmarks/prior_architectures.py --train 'train/*.tar' --validate 'classic/classic-set14*.tar'

The variants need about the same time per image (the forward is in the table), and get the same CPU
seconds of training from scratch, the learning rate falling to zero within them. Prints a Markdown table of
the PSNR of denoised validation images. One thread, so that CPU time is what it says.
"""

import math
import time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from kintsugi.pipeline.data.shards import expand
from kintsugi.priors.natural.train import LARGEST_WEIGHT, T_MIN, Optimiser, crops, load_images
from kintsugi.priors.paths import VariancePreserving

PATH = VariancePreserving()
SIGMAS = (0.05, 0.1, 0.2, 0.5)
SIDE = 192  # of the central squares for validation
CROP, BATCH, WARMUP = 64, 16, 40
EMA = 0.995
SHIPPED: dict[str, Any] = {"channels": (64, 128, 192)}
VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": SHIPPED,
    "as shipped, by Adam": SHIPPED | {"muon": False},
    "scale-shift conditioning": SHIPPED | {"resnet_time_scale_shift": "scale_shift"},
    "a fourth level with attention": {"channels": (64, 128, 160, 224), "attention": True},
    "two blocks per level, narrower": {"channels": (48, 96, 144), "layers_per_block": 2},
    "wide, on 4×4 blocks of pixels": {"channels": (128, 192, 224), "unshuffle": 4},
}


class Variant(nn.Module):
    """`UNet2DModel` on pixel-unshuffled images, predicting ε."""

    def __init__(
        self,
        channels: tuple[int, ...],
        unshuffle: int = 2,
        attention: bool = False,
        layers_per_block: int = 1,
        **settings: Any,
    ):
        super().__init__()
        self.unshuffle = unshuffle
        plain, kind = len(channels) - 1, "Attn" if attention else ""
        self.unet = UNet2DModel(
            in_channels=3 * unshuffle**2,
            out_channels=3 * unshuffle**2,
            block_out_channels=channels,
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * plain + (f"{kind}DownBlock2D",),
            up_block_types=(f"{kind}UpBlock2D",) + ("UpBlock2D",) * plain,
            add_attention=attention,
            attention_head_dim=32,
            norm_num_groups=math.gcd(32, *channels),
            **settings,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        unshuffled = pixel_unshuffle(x, self.unshuffle)
        with torch.autocast("cpu", torch.bfloat16):
            u = self.unet(unshuffled, 1000.0 * t, return_dict=False)[0]
        return pixel_shuffle(u.float(), self.unshuffle)


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    a, s = (c.float().view(-1, 1, 1, 1) for c in (PATH.a(t), PATH.s(t)))
    return a, s


def train(network: nn.Module, images: list[np.ndarray], budget: float, muon: bool) -> tuple[nn.Module, int]:
    """The moving average of the network after `budget` CPU seconds of training, and the steps made."""
    averaged = torch.optim.swa_utils.AveragedModel(
        network, avg_fn=lambda mean, new, n: torch.lerp(mean, new, 1 - min(EMA, (1 + n) / (10 + n)))
    )
    lr = 2e-3 if muon else 8e-4
    adam = torch.optim.Adam(network.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    optimiser = Optimiser(network, lr)
    step, used = 0, 0.0
    while used < budget:
        started = time.process_time()
        rng = np.random.default_rng([0, step])
        x0 = crops(images, BATCH, CROP, rng)
        t = torch.from_numpy(T_MIN + (1 - T_MIN) * rng.random(BATCH) ** 2)
        noise = torch.from_numpy(rng.standard_normal(x0.shape, np.float32))
        a, s = levels(t)
        weight = (1 / a**2).clamp(max=LARGEST_WEIGHT)
        loss = (weight * (network(a * x0 + s * noise, t.float()) - noise).square()).mean()
        loss.backward()
        rate = lr * min((step + 1) / WARMUP, 0.5 * (1 + math.cos(math.pi * used / budget)))
        if muon:
            optimiser.step(rate)
        else:
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            adam.param_groups[0]["lr"] = rate
            adam.step()
            adam.zero_grad()
        averaged.update_parameters(network)
        step, used = step + 1, used + time.process_time() - started
    return averaged.module, step


@torch.no_grad()
def validate(network: nn.Module, images: list[Tensor]) -> list[float]:
    """Mean PSNR in dB of x̂₀ at each σ on [0, 1]."""
    means = []
    for sigma in SIGMAS:
        t = PATH.time_of(-torch.tensor([2 * sigma], dtype=torch.float64).log())
        a, s = levels(t)
        psnr = []
        for i, truth in enumerate(images):
            x = a * truth + s * torch.randn(truth.shape, generator=torch.Generator().manual_seed(i))
            prediction = ((x - s * network(x, t.float())) / a).clamp(-1, 1)
            psnr.append(-10 * math.log10(((prediction - truth) / 2).square().mean().item()))
        means.append(float(np.mean(psnr)))
    return means


def center(image: np.ndarray) -> Tensor:
    top, left = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    square = torch.from_numpy(image[top : top + SIDE, left : left + SIDE].copy())
    return square.permute(2, 0, 1)[None].float() / 127.5 - 1


def main(
    train_shards: Annotated[str, typer.Option("--train", help="Braces and globs work.")],
    validation_shards: Annotated[str, typer.Option("--validate")],
    seconds: Annotated[float, typer.Option(help="CPU seconds of training for each.")] = 200.0,
    only: Annotated[list[str] | None, typer.Option(help="Only this variant; repeatable.")] = None,
) -> None:
    torch.set_num_threads(1)
    images = load_images([str(path) for path in expand(train_shards)])
    truths = [
        center(image)
        for image in load_images([str(path) for path in expand(validation_shards)])
        if min(image.shape[:2]) >= SIDE
    ]
    columns = ["", "parameters, M", "forward at 256², CPU s", "steps"]
    columns += [f"PSNR at σ {sigma}, dB" for sigma in SIGMAS]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name in only or VARIANTS:
        settings = dict(VARIANTS[name])
        muon = settings.pop("muon", True)
        torch.manual_seed(0)
        network = Variant(**settings)
        network, steps = train(network, images, seconds, muon)
        x, t = torch.zeros(1, 3, 256, 256), torch.tensor([0.3])
        times = []
        for _ in range(5):
            started = time.process_time()
            with torch.no_grad():
                network(x, t)
            times.append(time.process_time() - started)
        size = sum(p.numel() for p in network.parameters()) / 1e6
        row = [name, f"{size:.2f}", f"{min(times):.3f}", str(steps)]
        print("| " + " | ".join(row + [f"{v:.2f}" for v in validate(network, truths)]) + " |", flush=True)


if __name__ == "__main__":
    typer.run(main)
