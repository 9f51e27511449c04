"""The non-linear blur of DPS and of what followed it: a network that blurs as shaken cameras do.

Source: Tran, Tran, Phung and Hoai, Explore Image Deblurring via Encoded Blur Kernel Space (CVPR 2021,
2104.00317), and the files of its models: the network G of the paper, which blurs an image by a code. The
network that finds the code of a pair of images lies in the same files and is not needed here.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from kintsugi.checkpoint import CheckpointError, State, adopt, check_intact, empty, read, tensors
from kintsugi.numerics import linearised
from kintsugi.operators.base import Nonlinear
from kintsugi.operators.module import directions, gains, points_in

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
BLOCK = 128
"""Pixels of a side for an entry of the code: two strides of two, and five of the U-Net."""
SPREAD = 1.2
"""Standard deviation of a random code, as the authors of the network and of DPS draw it."""
ITERATIONS = 20
"""Of the estimate of the gain: each costs a few passes through the network, at each of its points."""
ENCODER = "kernel_extractor."
MEANS = "kernel_extractor.model.16.weight"
"""The convolution that gives a code, or, where the network was trained as a VAE, its mean and deviation."""
INNERMOST = "adapter.model.submodule.submodule.submodule.submodule.up.1.weight"


class Sizes(NamedTuple):
    """Channels of images, features, the code and the last features; residual blocks before and behind."""

    image: int
    features: int
    code: int
    last: int
    before: int
    behind: int


class Residual(nn.Module):
    """x + two convolutions with a ReLU between."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), as x."""
        return x + self.conv2(self.conv1(x).relu())


