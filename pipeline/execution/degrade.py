"""What is done to a batch beside restoring it: noise, estimates without a network, levels of pictures."""

import numpy as np
import torch
from torch import Tensor

from kintsugi.operators import Operator, Solved
from kintsugi.pipeline.data.depth import rounded
from kintsugi.pipeline.parts import Degradation
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.lmmse import linear_mmse, solved_mmse


def baselines(operator: Operator, y: Tensor, sigma_y: float) -> dict[str, Tensor]:
    """What measurements give without a network, (B, C, H, W): H⁺y, and of a matrix H the linear MMSE.

    Each by itself, so that the last digits do not depend on the batch.
    """
    single = [operator.pinv(y[i : i + 1]) for i in range(len(y))]
    found = {"pinv": torch.cat(single)}
    if isinstance(operator, Solved):
        found["lmmse"] = torch.cat([solved_mmse(operator, y[i : i + 1], sigma_y) for i in range(len(y))])
    elif operator.linear:
        known = map(operator.to_spectral, single)
        found["lmmse"] = torch.cat([linear_mmse(operator, each, sigma_y) for each in known])
    return found


def add_noise(y: Tensor, degradation: Degradation, noise: KeyedNoise) -> Tensor:
    """The measurement (B, …): y on the [-1, 1] scale with the job's noise, keyed by sample."""
    if (photons := degradation.poisson) is not None:
        rates = photons * ((y + 1) / 2).clamp_min(0)
        y = noise.poisson("photons", rates) / photons * 2 - 1
    if degradation.gaussian > 0:
        y = y + degradation.gaussian * noise.normal("measurement", tuple(y.shape[1:])).to(y)
    return y


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """An image as it was read, uint8 or float32 on [-1, 1], as uint8."""
    return picture if picture.dtype == np.uint8 else rounded(picture)


def levels(x: Tensor, bits: int) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] → (B, H, W, C) uint8 or uint16, clipped and rounded."""
    top = 2**bits - 1
    values = ((x + 1) * (top / 2)).round().clamp(0, top).permute(0, 2, 3, 1)
    array: np.ndarray = values.to(torch.uint8 if bits == 8 else torch.int32).cpu().numpy()
    return array.astype(np.uint16) if bits == 16 else array
