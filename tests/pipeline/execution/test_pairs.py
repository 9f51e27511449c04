"""Measurements with their truth beside them: restored as without it, and compared with it as images are."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.jobs import digests, execute, kintsugi, rows, write_job
from kit.shards import SIZE, encode, picture, write_tar
from PIL import Image
from pydantic import ValidationError

from kintsugi import operators
from kintsugi.errors import JobError
from kintsugi.jobs.trials import make_trials, read_base
from kintsugi.pipeline.analysis.aggregate import summarise
from kintsugi.pipeline.analysis.report import gallery
from kintsugi.pipeline.analysis.report.gallery import Card, choose
from kintsugi.pipeline.analysis.report.write import write_report
from kintsugi.pipeline.data.pictures import decoded
from kintsugi.pipeline.execution import rows as rows_module
from kintsugi.pipeline.execution.degrade import levels
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics.registry import BASELINES
from kintsugi.pipeline.storage.publish import publish_bytes

POOL = {"name": "average_pool", "factor": 4}
DATA = {"kind": "measurements", "member": "lr.png", "truth": {"member": "hr.png"}, "size": SIZE}


def pooled(image: np.ndarray) -> np.ndarray:
    """The measurement of `POOL`, rounded to 8 bits."""
    height, width, channels = image.shape
    means = image.reshape(height // 4, 4, width // 4, 4, channels).mean((1, 3))
    return means.round().astype(np.uint8)


def manifest(shards: Path) -> dict:
    return json.loads((shards / "manifest.json").read_text())


def psnr(image: np.ndarray, truth: np.ndarray) -> float:
    """Of images on [0, 255]."""
    return -10 * np.log10(np.square((image.astype(float) - truth) / 255).mean())


def pair(key: str, image: np.ndarray) -> list[tuple[str, bytes]]:
    return [(f"{key}.lr.png", encode(pooled(image))), (f"{key}.hr.png", encode(image))]


def cards_of(run: Run, folder: Path) -> list[Card]:
    """What the report shows."""
    _, summary = summarise(run, folder / "rows.parquet")
    return choose(run, folder / "rows.parquet", "PSNR", summary.measures["psnr"])


PAIRS = [member for i in range(5) for member in pair(f"scene{i}", picture(i))]


@pytest.fixture
def make_pairs_job(make_job, tmp_path):
    def make(shards, **fields):
        data = DATA | {"shards": str(shards)} | fields.pop("data", {})
        values = {"data": data, "degradation": {"operator": POOL, "sigma": 0.02}}
        return make_job(**(values | {"metrics": ["psnr", "ssim"], "output": str(tmp_path / "run")} | fields))

    return make


def test_a_pair_is_restored_as_its_measurement_and_compared_as_an_image_is(make_pairs_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", PAIRS)
    found = rows(execute(make_pairs_job(shard)))
    alone = write_tar(tmp_path / "lr.tar", [(f"scene{i}.png", encode(pooled(picture(i)))) for i in range(5)])
    without = {"data": {"member": None, "truth": None}, "metrics": [], "output": str(tmp_path / "without")}
    expected = rows(execute(make_pairs_job(alone, **without)))
    assert [row["key"] for row in found] == [f"scene{i}" for i in range(5)]
    for i, (row, one) in enumerate(zip(found, expected, strict=True)):
        assert row["restored"] == one["restored"]
        assert (one["psnr"], one["truth"]) == (None, None)
        np.testing.assert_array_equal(Image.open(io.BytesIO(row["truth"])), picture(i))


def test_its_metrics_are_those_of_the_restoration_and_of_both_baselines(make_pairs_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", PAIRS)
    for i, row in enumerate(rows(execute(make_pairs_job(shard)))):
        # H⁺ of a mean of 4 × 4 pixels is that mean in each of them.
        means = np.kron(pooled(picture(i)), np.ones((4, 4, 1)))
        assert row["psnr_pinv"] == pytest.approx(psnr(means, picture(i)), abs=1e-4)
        assert row["psnr_lmmse"] > row["psnr_pinv"]
        restored = np.asarray(Image.open(io.BytesIO(row["restored"])))
        assert row["psnr"] == pytest.approx(psnr(restored, picture(i)), abs=0.05), "but for rounding"
        assert 0 < row["ssim"] < 1


@pytest.mark.slow
@pytest.mark.parametrize(("place", "kind"), [("folder", "tar"), ("bucket", "folder")], indirect=["place"])
def test_a_pair_alone_is_as_in_any_batch_and_from_a_folder_or_bucket(make_pairs_job, place, tmp_path, kind):
    content = [*PAIRS, *pair("wide", np.concatenate([picture(8), picture(9)], 1))]
    shard = place / "s.tar" if kind == "tar" else place
    if kind == "tar":
        publish_bytes(shard, write_tar(tmp_path / "s.tar", content).read_bytes())
    else:
        place.mkdir(parents=True, exist_ok=True)
        for name, of in content:
            publish_bytes(place / name, of)
    found = []
    for batch, unit in ((1, 1), (4, 3)):
        compute = {"batch_size": batch, "unit_size": unit, "cpus_per_actor": 1}
        run = execute(make_pairs_job(shard, compute=compute, output=str(tmp_path / f"run{batch}")))
        found.append(rows(run))
    for one, other in zip(*found, strict=True):
        assert one["status"] == "ok"
        assert [one["restored"], one["truth"], one["psnr_pinv"]] == [
            other["restored"],
            other["truth"],
            other["psnr_pinv"],
        ]
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-3)


def test_what_is_wrong_with_a_truth_fails_its_own_sample(make_pairs_job, tmp_path):
    content = [
        *pair("a", picture(0)),
        ("b.lr.png", encode(pooled(picture(1)))),
        ("c.lr.png", encode(pooled(picture(2)))),
        ("c.hr.png", encode(picture(2)[:-4])),
        ("d.lr.png", encode(pooled(picture(3)))),
        ("d.hr.png", b"no image"),
        ("e.hr.png", encode(picture(4))),
        *pair("f", picture(5)),
    ]
    run = execute(make_pairs_job(write_tar(tmp_path / "s.tar", content)))
    found = {row["key"]: row["error"] for row in rows(run)}
    assert found.keys() == {*"abcdf"}
    assert (found["a"], found["f"]) == (None, None)
    assert found["b"] == "MissingMember: b.hr.png is not next to it in the tar"
    assert found["c"] == "UnreadableImage: its truth has 32x28 pixels, the restored image 32x32"
    assert found["d"].startswith("UnreadableImage: its truth, hr.png: UnidentifiedImageError")
    assert [row[1:] for row in run.summary.left_out_first] == [
        ["e.hr.png", "its key has no lr.png next to it"]
    ]


@pytest.mark.parametrize(("images", "kept"), [("restored", 2), ("all", 4)])
def test_a_row_keeps_measurement_and_truth_as_that_of_a_degraded_image(
    make_pairs_job, tmp_path, monkeypatch, images, kept
):
    monkeypatch.setattr(rows_module, "GALLERY", 2)
    monkeypatch.setattr(gallery, "GALLERY", 2)
    run = execute(make_pairs_job(write_tar(tmp_path / "s.tar", PAIRS[:8]), images=images))
    for i, row in enumerate(rows(run)):
        assert (row["truth"] is not None) == (row["measurement"] is not None) == (i < kept)
        assert row["restored"] is not None
    for i, card in enumerate(cards_of(run, tmp_path)):
        all_kept = ["truth", "measurement", "pseudo-inverse", "restoration"]
        assert list(card.pictures) == (all_kept if i < kept else ["restoration"])


def test_the_report_of_pairs_of_any_size_shows_h_plus_y_by_what_was_estimated(make_pairs_job, tmp_path):
    wide = np.concatenate([picture(8), picture(9)], 1)
    spec = {"name": "gaussian_blur", "taps": 9, "sigma": 1.0}
    blurs = [operators.build(spec, (3, SIZE, width)) for width in (SIZE, 2 * SIZE)]
    content, measured = [], []
    for key, image, blur in zip("ab", (picture(0), wide), blurs, strict=True):
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        measured.append(levels(blur.forward(x), 8)[0])
        content += [(f"{key}.lr.png", encode(measured[-1])), (f"{key}.hr.png", encode(image))]
    operator = spec | {"sigma": {"estimate": [0.5, 2.0]}}
    job = make_pairs_job(write_tar(tmp_path / "s.tar", content), degradation={"operator": operator})
    run = execute(job)
    for card, row, y in zip(cards_of(run, tmp_path), rows(run), measured, strict=True):
        told = operators.build(spec | {"sigma": row["operator_sigma_estimate"]}, (3, y.shape[0], y.shape[1]))
        y = torch.from_numpy(y).permute(2, 0, 1)[None].float() / 127.5 - 1
        np.testing.assert_array_equal(decoded(card.pictures["pseudo-inverse"]), levels(told.pinv(y), 8)[0])
        assert np.asarray(Image.open(io.BytesIO(card.pictures["truth"]))).shape[1] == y.shape[-1]


def test_a_truth_of_16_bits_is_compared_with_all_of_them(make_pairs_job, tmp_path):
    grey = picture(0)[..., 0]
    deep = Image.fromarray(grey.astype(np.uint16) * 257 + 100)
    lr = encode(pooled(np.repeat(grey[..., None], 3, -1)))
    shard = write_tar(tmp_path / "s.tar", [("a.lr.png", lr), ("a.hr.png", encode(deep))])
    [row] = rows(execute(make_pairs_job(shard)))
    means = np.kron(pooled(np.repeat(grey[..., None], 3, -1))[..., 0], np.ones((4, 4)))
    assert row["psnr_pinv"] == pytest.approx(psnr(means, np.asarray(deep) / 257), abs=1e-4)


@pytest.mark.slow
def test_a_run_of_pairs_from_the_command_to_report_verify_and_compare(make_pairs_job, tmp_path):
    folder = tmp_path / "in"
    for name, content in PAIRS:
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    runs = []
    for steps in (1, 3):
        output = str(tmp_path / f"steps{steps}")
        sampler = {"name": "conjugate", "steps": steps, "w": 15}
        job = make_pairs_job(folder, sampler=sampler, metrics=["psnr", "swd"], output=output)
        file = write_job(tmp_path / f"{steps}.yaml", job)
        done = kintsugi("run", file, "--address", "none")
        assert done.exit_code == 0, done.output
        runs.append(output)
        assert kintsugi("verify", output).exit_code == 0
    metrics = json.loads((tmp_path / "steps3" / "report" / "metrics.json").read_text())
    assert metrics["metrics"]["psnr"]["n"] == 5
    assert metrics["sets"]["swd"]["value"] is not None
    page = (tmp_path / "steps3" / "report" / "report.html").read_text()
    assert page.count("truth") >= 5
    restored = sorted(path.name for path in (tmp_path / "steps3" / "restored" / "in").iterdir())
    assert restored == [f"scene{i}.png" for i in range(5)], "by what the files of a key have in common"
    compared = kintsugi("compare", *runs, "--out", tmp_path / "compared")
    assert compared.exit_code == 0, compared.output
    assert "different degradations" not in compared.output
    page = (tmp_path / "compared" / "compare.md").read_text()
    assert all(label in page for label in BASELINES.values())


def test_pairs_of_a_folder_stay_together_in_the_tars_that_are_made_of_it(make_pairs_job, tmp_path):
    content = [*PAIRS, ("x/b.v1.lr.png", PAIRS[0][1]), ("x/b.v1.hr.png", PAIRS[1][1])]
    content += [("lost.lr.png", PAIRS[0][1]), ("scene0.other.png", PAIRS[0][1]), ("odd.png", PAIRS[0][1])]
    content += [("broken.lr.png", PAIRS[0][1]), ("broken.hr.png", b"none")]
    for name, of in content:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "in" / name).write_bytes(of)
    made = kintsugi("shard", tmp_path / "in", tmp_path / "out", "--member", "lr.png", "--member", "hr.png")
    assert made.exit_code == 2, "what is left out is said"
    named = {one["name"]: one["reason"] for one in manifest(tmp_path / "out")["left_out"]}
    assert named.keys() == {"lost.lr.png", "odd.png", "broken.lr.png"}
    assert named["lost.lr.png"] == "its key has no hr.png"
    assert named["broken.lr.png"].startswith("hr.png: ")
    with tarfile.open(tmp_path / "out" / "in-000000.tar") as tar:
        names = tar.getnames()
    keys = [f"scene{i}" for i in range(5)] + ["x/b_v1"]
    assert names == [f"{key}.{end}" for key in keys for end in ("hr.png", "lr.png")]
    again = kintsugi("shard", tmp_path / "in", tmp_path / "out", "--member", "lr.png", "--member", "hr.png")
    assert again.exit_code == 2
    found = rows(execute(make_pairs_job(tmp_path / "out" / "in-000000.tar")))
    assert {row["key"]: row["status"] for row in found} == dict.fromkeys(keys, "ok")
    with pytest.raises(JobError, match="--member: images that belong to each other are stored as they are"):
        kintsugi("shard", tmp_path / "in", tmp_path / "out2", "--member", "lr.png", "--size", "32")


def test_what_has_no_truth_is_not_asked_for_it(make_pairs_job, tmp_path):
    def refused(**fields) -> str:
        with pytest.raises(ValidationError) as error:
            make_pairs_job(tmp_path, **fields)
        return str(error.value)

    assert "data.truth: is for data.kind=restored; leave it out" in refused(data={"truth": "elsewhere/"})
    assert "data.truth: images are the truth" in refused(data={"kind": "images"})
    assert "data.truth.member: is that of the measurement" in refused(data={"member": "hr.png"})
    assert "compares with the truth" in refused(data={"truth": None})
    assert make_pairs_job(tmp_path, data={"truth": None}, metrics=[]).metrics == []


def test_a_sweep_takes_pairs_and_no_measurements_without_a_truth(make_pairs_job, tmp_path):
    base = read_base(str(write_job(tmp_path / "pairs.yaml", make_pairs_job(tmp_path))), [], None)
    [trial] = make_trials(base, [{"sampler.w": 5.0}], 4, ["psnr"])
    assert (trial.job.images, trial.job.metrics) == ("restored", ["psnr", "ssim"])
    without = make_pairs_job(tmp_path, data={"truth": None}, metrics=[])
    with pytest.raises(JobError, match=r"which measurements have by data\.truth"):
        read_base(str(write_job(tmp_path / "without.yaml", without)), [], None)


def test_the_default_metrics_of_pairs_need_no_size(make_pairs_job, tmp_path):
    job = make_pairs_job(tmp_path).model_dump(exclude={"metrics"}, exclude_unset=True)
    assert type(make_pairs_job(tmp_path)).model_validate(job).metrics == ["psnr", "ssim"]


def test_rows_are_the_same_when_they_are_made_again(make_pairs_job, tmp_path):
    shard = write_tar(tmp_path / "s.tar", PAIRS)
    one = execute(make_pairs_job(shard, output=str(tmp_path / "one")))
    other = execute(make_pairs_job(shard, output=str(tmp_path / "other")))
    assert digests(one) == digests(other)
    assert write_restored(one)
    assert write_report(one)
