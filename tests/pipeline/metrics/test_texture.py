"""The measure of texture sees what it should: equality, blur, and too much of it."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from scipy.stats import wasserstein_distance

from kintsugi.numerics import finest_laplacian
from kintsugi.pipeline.metrics.distances import FeatureSet, swd
from kintsugi.pipeline.metrics.features import patches


def textures(seed: int) -> np.ndarray:
    """(N, H, W, 3) uint8: white noise of deviation 30."""
    noise = np.random.default_rng(seed).standard_normal((24, 32, 40, 3))
    return (128 + 30 * noise).clip(0, 255).astype(np.uint8)


def sample(pictures: np.ndarray) -> FeatureSet:
    features = np.stack([patches(f"{i}", picture) for i, picture in enumerate(pictures)])
    return FeatureSet(len(features), features=features)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return swd(sample(a), sample(b)).value


def test_the_finest_laplacian_level_is_scipys():
    truth = torch.randn(4, 3, 32, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    taps = np.array([1, 4, 6, 4, 1]) / 16

    def smooth(image):
        for axis in (-2, -1):
            image = scipy.ndimage.correlate1d(image, taps, axis=axis, mode="mirror")
        return image

    spaced = np.zeros(truth.shape)
    spaced[..., ::2, ::2] = 4 * smooth(truth.numpy())[..., ::2, ::2]
    expected = truth.numpy() - smooth(spaced)
    # Next to the border the mirrored zeros of the upsampling differ by parity; inside all agree.
    inside = (..., slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(finest_laplacian(truth)[inside], expected[inside], atol=1e-12)


def test_a_smooth_ramp_has_no_fine_texture():
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    assert finest_laplacian(ramp)[..., 4:-4, 4:-4].abs().max() < 1e-5


def test_equal_sets_are_at_distance_zero():
    assert distance(textures(0), textures(0)) == 0


@pytest.mark.parametrize("contrast", [0.5, 1.5])
def test_blur_and_noise_are_both_far(contrast):
    """Scaling Gaussian textures by 1 ± ½ moves a projection of deviation σ by ½ E|z| σ = 0.399 σ."""
    truth = textures(0)
    other = (128 + contrast * (truth - 128.0)).clip(0, 255).astype(np.uint8)
    assert distance(other, truth) == pytest.approx(0.399, rel=0.1)


def test_the_distance_is_the_mean_of_scipys_over_directions():
    a, b = sample(textures(0) // 2 + 64), sample(textures(0))
    x, y = (each.features.astype(float).reshape(-1, 49, 3) for each in (a, b))
    scale = y.std((0, 1))
    x, y = ((each / scale).reshape(len(each), -1) for each in (x, y))
    directions = np.random.default_rng(0).standard_normal((x.shape[1], 100))
    directions /= np.linalg.norm(directions, axis=0)
    expected = np.mean([wasserstein_distance(x @ one, y @ one) for one in directions.T])
    assert swd(a, b).value == pytest.approx(expected, rel=0.03)


def test_the_distance_is_that_of_sets_not_of_images():
    """Other textures with the same statistics are near, although every pixel differs."""
    assert distance(textures(1), textures(0)) < 0.1
