"""Images of one channel, of four, and of others: from files to the report."""

import io
import json

import diffusers
import numpy as np
import pytest
import torch
from kit.jobs import execute, kintsugi, rows
from kit.pipelines import make_unet, save
from kit.shards import SIZE, encode, npy, picture, write_tar
from PIL import Image
from pydantic import ValidationError

import kintsugi as program
from kintsugi.pipeline.analysis.report import write_report
from kintsugi.pipeline.data.pictures import decoded, shown
from kintsugi.pipeline.data.pictures import encode as encoded
from kintsugi.pipeline.execution.directory import REPORT
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.job import Job, config_hash

COLOURS = picture(0)
GREY = np.asarray(Image.fromarray(COLOURS).convert("L"))
FOUR = np.dstack([COLOURS, picture(1)[..., 0]])
POOL = {"operator": {"name": "average_pool", "factor": 4}}


def planes(image):
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def on_range(levels):
    return levels.astype(np.float32) / np.float32(127.5) - 1


@pytest.mark.parametrize("form", ["png", "png16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_of_many_channels_the_first_three_are_shown_and_of_two_the_first(channels, form):
    image = np.dstack([picture(number)[..., 0] for number in range(channels)])
    levels = image if form == "png" else image.astype(np.uint16) * 257
    seen = np.asarray(shown(encoded(levels, form)))
    np.testing.assert_array_equal(seen, image[..., :3] if channels > 2 else image[..., 0])


def job_of(tmp_path, channels, **fields):
    """On two images of a folder, as .npy but for grey."""
    folder = tmp_path / "images"
    folder.mkdir(exist_ok=True)
    for number in range(2):
        image = np.dstack([picture(number + i)[..., i % 3] for i in range(channels)])
        content = encode(image[..., 0]) if channels == 1 else npy(planes(image))
        (folder / f"{number}.{'png' if channels == 1 else 'npy'}").write_bytes(content)
    data = {"shards": str(folder), "size": SIZE, "channels": channels} | fields.pop("data", {})
    values = {
        "data": data,
        "degradation": POOL,
        "sampler": {"name": "conjugate", "steps": 2},
        "metrics": ["psnr", "ssim", "spectrum_ratio", "total_variation"],
        "compute": {"batch_size": 2, "cpus_per_actor": 1},
        "output": str(tmp_path / "run"),
    }
    return Job.model_validate(values | fields)


def run_with_report(job):
    run = execute(job)
    write_report(run)
    write_restored(run)
    assert kintsugi("verify", run.folder).exit_code == 0
    page = (run.folder / REPORT / "report.html").read_text()
    assert (run.folder / REPORT / "pictures.png").stat().st_size > 1000
    return run, rows(run), page


def test_a_job_of_grey_images_from_files_to_the_report(tmp_path):
    job = job_of(tmp_path, 1, metrics=["psnr", "ssim", "spectrum_ratio", "swd"])
    run, found, page = run_with_report(job)
    assert [row["status"] for row in found] == ["ok"] * 2
    for number, row in enumerate(found):
        with (
            Image.open(io.BytesIO(row["restored"])) as restored,
            Image.open(io.BytesIO(row["truth"])) as truth,
        ):
            assert restored.mode == truth.mode == "L"
            assert restored.size == (SIZE, SIZE)
            np.testing.assert_array_equal(np.asarray(truth), picture(number)[..., 0])
            apart = np.asarray(restored, float) - np.asarray(truth)
        assert abs(row["psnr"] - 10 * np.log10(255**2 / np.mean(apart**2))) < 0.1
        assert shown(row["measurement"]).size == (SIZE // 4, SIZE // 4)
    assert "1 channel by a network for 3: shown 3 times" in page
    assert json.loads((run.folder / REPORT / "metrics.json").read_text())["sets"]["swd"]["value"] > 0
    assert program.open_run(run.folder).picture("0").mode == "L"


def test_a_network_for_grey_is_a_prior(tmp_path):
    unet = make_unet(in_channels=1, out_channels=1)
    path = save(tmp_path / "grey", diffusers.DDPMScheduler(clip_sample=False), unet)
    job = job_of(tmp_path, 1, prior={"name": "diffusers", "path": str(path)})
    run, found, page = run_with_report(job)
    assert [row["status"] for row in found] == ["ok"] * 2
    assert "by a network for" not in page
    assert run.prior.title.startswith("diffusers, ")


def test_a_job_of_four_channels_keeps_all_of_them(tmp_path):
    _, found, page = run_with_report(job_of(tmp_path, 4))
    assert [row["status"] for row in found] == ["ok"] * 2
    for number, row in enumerate(found):
        truth = np.load(io.BytesIO(row["truth"]))
        np.testing.assert_array_equal(truth, np.stack([picture(number + i)[..., i % 3] for i in range(4)]))
        restored = np.load(io.BytesIO(row["restored"])).astype(float)
        assert restored.shape == (4, SIZE, SIZE)
        assert abs(row["psnr"] - 10 * np.log10(255**2 / np.mean((restored - truth) ** 2))) < 0.1
        assert row["residual"] < 0.1
    assert "4 channels by a network for 3: 1 × 3 together; 1 by itself" in page


@pytest.mark.parametrize(("channels", "suffix"), [(1, "png"), (2, "npy"), (4, "npy")])
def test_restored_measurements_have_the_channels_that_came(tmp_path, channels, suffix):
    """Which can be compared with their truth again."""
    fields = {
        "metrics": [],
        "data": {"kind": "measurements"},
        "restoration": {"samples_per_image": 2},
        "degradation": {"operator": {"name": "inpaint", "mask": "random", "keep": 0.7}},
    }
    run, found, page = run_with_report(job_of(tmp_path, channels, **fields))
    assert "by a network for 3" in page
    (folder,) = (run.folder / "restored").iterdir()
    assert {f.name for f in folder.iterdir()} == {
        f"{n}.{end}"
        for n in range(2)
        for end in (suffix, f"sample00.{suffix}", f"sample01.{suffix}", "std.npy")
    }
    assert np.load(folder / "0.std.npy").shape == (channels, SIZE, SIZE)
    for number, row in enumerate(found):
        assert decoded((folder / f"{number}.{suffix}").read_bytes()).shape == (SIZE, SIZE, channels)
        assert (folder / f"{number}.{suffix}").read_bytes() == row["restored"]


@pytest.mark.parametrize("channels", [1, 4])
def test_what_another_method_restored_is_compared_in_all_channels(tmp_path, channels):
    truth, restored = tmp_path / "truth", tmp_path / "restored"
    for folder in (truth, restored):
        folder.mkdir()
    image = np.dstack([picture(i)[..., 0] for i in range(channels)])
    other = image.copy()
    other[..., -1] //= 2
    for folder, levels in ((truth, image), (restored, other)):
        (folder / f"a.{'png' if channels == 1 else 'npy'}").write_bytes(encoded(levels))
    data = {"kind": "restored", "shards": str(restored), "truth": str(truth), "channels": channels}
    _, (row,), _ = run_with_report(Job.model_validate({"data": data, "output": str(tmp_path / "run")}))
    error = (image.astype(float) - other) ** 2
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error.mean()))
    assert decoded(row["restored"]).shape == (SIZE, SIZE, channels)


def test_a_job_of_colours_is_the_one_that_it_was(make_job):
    job = make_job()
    stated = job.model_copy(update={"data": job.data.model_copy(update={"channels": 3})})
    assert "channels" not in job.model_dump(mode="json")["data"]
    assert config_hash(job) == config_hash(stated)
    grey = job.model_copy(update={"data": job.data.model_copy(update={"channels": 1})})
    assert config_hash(job) != config_hash(grey)


@pytest.mark.parametrize(
    ("channels", "fields", "message"),
    [
        (4, {"metrics": ["lpips"]}, "lpips is of images with 1 or 3 channels, data.channels is 4"),
        (2, {"metrics": ["fid"]}, "fid is of images with 1 or 3 channels, data.channels is 2"),
        (4, {"metrics": ["swd"]}, "swd is of images with 1 or 3"),
        (0, {}, r"data\.channels"),
        (257, {}, r"data\.channels"),
        (200, {"data": {"size": 4096}}, r"data\.channels: with data\.size they make more than"),
        (2, {"degradation": {"operator": {"name": "jpeg"}}}, "jpeg needs images of 1 or 3 channels"),
        (
            1,
            {"degradation": {"operator": {"name": "colorize", "weights": "luma"}}},
            "luma is for images of 3",
        ),
        (
            4,
            {"data": {"kind": "measurements"}, "metrics": [], "restoration": {"format": "webp"}},
            "restoration.format: webp holds 1 or 3 channels, data.channels is 4; png and png16",
        ),
    ],
)
def test_a_job_that_cannot_be_is_refused_by_field(tmp_path, channels, fields, message):
    data = {"shards": "x", "size": 64, "channels": channels} | fields.pop("data", {})
    values = {"data": data, "degradation": POOL, "metrics": ["psnr"], "output": str(tmp_path / "run")}
    with pytest.raises(ValidationError, match=message):
        Job.model_validate(values | fields)


def test_a_row_of_other_channels_fails_and_the_others_do_not(tmp_path):
    members = [("a.npy", npy(planes(FOUR))), ("b.png", encode(FOUR)), ("c.png", encode(COLOURS))]
    shard = write_tar(tmp_path / "s.tar", members)
    found = rows(execute(job_of(tmp_path, 4, data={"shards": str(shard)}, metrics=["psnr"])))
    assert [row["status"] for row in found] == ["ok", "ok", "failed"]
    assert "mode RGB, but 4 channels are asked for (data.channels)" in found[2]["error"]
    assert found[0]["restored"] is not None


def restore(images, operator="denoise", **options):
    return program.restore(images, operator, sigma=0.05, sampler={"name": "conjugate", "steps": 1}, **options)


def test_grey_comes_back_grey_and_as_colours_where_it_is_to_be_coloured():
    grey = Image.fromarray(GREY)
    assert restore(grey).mode == "L"
    assert [each.mode for each in restore([grey, grey])] == ["L", "L"]
    assert [each.mode for each in restore([grey, Image.fromarray(COLOURS)])] == ["RGB", "RGB"]
    assert restore(grey, "colorize").mode == "RGB"


def test_arrays_and_tensors_of_any_channels_come_back_with_them():
    for image in (GREY[None, ..., None], FOUR[None], FOUR[None, ..., :2]):
        array = restore(image)
        assert array.shape == image.shape
        assert array.dtype == np.uint8
        assert np.abs(array.astype(int) - image).mean() < 20, "about what came in"
        tensor = restore(torch.from_numpy(on_range(image)).permute(0, 3, 1, 2))
        assert tensor.shape == (1, image.shape[-1], SIZE, SIZE)
        found = (tensor.permute(0, 2, 3, 1).numpy() + 1) * 127.5
        np.testing.assert_allclose(found.clip(0, 255).round(), array, atol=1)
