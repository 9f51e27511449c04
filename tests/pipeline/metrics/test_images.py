"""Metrics of images: against their definitions, independent of the batch, LPIPS from files as published."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from kit.models import is_installed, save_models, save_trunk
from kit.shards import picture
from scipy.ndimage import gaussian_filter

from kintsugi import testing
from kintsugi.pipeline.execution.commit import rows_schema
from kintsugi.pipeline.metrics import IMAGE, REGISTRY, weights
from kintsugi.pipeline.metrics.registry import check, refuse_missing_weights
from kintsugi.pipeline.metrics.scoring import Scorer


def pair(size: int = 100, noise: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    truth = torch.from_numpy(picture(3, 100)).permute(2, 0, 1)[None].float() / 127.5 - 1
    truth = torch.nn.functional.interpolate(truth, (size, size))
    rng = np.random.default_rng(0)
    return truth + noise * torch.from_numpy(rng.standard_normal(truth.shape, np.float32)), truth


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A torch hub with LPIPS's trunks as torchvision's files have them, random."""
    folder = tmp_path_factory.mktemp("torch")
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    for name in ("alexnet", "vgg16"):
        save_trunk(folder / "hub" / "checkpoints", name)
    save_models(folder / "hub" / "checkpoints")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TORCH_HOME", str(folder))
        yield folder / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def scorers(hub):
    """A scorer of each metric, loaded once."""
    return cache(lambda name: Scorer([name]))


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """A machine without any weights and without a network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("it fetched a file"))


INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(not is_installed(metric), reason="its extra is missing"))
    for name, metric in REGISTRY.items()
]


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_every_metric_has_the_properties(name, hub):
    testing.check_metric(name)


@pytest.mark.parametrize("name", [each for each in INSTALLED if each.values[0] in IMAGE])
def test_the_smallest_image_can_be_measured_and_a_smaller_one_is_refused(name, scorers):
    size = IMAGE[name].smallest
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    assert not math.isnan(scorers(name)(0.9 * x, x, x)[name][0])
    check([name], size, True, "truth")
    if size > 1:
        with pytest.raises(ValueError, match=f"metrics: {name} needs images of at least {size} pixels"):
            check([name], size - 1, True, "truth")


@pytest.mark.parametrize("name", [name for name, metric in IMAGE.items() if metric.needs_truth])
def test_identical_images_are_ideal(name, scorers):
    _, truth = pair(max(64, IMAGE[name].smallest))
    ideal = {"higher": math.inf if name in ("psnr", "psnr_y") else 1.0, "lower": 0.0, "one": 1.0}[
        IMAGE[name].better
    ]
    assert scorers(name)(truth, truth)[name] == [pytest.approx(ideal, abs=1e-5)]


@pytest.mark.parametrize("name", IMAGE)
def test_every_image_metric_has_a_column_and_says_what_it_is(name):
    assert str(rows_schema([name]).field(name).type) == "double"
    short, rest = IMAGE[name].about.split("\n", 1)
    assert len(short) < 100
    assert rest


def test_psnr_and_ssim_agree_with_their_definitions():
    restored, truth = pair()
    values = Scorer(["psnr", "ssim"])(restored, truth)
    a, b = (((x.double() + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0).numpy() for x in (restored, truth))
    assert values["psnr"][0] == pytest.approx(-10 * np.log10(((a - b) ** 2).mean()), rel=1e-7)
    assert values["ssim"][0] == pytest.approx(ssim_of_wang(a, b), abs=1e-5)


def ssim_of_wang(a: np.ndarray, b: np.ndarray) -> float:
    """Equation 13 of Wang et al. 2004 with the 11-pixel Gaussian window, borders mirrored."""

    def local_mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, mode="mirror", truncate=3.5, axes=(0, 1))

    ma, mb = local_mean(a), local_mean(b)
    va, vb = local_mean(a * a) - ma**2, local_mean(b * b) - mb**2
    covariance = local_mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * ma * mb + c1) * (2 * covariance + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(index.mean())


@pytest.mark.slow
def test_values_are_torchmetrics_own():
    from torchmetrics import image

    restored, truth = pair(176)
    a, b = (((x.double() + 1) / 2).clamp(0, 1) for x in (restored, truth))
    expected = {
        "psnr": image.PeakSignalNoiseRatio(data_range=1.0)(a, b),
        "ssim": image.StructuralSimilarityIndexMeasure(data_range=1.0)(a, b),
        "ms_ssim": image.MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0, normalize="relu")(a, b),
        "vif": image.VisualInformationFidelity()(255 * a, 255 * b),
        "total_variation": image.TotalVariation()(a) / a.numel(),
    }
    values = Scorer(list(expected))(restored, truth)
    for name, value in expected.items():
        assert values[name][0] == pytest.approx(value.item(), abs=1e-5 if name == "vif" else 1e-6), name


def test_the_spectrum_of_noise_is_its_variance():
    """White noise has its variance at every frequency; of its mean with a neighbour the power is known."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 3, 256, 256, generator=generator, dtype=torch.float64)
    truth, half = 0.2 * noise, 0.1 * noise
    assert Scorer(["spectrum_ratio"])(half, truth)["spectrum_ratio"][0] == pytest.approx(0.25, rel=1e-3)
    # Averaging rows with a copy moved by one, periodically: cos²(π f) of the vertical frequency f.
    blurred = 0.5 * (truth + truth.roll(1, -2))
    rows, columns = (np.fft.fftfreq(256)[:, None], np.fft.fftfreq(256))
    ring = np.rint(256 * np.hypot(rows, columns))
    gain = np.broadcast_to(np.cos(np.pi * rows) ** 2, ring.shape)
    expected = np.exp(np.mean([np.log(gain[ring == k].mean()) for k in range(64, 129)]))
    assert Scorer(["spectrum_ratio"])(blurred, truth)["spectrum_ratio"][0] == pytest.approx(
        expected, rel=0.03
    )


