"""Metrics of one restored image against its truth, each a number in its row.

Images are compared one at a time, so that a value cannot depend on the batch (batched, the last
digits do). Values are clipped to [0, 1] and not rounded to 8 bits. PSNR is computed in float64; SSIM
and MS-SSIM in float32, where they agree with float64 to 1e-5 and take a twentieth of the time.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]
"""(restored, truth), both (1, C, H, W) float64 in [0, 1], to a scalar."""

MS_SSIM_SMALLEST = 176  # four halvings must leave more than the 11-pixel window


def psnr(restored: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio, dB; infinite for identical images."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return peak_signal_noise_ratio(restored, truth, data_range=1.0)


def ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity, Gaussian window of σ = 1.5 (Wang et al. 2004)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    return structural_similarity_index_measure(restored.float(), truth.float(), data_range=1.0)


def ms_ssim(restored: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale SSIM over five scales (Wang et al. 2003); negative terms count as zero."""
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure as multiscale,
    )

    return multiscale(restored.float(), truth.float(), data_range=1.0, normalize="relu")


REGISTRY: Mapping[str, Metric] = {"ms_ssim": ms_ssim, "psnr": psnr, "ssim": ssim}


def check(names: Sequence[str], size: int) -> None:
    """Refuse metrics that cannot be computed, before anything runs.

    Raises:
        ValueError: an unknown metric, or one that needs larger images.
    """
    for name in names:
        if name not in REGISTRY:
            raise ValueError(f"metrics: no metric {name!r}; choose from {', '.join(sorted(REGISTRY))}")
    if "ms_ssim" in names and size < MS_SSIM_SMALLEST:
        raise ValueError(
            f"metrics: ms_ssim needs images of at least {MS_SSIM_SMALLEST} pixels, data.size is {size}"
        )


def score(names: Sequence[str], restored: Tensor, truth: Tensor) -> dict[str, list[float]]:
    """Every metric for every image of a batch.

    Args:
        restored, truth: (B, C, H, W) in [-1, 1]; `restored` is clipped.
    """
    unit_range = [((x.double() + 1) / 2).clamp(0, 1) for x in (restored, truth)]
    pairs = list(zip(*(torch.split(x, 1) for x in unit_range), strict=True))
    return {name: [float(REGISTRY[name](*pair)) for pair in pairs] for name in names}


def residual(forward_of_restored: Tensor, y: Tensor) -> list[float]:
    """Root mean square of H x̂ − y per image, on the [-1, 1] scale."""
    values: list[float] = (forward_of_restored - y).double().square().mean((1, 2, 3)).sqrt().tolist()
    return values
