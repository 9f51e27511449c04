"""The measures of perception see what they should: equality, blur, and too much texture."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from pipeline.metrics.texture import fine_energy, finest_laplacian, sliced_wasserstein


@pytest.fixture
def truth():
    return torch.randn(4, 3, 32, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_finest_laplacian_level_is_scipys(truth):
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


def test_equal_sets_are_at_distance_zero(truth):
    assert sliced_wasserstein(truth, truth) == 0
    assert fine_energy(truth, truth) == 1


def test_blur_and_noise_are_both_far(truth):
    blurred, noisy = 0.5 * truth, 1.5 * truth
    assert fine_energy(blurred, truth) == pytest.approx(0.25)
    assert fine_energy(noisy, truth) == pytest.approx(2.25)
    # Scaling Gaussian textures by 1 ± ½ moves a projection of deviation σ by ½ E|z| σ = 0.399 σ.
    for other in (blurred, noisy):
        assert sliced_wasserstein(other, truth) == pytest.approx(0.399, rel=0.15)


def test_the_distance_is_that_of_sets_not_of_images(truth):
    """Other textures with the same statistics are near, although every pixel differs."""
    other = torch.randn(truth.shape, generator=torch.Generator().manual_seed(1), dtype=truth.dtype)
    assert sliced_wasserstein(other, truth) < 0.1