class Level(nn.Module):
    """A level of the U-Net: to half the size and `inner` channels, what is below, and back beside what came.

    Args:
        submodule: the level below; of the lowest none, but a code of so many channels.
    """

    def __init__(self, outer: int, inner: int, submodule: "Level | None", code: int = 0, top: bool = False):
        super().__init__()
        self.top = top
        activation = [] if top else [nn.LeakyReLU(0.2)]
        self.down = nn.Sequential(*activation, nn.Conv2d(outer, inner, 4, 2, 1, bias=False))
        self.submodule = submodule
        found = inner + (code if submodule is None else inner)
        self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(found, outer, 4, 2, 1, bias=top))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, 2 outer, H, W) of x (B, outer, H, W); of the top (B, outer, H, W) in [−1, 1]."""
        x = self.down[:-1](x)
        halved = self.down[-1](x)
        below = torch.cat([halved, code], 1) if self.submodule is None else self.submodule(halved, code)
        found = self.up(below)
        return found.tanh() if self.top else torch.cat([found, x], 1)


class Network(nn.Module):
    """An image in [0, 1] and a code to the blurred image, with the names of the published files."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.sizes = sizes
        n, last = sizes.features, sizes.last
        rectify = nn.LeakyReLU(0.1)
        self.feature_extractor = nn.Sequential(
            *(nn.Conv2d(sizes.image, n, 3, padding=1), rectify),
            *(nn.Conv2d(n, n, 3, 2, 1), rectify),
            *(nn.Conv2d(n, n, 3, 2, 1), rectify),
            *(Residual(n) for _ in range(sizes.before)),
        )
        level = Level(8 * n, 8 * n, None, sizes.code)
        for outer, inner in ((4, 8), (2, 4), (1, 2)):
            level = Level(outer * n, inner * n, level)
        self.adapter = nn.ModuleDict({"model": Level(n, n, level, top=True)})
        self.recon_trunk = nn.Sequential(
            *(Residual(n) for _ in range(sizes.behind)),
            *(nn.Conv2d(n, 4 * n, 3, padding=1), nn.PixelShuffle(2), rectify),
            *(nn.Conv2d(n, 4 * last, 3, padding=1), nn.PixelShuffle(2), rectify),
            *(nn.Conv2d(last, last, 3, padding=1), rectify),
            nn.Conv2d(last, sizes.image, 3, padding=1),
        )

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, C, H, W) of x of that shape, of sides divisible by 128, and a code (B, K, H / 128, W / 128)."""
        return x + self.recon_trunk(self.adapter["model"](self.feature_extractor(x), code))


class NonlinearBlur(Nonlinear):
    """y = clip(2 G((x + 1) / 2, code) − 1, −1, 1); H⁺ y = y, so that `impose` is x + y − H(x), as in DPS.

    Sides are extended to multiples of 128 by their last pixel.

    Args:
        network: G. code: (K, ⌈H / 128⌉, ⌈W / 128⌉). weights: where those of G come from.
    """

    per_sample: ClassVar = {"code": 3, "lipschitz": 3}
    code: Tensor

    def __init__(self, image_shape: tuple[int, int, int], network: Network, code: Tensor, weights: str):
        super().__init__(image_shape, image_shape)
        self.network, self.weights = network, weights
        self.register_buffer("code", code)

    def forward(self, x: Tensor) -> Tensor:
        """The blurred image, (B, C, H, W) in [−1, 1]."""
        return self.blurred(x, self.code)

    def blurred(self, x: Tensor, code: Tensor) -> Tensor:
        """x (B, C, H, W) blurred by one code, or each by its own (B, K, h, w)."""
        height, width = x.shape[2:]
        whole = F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        found = 2 * self.network((whole + 1) / 2, code.expand(len(x), -1, -1, -1)) - 1
        return found[..., :height, :width].clamp(-1, 1)

    def pinv(self, y: Tensor) -> Tensor:
        """y itself: the blurred image."""
        return y

    @cached_property
    def lipschitz(self) -> float | Tensor:  # type: ignore[override]  # found when a sampler asks for it
        """‖∂H/∂x‖, by power iteration at a few images, with a margin of a tenth: an estimate.

        A number, or with codes of a batch one for each, (B, 1, 1, 1).
        """
        codes = self.code[None] if self.code.ndim == 3 else self.code
        points = points_in(self.image_shape).to(codes)
        each = codes.repeat_interleave(len(points), 0)
        _, push, pull = linearised(lambda x: self.blurred(x, each), points.repeat(len(codes), 1, 1, 1))
        start = directions(len(points), self.image_shape).to(codes).repeat(len(codes), 1, 1, 1)
        found = gains(lambda v: pull(push(v)), start, ITERATIONS).view(len(codes), -1).amax(1)
        return found.item() if self.code.ndim == 3 else found.view(-1, 1, 1, 1)


def nonlinear_blur(
    image_shape: tuple[int, int, int],
    *,
    weights: str,
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0,
) -> NonlinearBlur:
    """A network that blurs as shaken cameras do, by a random code. Setting: DPS (2209.14687), DAPS, SITCOM.

    `weights` is a file as GOPRO_wVAE.pth of Tran et al. (CVPR 2021), of any widths, and no part of Kintsugi.
    The code is drawn from N(0, 1.2²) by NumPy's RandomState(seed): 0 at 256² is that of DAPS.

    Raises:
        ValueError: the file cannot be read or has other weights, or images have other channels.
    """
    if not weights.lower().endswith(SUFFIXES):
        raise ValueError(f"weights: {weights!r} is not a file of one of {', '.join(SUFFIXES)}")
    try:
        network = network_of(Path(weights))
    except CheckpointError as error:
        raise ValueError(str(error).replace("path: ", "weights: ", 1)) from error
    channels, height, width = image_shape
    if channels != network.sizes.image:
        raise ValueError(f"weights: a network for {network.sizes.image} channels; images have {channels}")
    code = np.random.RandomState(seed).randn(network.sizes.code, -(-height // BLOCK), -(-width // BLOCK))
    return NonlinearBlur(image_shape, network, torch.from_numpy(SPREAD * code).float(), weights)


def network_of(path: Path) -> Network:
    """The network of a file, frozen; raises a CheckpointError if it has other weights."""
    state = tensors(read(path), path)
    check_intact(path)
    sizes = sizes_of(state, path)
    if MEANS in state and len(state[MEANS]) == sizes.code:
        raise CheckpointError(
            f"path: {str(path)!r} was trained without the VAE, and random codes mean nothing to it; "
            "take a file as GOPRO_wVAE.pth"
        )
    network = empty(lambda: Network(sizes))
    adopt(network, {key: tensor for key, tensor in state.items() if not key.startswith(ENCODER)}, path)
    return network


def sizes_of(state: State, path: Path) -> Sizes:
    """The sizes of a network, by the shapes of its weights; raises a CheckpointError where one is missing."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in state or state[key].ndim != 4:
            found = f"{key!r} has shape {tuple(state[key].shape)}" if key in state else f"no {key!r}"
            raise CheckpointError(f"path: {str(path)!r} is no network of Tran et al. (CVPR 2021): {found}")
        return tuple(state[key].shape)

    before, behind = (blocks(state, part) for part in ("feature_extractor", "recon_trunk"))
    features, channels = shape("feature_extractor.0.weight")[:2]
    code = shape(INNERMOST)[0] - 8 * features
    last = shape(f"recon_trunk.{behind + 6}.weight")[0]
    if code < 1:
        raise CheckpointError(f"path: {str(path)!r} is damaged: {INNERMOST!r} leaves no channel to a code")
    return Sizes(channels, features, code, last, before, behind)


def blocks(state: Mapping[str, Tensor], part: str) -> int:
    """How many residual blocks a part of the network has."""
    return sum(re.fullmatch(rf"{part}\.\d+\.conv1\.weight", key) is not None for key in state)
