"""Measures without a truth: each against an independent computation, and that it sees what it is for."""

import numpy as np
import pytest
import torch
from kit.jobs import kintsugi
from kit.models import save_models
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import gennorm
from skimage.data import chelsea
from skimage.measure import blur_effect

from kintsugi.pipeline.metrics import IMAGE, weights
from kintsugi.pipeline.metrics.luma import luma
from kintsugi.pipeline.metrics.registry import refuse_missing_weights
from kintsugi.pipeline.metrics.scenes import asymmetric_fit, block_features, halved, normalised
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


def cat() -> torch.Tensor:
    """A photograph, (1, 3, 300, 451) on [-1, 1]."""
    return torch.from_numpy(chelsea()).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A torch hub with models that mean nothing."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    save_models(folder)
    return folder


FEATURES_OF_BASICSR = (
    *(2.0618, 0.7065, 0.6837, 0.0797, 0.0809, 0.1136, 0.7099, 0.0388, 0.0928),
    *(0.1153, 0.6983, -0.0232, 0.1114, 0.0929, 0.6813, 0.0097, 0.0956, 0.0964),
    *(2.1870, 0.7565, 0.7443, 0.0895, 0.0891, 0.1367, 0.7425, 0.0486, 0.0963),
    *(0.1284, 0.7273, -0.0079, 0.1115, 0.1061, 0.7373, 0.0020, 0.1106, 0.1093),
)
"""Mean over the blocks of that photograph's luma, by compute_feature of BasicSR 1.4.2 (NumPy and SciPy)."""


def test_features_of_natural_scenes_are_those_of_basicsr():
    found = block_features(luma((cat().double() + 1) / 2).round())
    assert found.shape == (12, 36)
    np.testing.assert_allclose(found.mean(0).numpy(), FEATURES_OF_BASICSR, atol=2e-4)


def test_halving_is_the_cubic_filter_of_twice_the_width():
    x = luma((cat().double() + 1) / 2)
    image = Image.fromarray(x[0, 0].numpy().astype(np.float32))
    expected = np.array(image.resize((225, 150), Image.Resampling.BICUBIC, box=(0, 0, 450, 300)))
    within = slice(3, -3)  # Pillow leaves out what lies beyond the border
    np.testing.assert_allclose(halved(x)[0, 0].numpy()[within, within], expected[within, within], atol=1e-3)


def test_a_generalised_gaussian_is_fitted():
    x = torch.from_numpy(gennorm.rvs(1.5, scale=2.0, size=200_000, random_state=np.random.default_rng(0)))
    x = torch.where(x < 0, 0.5 * x, x)  # the left half as wide, of as many values
    x = torch.cat([x[x > 0], x[x < 0][: int((x > 0).sum()) // 2]])
    assert [float(value) for value in asymmetric_fit(x)] == pytest.approx([1.5, 1.0, 2.0], rel=0.03)


def test_what_is_normalised_is_less_its_local_mean():
    x = 255 * torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def local_mean(of: np.ndarray) -> np.ndarray:
        return gaussian_filter(of, 7 / 6, radius=3, mode="nearest")

    levels = x[0, 0].numpy()
    deviation = np.sqrt(np.abs(local_mean(levels**2) - local_mean(levels) ** 2))
    expected = (levels - local_mean(levels)) / (deviation + 1)
    np.testing.assert_allclose(normalised(x)[0, 0].numpy(), expected, atol=1e-9)


def test_niqe_is_the_distance_from_its_model(hub):
    """Of a model with the image's own features it is 0; and of one that is away by d, √(dᵀ C⁺ d)."""
    found = block_features(luma((cat().double() + 1) / 2).round()).numpy()
    covariance, away = np.cov(found, rowvar=False), np.linspace(0, 1, 36)
    for shift in (0 * away, away):
        np.savez(hub / weights.NIQE.name, mu_pris_param=found.mean(0) + shift, cov_pris_param=covariance)
        (value,) = Scorer(["niqe"])(cat(), None)["niqe"]
        assert value == pytest.approx(np.sqrt(shift @ np.linalg.pinv(covariance) @ shift), rel=1e-3, abs=1e-6)
    small, flat = cat()[..., :100, :150], torch.zeros(1, 3, 200, 200)
    assert np.isnan(Scorer(["niqe"])(small, None)["niqe"] + Scorer(["niqe"])(flat, None)["niqe"]).all()


@pytest.mark.parametrize("content", [b"no model", b""])
def test_a_file_that_is_no_model_of_niqe_is_named(hub, content):
    (hub / weights.NIQE.name).write_bytes(content)
    with pytest.raises(Exception, match=r"niqe_pris_params\.npz holds no model"):
        Scorer(["niqe"])


def test_brisque_is_that_of_piq(hub):
    piq = pytest.importorskip("piq")
    image = texture(0.05)
    expected = piq.brisque(((image + 1) / 2).clamp(0, 1)).item()
    assert Scorer(["brisque"])(image, None)["brisque"] == [pytest.approx(expected)]
    assert np.isnan(Scorer(["brisque"])(0 * image, None)["brisque"][0])


def test_a_package_that_is_missing_is_told_before_work_starts(hub, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(weights.MissingWeights, match=r"metrics: brisque: .*pip install 'kintsugi\[iqa\]'"):
        refuse_missing_weights(["psnr", "brisque"])
    assert "pip install 'kintsugi[iqa]'" in kintsugi("list", "metrics").output


def test_what_needs_no_truth_is_given_to_measurements_without_one():
    free = {name for name, metric in IMAGE.items() if not metric.needs_truth}
    assert free == {"total_variation", "noise", "blur", "niqe", "brisque", "prior_error"}
