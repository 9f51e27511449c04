"""The metrics of a run's clips: which frames are compared, and what is said where they cannot be."""

import numpy as np
import pytest
from kit.jobs import kintsugi
from kit.runs import made_up
from kit.shards import SIZE, encode, photograph, write_tar
from pydantic import ValidationError

import kintsugi as package
from kintsugi.pipeline.analysis.set_metrics import set_metrics
from kintsugi.pipeline.execution import commit
from kintsugi.pipeline.storage.publish import publish_bytes

GREY = np.full((SIZE, SIZE, 3), 100, np.uint8)


@pytest.fixture
def clips_job(make_job, tmp_path):
    """A job on frames with these keys, in this order, which names metrics of clips."""

    def make(keys, metrics=("flicker",), **fields):
        shard = write_tar(tmp_path / "clips.tar", [(f"{key}.png", encode(GREY)) for key in keys])
        data = {"shards": str(shard), "size": SIZE}
        return make_job(**{"data": data, "images": "all", "metrics": list(metrics), **fields})

    return make


def of_levels(job, levels, **how):
    """A run whose restored frames are as much brighter than grey as these levels of 255."""
    restored = [encode(GREY + np.uint8(level)) for level in levels]
    return made_up(job, {"restored": restored, "truth": [encode(GREY)] * len(levels)}, **how)


def test_it_is_the_mean_over_clips_of_the_mean_over_pairs(clips_job):
    """By numbers, not by the alphabet or the tar: 2, 10, 11 of a, in two units, among frames of b."""
    run = of_levels(clips_job(["a/11", "b/1", "a/10", "b/2", "a/9"]), [10, 0, 4, 8, 4])
    found = set_metrics(run)["flicker"]
    each = [np.mean([0, 6]) / 255, 8 / 255]
    assert found.value == pytest.approx(np.mean(each))
    assert (found.n, found.warnings, found.reference) == (2, (), "the truth")
    half = 12.706 * np.std(each, ddof=1) / 2**0.5
    assert (found.low, found.high) == pytest.approx((0, np.mean(each) + half), abs=1e-5)


@pytest.mark.parametrize("failed", [(), (2,)], ids=["not there", "failed"])
def test_pairs_across_a_gap_are_left_out_and_counted(clips_job, failed):
    keys, levels = ["a1", "a2", "a3", "a4"], [0, 2, 100, 3]
    if not failed:
        del keys[2], levels[2]
    found = set_metrics(of_levels(clips_job(keys), levels, failed=failed))["flicker"]
    assert found.value == pytest.approx(2 / 255)
    assert (found.low, found.high) == (None, None), "of one clip"
    assert found.warnings == ("left out where frames between have failed or are not there: 1 pairs",)


def test_without_consecutive_frames_there_is_no_number_and_the_reason(clips_job):
    found = set_metrics(of_levels(clips_job(["a", "b", "c2", "c4"]), [0, 0, 0, 0]))["flicker"]
    assert found.value is None
    assert found.warnings[-1].startswith("not computed: no clip has two frames with consecutive numbers")


def test_frames_of_other_sizes_are_no_clip(clips_job):
    columns = {"restored": [encode(GREY), encode(GREY[:16])], "truth": [encode(GREY), encode(GREY[:16])]}
    found = set_metrics(made_up(clips_job(["a1", "a2"]), columns))["flicker"]
    assert found.warnings == ("not computed: frames of a clip have different sizes, 32x32 and 32x16",)


def test_they_are_kept_and_computed_anew_when_frames_change(clips_job, monkeypatch):
    job = clips_job(["a1", "a2", "a3", "a4"])
    before = set_metrics(of_levels(job, [0, 2, 4, 6], units=1))
    run = of_levels(job, [0, 2, 4, 10])
    now = set_metrics(run)
    assert (before["flicker"].value, now["flicker"].value) == pytest.approx((2 / 255, 10 / 3 / 255))
    monkeypatch.setattr(commit, "refuse_nonsense", None)  # no row is read
    assert set_metrics(run)["flicker"] == now["flicker"]


@pytest.mark.slow
def test_a_run_reports_and_lists_them_beside_metrics_of_sets(clips_job, tmp_path):
    """Frames of a moving crop, restored: the motion is nearly the true one."""
    frames = [(photograph()[40:72, 40 + i : 72 + i] * 255).round().astype(np.uint8) for i in range(4)]
    job = clips_job([], ["tof", "psnr", "swd", "flicker"])
    write_tar(tmp_path / "clips.tar", [(f"a/{i}.png", encode(frame)) for i, frame in enumerate(frames)])
    run = package.run(job)
    sets = run.results()["sets"]
    assert list(sets) == ["tof", "swd", "flicker"]
    assert 0 < sets["tof"]["value"] < 2
    pictures = [
        [np.asarray(run.picture(f"a/{i}", of)) / 255 for i in range(4)] for of in ("restored", "truth")
    ]
    change = np.diff(np.subtract(*pictures), axis=0)
    assert sets["flicker"]["value"] == pytest.approx(np.sqrt(np.square(change).mean((1, 2, 3))).mean())
    text = run.report.with_name("report.md").read_text()
    assert "flicker ↓" in text
    assert "tOF, pixels ↓" in text
    assert "tof" in kintsugi("list", "metrics").output


def test_restored_clips_of_another_method_are_measured(tmp_path):
    for name, levels in (("restored", [0, 5]), ("true", [0, 0])):
        for number, level in enumerate(levels):
            (tmp_path / name / "a").mkdir(parents=True, exist_ok=True)
            publish_bytes(tmp_path / name / "a" / f"{number}.png", encode(GREY + np.uint8(level)))
    folders = tmp_path / "restored", tmp_path / "true"
    scored = kintsugi("score", *folders, "--metrics", "psnr,flicker", "--out", tmp_path / "out")
    assert scored.exit_code == 0, scored.output
    value = package.open_run(tmp_path / "out").results()["sets"]["flicker"]["value"]
    assert value == pytest.approx(5 / 255)


@pytest.mark.parametrize("images", ["none", "restored"])
def test_without_pictures_of_the_frames_they_are_refused_before_work(clips_job, images):
    with pytest.raises(ValidationError, match=r"metrics: flicker compares the pictures.*; set images=all"):
        clips_job(["a1", "a2"], images=images)
