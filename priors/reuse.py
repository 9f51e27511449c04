"""The deep features of a U-Net, computed in every N-th evaluation of a restoration and reused between.

What a U-Net computes at its coarser levels changes slowly from step to step: the other evaluations run the
finest level alone, with what was last passed up to it. Source: DeepCache (Ma et al., CVPR 2024, 2312.00858).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, is_grad_enabled, nn

from kintsugi.errors import SpecError
from kintsugi.priors.base import Parametrization, Prior, innermost
from kintsugi.priors.paths import Path


class Reusing:
    """A prior of which every N-th evaluation is whole, from the first of a restoration on.

    The others take the features of the last whole one. Where the prior calls its network several times, for
    tiles or groups of channels, each call has its own.

    Args:
        prior: one whose network is a `UNet2DModel`, as it is or within others (tiles, groups). every: N.

    Raises:
        SpecError: the network has no coarser level, or passes images beside its features.
    """

    def __init__(self, prior: Prior, every: int):
        self.prior, self.every = prior, every
        self.path: Path = prior.path
        self.parametrization: Parametrization = prior.parametrization
        self.sha256: str | None = getattr(prior, "sha256", None)
        self.unet = unet_of(prior)
        self.calls = 0
        self.features: list[Tensor] = []

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """One restoration of one batch: it finds no features of others, and leaves none."""
        self.calls, self.features = 0, []
        try:
            yield
        finally:
            self.features = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if x.requires_grad and is_grad_enabled():
            raise SpecError("compute.reuse: features of another evaluation have no derivative; leave it out")
        last = self.unet.up_blocks[-1]
        whole = self.calls % self.every == 0
        self.calls += 1
        if whole:
            kept = self.features = []
            with last.register_forward_pre_hook(lambda _, given: kept.append(given[0])):
                return self.prior(x, t)
        features = iter(self.features)
        with (
            finest_alone(self.unet),
            last.register_forward_pre_hook(lambda _, given: (next(features), *given[1:])),
        ):
            return self.prior(x, t)


def unet_of(prior: Any) -> Any:
    """The `UNet2DModel` of a prior within others; raises a SpecError as `Reusing`."""
    from diffusers import UNet2DModel

    network = getattr(innermost(prior), "network", None)
    modules = network.modules() if isinstance(network, nn.Module) else ()
    unet = next((module for module in modules if isinstance(module, UNet2DModel)), None)
    # Skips of images, as rectified flow's, begin below the finest level.
    if unet is None or len(unet.up_blocks) < 2 or hasattr(unet.up_blocks[-1], "skip_conv"):
        raise SpecError("reuse: the prior's network is no U-Net whose coarser levels can be reused")
    return unet


@contextmanager
def finest_alone(unet: Any) -> Iterator[None]:
    """The network without what lies below its finest level."""
    first, last = unet.down_blocks[0], unet.up_blocks[-1]
    alone = [
        (first, "downsamplers", None),
        (unet, "down_blocks", nn.ModuleList([first])),
        (unet, "mid_block", None),
        (unet, "up_blocks", nn.ModuleList([last])),
    ]
    whole = [(module, name, getattr(module, name)) for module, name, _ in alone]
    try:
        for module, name, part in alone:
            setattr(module, name, part)
        yield
    finally:
        for module, name, part in whole:
            setattr(module, name, part)
