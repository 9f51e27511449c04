"""z-scores and coverage of a few samples, against draws of which all is known."""

import math

import numpy as np
import pytest
import torch

from kintsugi.pipeline.metrics.calibration import calibration, z_scores
from kintsugi.pipeline.metrics.registry import CALIBRATION, COVERAGE


def draws(count: int, images: int = 20, scale: float = 1.0) -> dict[str, np.ndarray]:
    """The values of truths and samples that are independent draws; `scale`: of the samples' deviation."""
    generator = torch.Generator().manual_seed(count)
    drawn = torch.randn(count + 1, images, 3, 40, 40, generator=generator, dtype=torch.float64)
    truth, samples = drawn[0] * 0.2 + 0.3, drawn[1:] * 0.2 * scale + 0.3
    found = calibration(truth, samples.mean(0), samples.std(0), count)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("count", [2, 3, 4, 8, 16])
def test_of_any_number_of_samples_coverage_and_z_scores_are_nominal(count):
    found = draws(count)
    assert tuple(found) == CALIBRATION
    for name, share in COVERAGE.items():
        error = math.sqrt(share * (1 - share) / (20 * 3 * 40 * 40))
        assert abs(found[name].mean() - share) < 4 * error, name
    assert found["z_mean"].mean() == pytest.approx(0, abs=4 / math.sqrt(96_000))
    assert (found["z_rms"] ** 2).mean() == pytest.approx(1, abs=4 * math.sqrt(2 / 96_000))
    assert found["error_rms"] == pytest.approx(0.2 * math.sqrt(1 + 1 / count), rel=0.06)


def test_samples_that_are_too_sure_cover_less_and_too_unsure_ones_more():
    sure, unsure = draws(4, scale=0.5), draws(4, scale=2)
    for name, share in COVERAGE.items():
        assert sure[name].max() < share - 0.02
        assert unsure[name].min() > share + 0.01
    assert sure["z_rms"].min() > 1.2 > 0.8 > unsure["z_rms"].max()


def test_samples_that_agree_are_right_or_miss():
    """Pixels of no deviation count where the truth is elsewhere, and only there."""
    truth = torch.zeros(2, 3, 4, 4)
    truth[1, :, :2] = 0.5
    found = calibration(truth, torch.zeros_like(truth), torch.zeros_like(truth), 4)
    assert all(math.isnan(found[name][0]) for name in (*COVERAGE, "z_mean", "z_rms"))
    assert found["error_rms"] == pytest.approx([0, 0.5 / math.sqrt(2)])
    assert {found[name][1] for name in COVERAGE} == {0}
    assert 30 < found["z_rms"][1] < 40


def test_a_z_score_has_the_sign_of_the_error_and_the_probability_of_t():
    """Of two samples t is Cauchy's, whose distribution is ½ + arctan(t) / π."""
    z = z_scores(np.array([-1.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0]), 2)
    t = np.array([-1.0, 0.0, 2.0]) / math.sqrt(1.5)
    normal = [0.5 * math.erfc(-one / math.sqrt(2)) for one in z]
    np.testing.assert_allclose(normal, 0.5 + np.arctan(t) / math.pi, atol=1e-12)
