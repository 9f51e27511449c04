"""Temporal metrics of two frames, where they are closed forms; what a plug-in's must be."""

import numpy as np
import pytest
from kit.shards import photograph

from kintsugi import testing
from kintsugi.errors import SpecError
from kintsugi.pipeline.metrics import CLIPS, ClipMetric
from kintsugi.pipeline.metrics.clips import flicker, flow, tof
from kintsugi.pipeline.metrics.registry import check


def moving(columns: int, frames: int = 2, side: int = 64) -> np.ndarray:
    """Crops of a photograph, each `columns` to the left of the one before: it seems to move to the right."""
    return np.stack([photograph()[32 : 32 + side, 40 - i * columns :][:, :side] for i in range(frames)])


@pytest.mark.parametrize("name", list(CLIPS))
def test_they_have_the_properties(name):
    testing.check_metric(name)


def test_an_error_that_stands_still_does_not_flicker():
    truth = moving(2)
    assert flicker(truth + 0.1, truth) == pytest.approx(0, abs=1e-15)


def test_an_error_that_changes_its_sign_flickers_by_twice_its_size():
    truth, delta = moving(2), 0.03
    restored = truth + np.array([delta, -delta]).reshape(2, 1, 1, 1)
    assert flicker(restored, truth) == pytest.approx(2 * delta)


def test_independent_errors_flicker_by_the_root_of_two_times_their_rms():
    truth, error = (
        np.zeros((2, 128, 128, 3)),
        0.05 * np.random.default_rng(0).standard_normal((2, 128, 128, 3)),
    )
    assert flicker(truth + error, truth) == pytest.approx(2**0.5 * 0.05, rel=0.01)


def test_rounding_flickers_as_the_text_says():
    truth, rounded = (
        np.zeros((2, 128, 128, 3)),
        np.random.default_rng(0).uniform(-0.5, 0.5, (2, 128, 128, 3)) / 255,
    )
    assert flicker(truth + rounded, truth) == pytest.approx(0.0016, abs=2e-5)
    assert "0.0016" in CLIPS["flicker"].about


def test_the_flow_is_by_how_much_the_picture_moved():
    """But for what is nearly flat, and comes in at the border."""
    rows, columns = flow(moving(2))[:, 8:-8, 8:-8]
    assert np.quantile(np.abs(rows), 0.9) < 0.01
    assert np.quantile(np.abs(columns - 2), 0.9) < 0.01


def test_of_equal_motion_tof_is_0_and_of_a_clip_that_stands_still_the_whole_way():
    truth = moving(2)
    assert tof(truth, truth) == 0
    still = np.stack([truth[0], truth[0]])
    assert np.abs(flow(still)).max() < 1e-6
    assert tof(still, truth) == pytest.approx(np.linalg.norm(flow(truth), axis=0).mean(), rel=1e-5)
    assert tof(still, truth) == pytest.approx(2, abs=0.3)


def test_grey_frames_have_the_flow_of_colours_that_are_equal():
    grey = moving(2)[..., :1]
    np.testing.assert_allclose(flow(grey), flow(grey.repeat(3, -1)), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("tof", {"size": 8}, "tof needs images of at least 16 pixels"),
        ("tof", {"channels": 4}, "tof is of images with 1 or 3 channels"),
        ("flicker", {"has_truth": False}, "flicker compares with the truth, which measurements do not have"),
    ],
)
def test_what_cannot_be_computed_is_refused(name, given, why):
    known = {"size": 32, "has_truth": True, "reference": "truth"}
    with pytest.raises(SpecError, match=why):
        check([name], **known | given)


def test_one_that_is_wrong_is_found():
    def worse(restored, truth):
        return 1 - flicker(restored, truth)

    with pytest.raises(AssertionError, match="with more noise it is"):
        testing.check_clip_metric(ClipMetric("bad", "lower", "", worse))
