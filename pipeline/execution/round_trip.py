"""What the autoencoder of a prior of latents loses of the truth: the bound of what it can restore."""

from torch import Tensor

from kintsugi.pipeline.execution.problems import Prepared
from kintsugi.pipeline.metrics.images.psnr import psnr
from kintsugi.pipeline.metrics.scoring import of_unit
from kintsugi.priors.base import autoencoder_of
from kintsugi.samplers.decoded import Decoded


def round_trip(problem: Prepared, truth: Tensor | None) -> dict[str, list[float]]:
    """PSNR of D(E(x)) for true images x (B, C, H, W) on [-1, 1], each by itself; {} of a prior of pixels."""
    if truth is None or (autoencoder := autoencoder_of(problem.metered)) is None:
        return {}
    coder = Decoded(problem.operator, autoencoder)
    pairs = [(coder.image(coder.latents_of(one[None])), one[None]) for one in truth]
    return {"round_trip": [psnr(of_unit(again), of_unit(one)).item() for again, one in pairs]}
