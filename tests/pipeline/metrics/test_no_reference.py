"""Measures without a truth: each against an independent computation, and that it sees what it is for."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.measure import blur_effect

from kintsugi.pipeline.metrics.scoring import Scorer


def texture(sigma: float = 0.0, blur: float = 0.0) -> torch.Tensor:
    """A smooth image (1, 3, 96, 80) on [-1, 1], blurred by so many pixels, with white noise."""
    rng = np.random.default_rng(0)
    x = gaussian_filter(rng.standard_normal((3, 96, 80)), (0, 2, 2))
    x = gaussian_filter(0.5 * x / np.abs(x).max(), (0, blur, blur))
    return torch.from_numpy(x + sigma * rng.standard_normal(x.shape))[None]


@pytest.mark.parametrize("sigma", [0.05, 0.2])
def test_noise_is_found_on_the_scale_of_zero_to_one(sigma):
    (found,) = Scorer(["noise"])(texture(sigma), None)["noise"]
    assert found == pytest.approx(sigma / 2, rel=0.05)


def test_blur_is_that_of_scikit_image_and_grows_with_blur():
    found = [Scorer(["blur"])(texture(blur=width), None)["blur"][0] for width in (0.5, 1, 2, 4)]
    assert found == sorted(found)
    image = (texture(blur=2)[0].permute(1, 2, 0).numpy() + 1) / 2
    assert found[2] == pytest.approx(blur_effect(image, channel_axis=2), abs=1e-12)
    (of_four,) = Scorer(["blur"])(torch.cat([texture(), texture()[:, :1]], 1), None)["blur"]
    assert of_four == pytest.approx(blur_effect((texture()[0, [0, 0, 1, 2]].mean(0).numpy() + 1) / 2))