def test_flat_images_have_equal_spectra():
    flat = torch.zeros(1, 3, 32, 32)
    assert Scorer(["spectrum_ratio"])(flat, flat)["spectrum_ratio"] == [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 0.8])
def test_similarity_in_float32_is_torchmetrics_in_float64_to_1e_6(offset):
    """Of a bright image that is nearly flat, too, of which torchmetrics in float32 is 6e-4 away."""
    from torchmetrics.functional import image

    truth = pair(180)[1].double()
    truth = truth if offset == 0 else offset + 1e-3 * truth
    restored = truth * 0.95 + 1e-3 * truth.flip(-1)
    values = Scorer(["ssim", "ms_ssim"])(restored, truth)
    a, b = (((x + 1) / 2).clamp(0, 1) for x in (restored, truth))
    exact = image.structural_similarity_index_measure(a, b, data_range=1.0)
    assert values["ssim"][0] == pytest.approx(exact.item(), abs=1e-6)
    exact = image.multiscale_structural_similarity_index_measure(a, b, data_range=1.0, normalize="relu")
    assert values["ms_ssim"][0] == pytest.approx(exact.item(), abs=1e-6)


@pytest.mark.parametrize(("name", "network"), [("lpips", "alex"), ("lpips_vgg", "vgg")])
def test_lpips_is_torchmetrics_class_with_the_files_of_torch_hub(name, network, scorers):
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    restored, truth = pair(64)
    restored = restored.clamp(-1, 1)
    expected = LearnedPerceptualImagePatchSimilarity(net_type=network)(restored, truth).item()
    assert scorers(name)(restored, truth)[name][0] == pytest.approx(expected, rel=1e-5)
    assert expected > 0


@pytest.mark.slow
def test_lpips_has_the_weights_that_are_in_the_file(scorers, monkeypatch, tmp_path):
    restored, truth = pair(64)
    before = scorers("lpips")(restored, truth)["lpips"]
    state = torch.load(weights.ALEXNET.find())
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({key: -value for key, value in state.items()}, checkpoints / weights.ALEXNET.name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert Scorer(["lpips"])(restored, truth)["lpips"] != before


@pytest.mark.parametrize("name", [name for name, metric in REGISTRY.items() if metric.weights])
def test_missing_weights_are_named_with_place_and_source(name, offline, monkeypatch, tmp_path):
    needed = REGISTRY[name].weights
    place = tmp_path / "hub" / "checkpoints" / needed.name
    monkeypatch.setattr(weights.Weights, "places", property(lambda _: [place]))  # not /tmp, which may have it
    with pytest.raises(weights.MissingWeights) as error:
        refuse_missing_weights(["psnr", name])
    for part in (f"metrics: {name}: ", str(place), needed.url, "leave the metric out"):
        assert part in str(error.value)


def test_the_urls_are_those_of_the_libraries_that_would_fetch():
    from cleanfid.downloads_helper import inception_url
    from cleanfid.inception_pytorch import FID_WEIGHTS_URL
    from torchvision.models import AlexNet_Weights, VGG16_Weights

    assert weights.ALEXNET.url == AlexNet_Weights.DEFAULT.url
    assert weights.VGG16.url == VGG16_Weights.DEFAULT.url
    assert (weights.INCEPTION.url, weights.PT_INCEPTION.url) == (inception_url, FID_WEIGHTS_URL)


def test_a_file_in_a_folder_of_all_is_used_only_if_nobody_else_can_write_it(offline, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    needed = weights.Weights("a network", "https://example.org/net.pt", str(shared))
    file = shared / "net.pt"
    file.touch(0o600)
    assert needed.find() == file
    assert needed.describe().endswith(f", in {shared}")
    link = shared / "link.pt"
    link.symlink_to(file)
    assert not weights.trusted(link), "whoever owns it may point it elsewhere"
    file.chmod(0o666)
    with pytest.raises(weights.MissingWeights, match="can be written by others"):
        needed.find()
    needed.places[0].parent.mkdir(parents=True)
    file.rename(needed.places[0])  # which the user names by TORCH_HOME
    assert needed.find() == needed.places[0]


def test_a_metric_without_truth_needs_none():
    restored, _ = pair()
    assert Scorer(["total_variation"])(restored, None)["total_variation"][0] > 0


def test_a_file_that_is_not_the_published_one_is_said_to_be_so(hub):
    assert weights.ALEXNET.describe().endswith("NOT the published file")


@pytest.mark.parametrize(
    ("names", "has_truth", "reference", "what"),
    [
        (["psnrr"], True, "truth", "no metric 'psnrr'; choose from blur, "),
        (["psnr"], False, "truth", "psnr compares with the truth"),
        (
            ["fid"],
            False,
            "truth",
            "fid compares with the truth, .* do not have; set reference",
        ),
        (["swd"], True, "some/folder", "swd compares with the truth of the run"),
    ],
)
def test_metrics_without_what_they_compare_with_are_refused(names, has_truth, reference, what):
    with pytest.raises(ValueError, match=what):
        check(names, 256, has_truth, reference)
    check(["total_variation"], 256, False, "truth")
    check(["fid", "total_variation"], 256, False, "some/folder")
