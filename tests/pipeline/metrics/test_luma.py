"""PSNR and SSIM of the luma: against computations by the letter of BasicSR's, in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d
from skimage.color import rgb2ycbcr

from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.scoring import Scorer


def pair(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A texture and the same with noise, on [-1, 1] and beyond, not rounded."""
    rng = np.random.default_rng(0)
    truth = np.cumsum(np.cumsum(rng.standard_normal((channels, 40, 33)), 1), 2)
    truth = torch.from_numpy(2 * (truth - truth.min()) / np.ptp(truth) - 1)[None]
    return truth + 0.1 * torch.from_numpy(rng.standard_normal(truth.shape)), truth


def eight_bits(x: torch.Tensor) -> np.ndarray:
    """(H, W, C) uint8, as a PNG holds it."""
    return np.rint((x[0].permute(1, 2, 0).numpy() + 1).clip(0, 2) * 127.5).astype(np.uint8)


def lumas() -> list[np.ndarray]:
    """Of the pair, (H, W) float64 up to 255, by scikit-image's matrix."""
    return [rgb2ycbcr(eight_bits(x))[..., 0] for x in pair()]


def ssim_of_basicsr(a: np.ndarray, b: np.ndarray) -> float:
    """Wang's formula on [0, 255] where the 11-pixel window lies within the image."""
    window = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2

    def local(x: np.ndarray) -> np.ndarray:
        return convolve2d(x, window, mode="valid")

    ma, mb = local(a), local(b)
    va, vb, covariance = local(a * a) - ma**2, local(b * b) - mb**2, local(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(
        ((2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()
    )


def test_the_luma_is_that_of_eight_bits_in_studio_swing():
    ends = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]).double()[None, :, None]
    assert luma(ends).flatten().tolist() == pytest.approx([16, 235], abs=1e-9)
    for x, expected in zip(pair(), lumas(), strict=True):
        np.testing.assert_allclose(luma((x + 1).clamp(0, 2) / 2)[0, 0].numpy(), expected, atol=1e-3)


def test_psnr_and_ssim_are_those_of_the_lumas():
    a, b = lumas()
    values = Scorer(["psnr_y", "ssim_y"])(*pair())
    assert values["psnr_y"][0] == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()), abs=1e-4)
    assert values["ssim_y"][0] == pytest.approx(ssim_of_basicsr(a, b), abs=1e-5)


def test_grey_is_its_own_luma():
    a, b = (eight_bits(x)[..., 0].astype(float) for x in pair(1))
    values = Scorer(["psnr_y", "ssim_y"])(*pair(1))
    assert values["psnr_y"][0] == pytest.approx(10 * np.log10(255**2 / ((a - b) ** 2).mean()), rel=1e-6)
    assert values["ssim_y"][0] == pytest.approx(ssim_of_basicsr(a, b), abs=1e-5)
