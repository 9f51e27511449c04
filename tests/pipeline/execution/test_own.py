"""Samples with parameters of their own: alone as in any batch, in process as on Ray, in the rows."""

import io

import numpy as np
import pytest
from kit.jobs import execute, rows
from kit.shards import SIZE, encode, picture, samples, write_tar
from PIL import Image

from kintsugi import operators
from kintsugi.pipeline.analysis.report.write import write_report
from kintsugi.pipeline.execution.rows import cells
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.stage import Stage

UNIFORM = {"draw": "uniform", "low": 1.0, "high": 2.0}
KEYS = [f"image_{i:03d}" for i in range(5)]
DEGRADATIONS = {
    "masks": {"operator": {"name": "inpaint", "mask": {"draw": "freeform", "holes": [0.1, 0.3]}}},
    "widths": {"operator": {"name": "gaussian_blur", "taps": 9, "sigma": UNIFORM}},
    "kernels": {"operator": {"name": "blur", "kernel": {"draw": "motion", "size": 9}}, "sigma": 0.02},
    "levels": {
        "operator": {"name": "average_pool", "factor": 4},
        "sigma": {"draw": "uniform", "low": 0.01, "high": 0.1},
    },
    "parts": {
        "operator": {
            "name": "compose",
            "operators": [
                {"name": "gaussian_blur", "taps": 9, "sigma": UNIFORM},
                {"name": "average_pool", "factor": 2},
            ],
        },
        "sigma": 0.02,
    },
    "solved": {"operator": {"name": "blur", "kernel": {"draw": "motion", "size": 5}, "boundary": "valid"}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("degradation", "name"), [*((each, "conjugate") for each in DEGRADATIONS), ("solved", "ddnm")]
)
def test_a_sample_is_restored_as_in_any_batch(make_job, degradation, name):
    sampler, degradation = {"name": name, "steps": 2}, DEGRADATIONS[degradation]
    job = make_job(degradation=degradation, sampler=sampler, compute={"batch_size": 5, "cpus_per_actor": 1})
    stage = Stage(job, "cpu")
    batch = samples(KEYS, map(picture, range(5)))
    together = stage.run(batch)
    assert len({str(cells(*value, False)) for found in together for value in found.own.values.items()}) == 5
    for sample, found in zip(batch, together, strict=True):
        (alone,) = stage.run([sample])
        assert np.abs(alone.restored.astype(int) - found.restored).max() <= 1
        for name, value in alone.metrics.items():
            assert found.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
        assert found.residual == pytest.approx(alone.residual, rel=1e-3, abs=1e-5)


def test_the_row_has_the_value_that_was_used_and_a_drawn_mask_its_file(make_job):
    degradation = {
        "operator": {"name": "inpaint", "mask": {"draw": "random", "keep": [0.2, 0.8]}},
        "sigma": {"draw": "uniform", "low": 0.0, "high": 0.1},
    }
    found = rows(execute(make_job(degradation=degradation, images="all")))
    assert len({row["operator_mask"] for row in found}) == len({row["sigma"] for row in found}) == len(found)
    for row in found:
        mask = np.array(Image.open(io.BytesIO(row["operator_mask_file"])))
        y = np.array(Image.open(io.BytesIO(row["measurement"])))
        truth = np.array(Image.open(io.BytesIO(row["truth"])))
        assert set(np.unique(mask)) == {0, 255}
        error = (y.astype(float) - truth)[mask == 255] / 255
        assert 0 <= row["sigma"] <= 0.1
        assert np.std(error) <= 1.3 * row["sigma"] + 0.01


@pytest.mark.slow
def test_continuing_and_batch_sizes_change_no_value(make_job, tmp_path):
    degradation = DEGRADATIONS["masks"]
    whole = execute(make_job(degradation=degradation))
    others = {
        "compute": {"batch_size": 1, "unit_size": 2, "cpus_per_actor": 1},
        "output": str(tmp_path / "b"),
    }
    apart = execute(make_job(degradation=degradation, **others))
    assert [row["operator_mask"] for row in rows(whole)] == [row["operator_mask"] for row in rows(apart)]


def tar_with_masks(path, count=4, **members):
    """Pictures, each with a mask in which another quarter is black."""
    files = []
    for i in range(count):
        mask = np.full((SIZE, SIZE), 255, np.uint8)
        mask[(i // 2) * 16 :, (i % 2) * 16 :][:16, :16] = 0
        files += [(f"{i}.png", encode(picture(i))), (f"{i}.mask.png", encode(mask))]
    return write_tar(path, files)


def test_masks_beside_the_images_are_those_of_their_rows(make_job, tmp_path):
    shard = tar_with_masks(tmp_path / "s.tar")
    operator = {"name": "inpaint", "mask": {"member": "mask.png"}, "known": "white"}
    job = make_job(
        data={"shards": str(shard), "size": SIZE}, degradation={"operator": operator}, images="all"
    )
    found = rows(execute(job))
    assert [(row["key"], row["status"]) for row in found] == [(str(i), "ok") for i in range(4)]
    for i, row in enumerate(found):
        mask = np.array(Image.open(io.BytesIO(row["operator_mask_file"])))
        assert mask[(i // 2) * 16 + 8, (i % 2) * 16 + 8] == 0
        assert (mask == 0).sum() == 256


def test_a_sample_whose_file_is_missing_or_broken_fails_alone(make_job, tmp_path):
    good = encode(np.eye(SIZE, dtype=np.uint8) * 255)
    files = [("a.png", encode(picture(0))), ("a.mask.png", good), ("b.png", encode(picture(1)))]
    files += [("c.png", encode(picture(2))), ("c.mask.png", b"nonsense")]
    shard = write_tar(tmp_path / "s.tar", files)
    operator = {"name": "inpaint", "mask": {"member": "mask.png"}, "known": "white"}
    found = rows(
        execute(make_job(data={"shards": str(shard), "size": SIZE}, degradation={"operator": operator}))
    )
    assert [row["status"] for row in found] == ["ok", "failed", "failed"]
    assert "b.mask.png" in found[1]["error"]
    assert "c.mask.png" in found[2]["error"]


BLIND = {
    "operator": {"name": "gaussian_blur", "taps": 13, "sigma": UNIFORM | {"estimate": [0.5, 4.0]}},
    "sigma": {"value": 0.02, "estimate": [0.005, 0.1]},
}


@pytest.mark.slow
def test_what_is_estimated_is_in_the_row_beside_what_is_true_and_is_what_the_sampler_is_told(make_job):
    found = rows(execute(make_job(degradation=BLIND)))
    for row in found:
        assert row["operator_sigma_estimate"] == pytest.approx(row["operator_sigma"], rel=0.35)
        assert row["operator_sigma_deviation"] > 0
        assert row["sigma"] == 0.02
        assert row["sigma_estimate"] == pytest.approx(0.02, rel=0.5)
    assert len({row["operator_sigma_estimate"] for row in found}) > len(found) / 2


@pytest.mark.parametrize(
    ("operator", "sigma", "built"),
    [
        ({"name": "average_pool", "factor": 4}, UNIFORM | {"high": 1.5}, 0),
        ({"name": "average_pool", "factor": 4}, {"value": 0.1, "estimate": [0.01, 0.3]}, 0),
        ({"name": "gaussian_blur", "taps": 9, "sigma": UNIFORM}, {"value": 0.1, "estimate": [0.01, 0.3]}, 1),
        ({"name": "gaussian_blur", "taps": 9, "sigma": UNIFORM | {"estimate": [0.5, 4.0]}}, 0.02, 2),
    ],
    ids=["noise", "noise, not told", "width", "width, not told"],
)
def test_no_operator_is_built_twice(make_job, monkeypatch, operator, sigma, built):
    """Of two samples each its own and what the sampler is told; none where it is that of all samples."""
    stage = Stage(make_job(degradation={"operator": operator, "sigma": sigma}), "cpu")
    made = []
    build = operators.build
    monkeypatch.setattr(operators, "build", lambda *args, **keys: made.append(args) or build(*args, **keys))
    stage.run(samples(KEYS[:2], map(picture, range(2))))
    assert len(made) == 2 * built


def test_an_estimate_does_not_depend_on_the_batch_nor_on_what_is_true(make_job):
    job = make_job(degradation=BLIND)
    stage = Stage(job, "cpu")
    batch = samples(KEYS, map(picture, range(5)))
    for sample, found in zip(batch, stage.run(batch), strict=True):
        (alone,) = stage.run([sample])
        for parameter, (value, deviation) in alone.own.estimates.items():
            assert found.own.estimates[parameter] == (
                pytest.approx(value, rel=1e-5),
                pytest.approx(deviation, rel=1e-3),
            )
            assert parameter.range[0] <= value <= parameter.range[1]
        assert np.abs(alone.restored.astype(int) - found.restored).max() <= 1


@pytest.mark.slow
def test_a_measurement_is_restored_with_what_it_says_itself(tmp_path, make_job):
    """The same by a job of images, whose truth is known, and by one of its measurements."""
    operator = {"name": "gaussian_blur", "taps": 13, "sigma": {"value": 1.5, "estimate": [0.5, 4.0]}}
    images = execute(make_job(degradation={"operator": operator}, images="all"))
    files = [(f"{row['key']}.png", row["measurement"]) for row in rows(images)]
    asked = operator | {"sigma": {"estimate": [0.5, 4.0]}}
    job = make_job(
        data={"shards": str(write_tar(tmp_path / "y.tar", files)), "kind": "measurements", "size": SIZE},
        degradation={"operator": asked},
        metrics=[],
        output=str(tmp_path / "measurements"),
    )
    for row, other in zip(rows(execute(job)), rows(images), strict=True):
        assert row["operator_sigma_estimate"] == pytest.approx(1.5, rel=0.35)
        assert row["operator_sigma_estimate"] == pytest.approx(other["operator_sigma_estimate"], rel=0.1)
        assert "operator_sigma" not in row
    report = write_report(Run.open(tmp_path / "measurements")).read_text()
    assert "degradation.operator.sigma" in report
    assert "estimate against truth" not in report
