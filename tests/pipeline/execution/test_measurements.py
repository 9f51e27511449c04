"""Restoring what is degraded already: the measurements are the input, and sizes are their own."""

import io
import json
import re
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from kit.jobs import digests, execute, kintsugi, rows, write_job
from kit.shards import SIZE, encode, measured, picture, samples, tar_of_arrays, write_tar
from PIL import Image
from pydantic import ValidationError

from kintsugi.errors import JobError
from kintsugi.pipeline.data.pictures import BITS, array_file
from kintsugi.pipeline.data.pictures import encode as encoded
from kintsugi.pipeline.execution.memory import largest_batch
from kintsugi.pipeline.execution.open import open_or_plan
from kintsugi.pipeline.execution.open import plan as planned
from kintsugi.pipeline.execution.restored import write_restored
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.execution.stage import Stage
from kintsugi.priors.natural import NaturalPrior

CONJUGATE = {"name": "conjugate", "steps": 2, "w": 15}
POOL = {"name": "average_pool", "factor": 4}


@pytest.fixture
def make_measurement_job(make_job, tmp_path):
    def make(shards: Path | str, **fields):
        values = {
            "data": {"kind": "measurements", "shards": str(shards), "size": SIZE},
            "degradation": {"operator": POOL},
            "metrics": [],
            "output": str(tmp_path / "restored"),
        }
        return make_job(**(values | fields))

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    "operator",
    [
        POOL,
        {"name": "bicubic", "factor": 2},
        {"name": "gaussian_blur", "sigma": 1.0, "taps": 9},
        {"name": "inpaint", "mask": "half"},
        {"name": "colorize"},
        {"name": "compressed_sensing"},
        {"name": "jpeg", "quality": 20},
        {"name": "blur", "kernel": [[0, 1, 2, 0], [3, 1, 0, 0], [0, 0, 2, 1]], "boundary": "valid"},
    ],
    ids=lambda operator: operator["name"],
)
def test_a_measurement_is_restored_as_the_image_it_was_made_from(
    make_job, make_measurement_job, shards, tmp_path, operator
):
    """The images' job degrades in float32; given those values, the restorations are the same pixels."""
    data = {"shards": str(shards[0]), "size": SIZE}
    expected = rows(execute(make_job(data=data, degradation={"operator": operator}, images="all")))
    arrays = [measured(picture(i), operator) for i in range(4)]
    shard = tar_of_arrays(tmp_path / "measured.tar", arrays)
    compute = {"batch_size": 2, "unit_size": 3, "cpus_per_actor": 1}
    job = make_measurement_job(shard, degradation={"operator": operator}, compute=compute)
    found = rows(execute(job))
    assert [row["restored"] for row in found] == [row["restored"] for row in expected]
    assert [row["residual"] for row in found] == [row["residual"] for row in expected]
    assert {row["psnr"] for row in found} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [[[0, 1, 2, 0], [3, 1, 0, 0], [0, 0, 2, 1]], [[1, 2, 1]]])
def test_a_measurement_without_borders_becomes_an_image_that_is_larger_by_them(
    make_measurement_job, tmp_path, kernel
):
    """At any size: by so many pixels, not by a ratio."""
    operator = {"name": "blur", "kernel": kernel, "boundary": "valid"}
    arrays = [measured(picture(0, side), operator) for side in (SIZE, 2 * SIZE, SIZE + 5)]
    shard = tar_of_arrays(tmp_path / "measured.tar", arrays)
    found = rows(execute(make_measurement_job(shard, degradation={"operator": operator})))
    sizes = [Image.open(io.BytesIO(row["restored"])).size for row in found]
    assert sizes == [(side, side) for side in (SIZE, 2 * SIZE, SIZE + 5)]


def test_restored_shards_have_the_names_and_keys_of_the_measurements(make_measurement_job, tmp_path):
    arrays = [measured(picture(i), POOL) for i in range(4)]
    for name in ("a.tar", "b.tar"):
        members = [(f"{name[0]}/image_{i}.npy", array_file(y)) for i, y in enumerate(arrays)]
        write_tar(tmp_path / name, [*members, (f"{name[0]}/bad.png", b"nonsense")])
    run = execute(make_measurement_job(f"{tmp_path}/*.tar"))
    written = write_restored(run)
    assert [path.name for path in written] == ["a.tar", "b.tar"]
    content = {path: path.read_bytes() for path in written}
    restored = {row["key"]: row["restored"] for row in rows(run) if row["status"] == "ok"}
    for path in written:
        with tarfile.open(path) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar}
        expected = {k: v for k, v in restored.items() if k[0] == path.name[0]}
        assert found == {f"{key}.png": png for key, png in expected.items()}
        assert len(found) == 4, "the one that failed is in the rows, not here"
    assert write_restored(run) == [], "what is there is not written again"
    written[0].unlink()
    assert write_restored(run) == written[:1]
    assert written[0].read_bytes() == content[written[0]]


def test_a_folder_becomes_a_folder_with_the_same_names(make_measurement_job, tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.v2.png").write_bytes(encode(picture(0, 8)))
    (folder / "sub" / "a.JPG").write_bytes(encode(picture(1, 8), "JPEG"))
    (folder / "readme.txt").write_text("no image")
    job = make_measurement_job(folder, restoration={"format": "webp"})
    run = execute(job)
    assert [row["key"] for row in rows(run)] == ["b_v2", "sub/a"]
    (target,) = write_restored(run)
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*.*")) == [
        "b.v2.webp",
        "sub/a.webp",
    ]
    assert Image.open(target / "sub" / "a.webp").size == (SIZE, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 11), (16, 9), (3, 20)])
def test_any_size_is_restored_in_its_own_size(make_measurement_job, tmp_path, height, width):
    """Sides that no network takes, smaller and larger than a tile, are consistent with the measurement."""
    whole = picture(0, 128)[: 4 * height, : 4 * width]
    shard = tar_of_arrays(tmp_path / "s.tar", [measured(whole, POOL)])
    (row,) = rows(execute(make_measurement_job(shard, sampler={"name": "conjugate", "steps": 5, "w": 15})))
    assert row["status"] == "ok", row["error"]
    assert Image.open(io.BytesIO(row["restored"])).size == (4 * width, 4 * height)
    assert row["residual"] < 0.05


def test_sizes_in_one_batch_do_not_mix(make_measurement_job, tmp_path):
    """Each sample has the result that it has alone."""
    sides = [(8, 8), (8, 12), (8, 8), (12, 8)]
    arrays = [measured(picture(i, 64)[: 4 * h, : 4 * w], POOL) for i, (h, w) in enumerate(sides)]
    shard = tar_of_arrays(tmp_path / "s.tar", arrays)
    compute = {"batch_size": 4, "unit_size": 4, "cpus_per_actor": 1}
    job = make_measurement_job(shard, compute=compute)
    found = rows(execute(job))
    stage = Stage(job, "cpu")
    for row, array in zip(found, arrays, strict=True):
        (alone,) = stage.run(samples([row["key"]], [array]))
        together = np.asarray(Image.open(io.BytesIO(row["restored"]))).astype(int)
        assert np.abs(together - alone.restored).max() <= 1


def test_several_samples_give_their_mean_and_deviation(make_measurement_job, tmp_path):
    """Against numpy, from the samples as they are stored; the first is that of a job with one sample."""
    shard = tar_of_arrays(tmp_path / "s.tar", [measured(picture(i), POOL) for i in range(2)])
    several = make_measurement_job(shard, restoration={"samples_per_image": 4, "format": "png16"})
    single = make_measurement_job(shard, restoration={"format": "png16"}, output=str(tmp_path / "one"))
    run = execute(several)
    for row, one in zip(rows(run), rows(execute(single)), strict=True):
        assert row["samples"][0] == one["restored"]
        drawn = np.stack([decode16(sample) for sample in row["samples"]]) / 32767.5 - 1
        assert len(drawn) == 4
        inside = (np.abs(drawn) < 1).all(0)  # elsewhere they are clipped where they are stored
        assert inside.mean() > 0.3
        mean = decode16(row["restored"]) / 32767.5 - 1
        np.testing.assert_allclose(mean[inside], drawn.mean(0)[inside], atol=5e-5)
        deviation = np.load(io.BytesIO(row["deviation"])).transpose(1, 2, 0)
        np.testing.assert_allclose(deviation[inside], drawn.std(0, ddof=1)[inside], atol=2e-3)
        assert row["spread"] == pytest.approx(np.sqrt((deviation.astype(float) ** 2).mean()), rel=1e-3)
        assert row["forwards"] == 4 * one["forwards"]
    with tarfile.open(write_restored(run)[0]) as tar:
        names = [member.name for member in tar]
    samples = [f"image_000.sample{i:02d}.png" for i in range(4)]
    assert names[:6] == ["image_000.png", *samples, "image_000.std.npy"]


def decode16(content: bytes) -> np.ndarray:
    """A PNG without filters, by the specification: (H, W, C) of 16 bits."""
    chunks, place = {}, 8
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunks[content[place + 4 : place + 8]] = content[place + 8 : place + 8 + length]
        place += length + 12
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (16, 2)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not lines[:, 0].any()
    return lines[:, 1:].copy().view(">u2").reshape(height, width, 3).astype(float)


@pytest.mark.parametrize("form", ["png", "png16", "jpeg", "webp"])
def test_pictures_survive_their_format(form):
    smooth = np.add.outer(np.arange(40.0), np.arange(30.0))[..., None] / 70 * [1.0, 0.5, 0.25]
    levels = (smooth * (2 ** BITS[form] - 1)).round().astype(np.uint16 if form == "png16" else np.uint8)
    content = encoded(levels, form)
    with Image.open(io.BytesIO(content)) as image:  # which checks the checksums, and reads 8 of 16 bits
        found = np.asarray(image.convert("RGB")).astype(int)
    expected = levels >> 8 if form == "png16" else levels
    assert np.abs(found - expected).max() <= {"png": 0, "png16": 0, "jpeg": 6, "webp": 8}[form]
    if form == "png16":
        np.testing.assert_array_equal(decode16(content), levels)


def test_a_16_bit_measurement_keeps_its_bits(make_measurement_job, tmp_path):
    grey = (np.arange(64).reshape(8, 8) * 1000 + 123).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, format="PNG")
    shards = {
        "coarse.tar": [("a.png", buffer.getvalue())],
        "fine.tar": [("a.npy", array_file(np.repeat(grey[None], 3, 0) / np.float32(32767.5) - 1))],
    }
    found = []
    for name, members in shards.items():
        write_tar(tmp_path / name, members)
        found += rows(execute(make_measurement_job(tmp_path / name, output=str(tmp_path / f"run-{name}"))))
    assert found[0]["restored"] == found[1]["restored"]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8), np.float32), r"shape \(3, 8\); it must be \(C, h, w\)"),
        (np.zeros((3, 8, 8), np.int64), "int64 with shape"),
        (np.full((3, 8, 8), np.nan), "NaN or infinity"),
        (np.zeros((1, 8, 8)), r"shape \(1, 8, 8\); of images of 32x32 the operator makes \(3, 8, 8\)"),
        (np.zeros((3, 8, 0)), "leaves nothing of images of 32×0"),
    ],
)
def test_what_is_no_measurement_is_a_failed_row(make_measurement_job, tmp_path, array, message):
    shard = tar_of_arrays(tmp_path / "s.tar", [array, measured(picture(0), POOL)])
    found = rows(execute(make_measurement_job(shard)))
    assert [row["status"] for row in found] == ["failed", "ok"]
    assert re.search(message, found[0]["error"]), found[0]["error"]


def test_a_name_that_leads_out_of_its_folder_is_not_restored(make_measurement_job, tmp_path):
    y = array_file(measured(picture(0), POOL))
    shard = write_tar(tmp_path / "s.tar", [("../../evil.npy", y), ("/etc/evil.npy", y), ("good.npy", y)])
    run = execute(make_measurement_job(shard))
    assert [row["status"] for row in rows(run)] == ["ok", "failed", "ok"]
    with tarfile.open(write_restored(run)[0]) as tar:
        assert tar.getnames() == ["__/__/evil.png", "good.png"], "no key has dots"


def test_two_shards_of_one_name_are_refused(make_measurement_job, tmp_path):
    for folder in ("a", "b"):
        tar_of_arrays(tmp_path / folder / "s.tar", [measured(picture(0), POOL)])
    with pytest.raises(JobError, match=r"two shards are named s\.tar"):
        execute(make_measurement_job(f"{tmp_path}/{{a,b}}/s.tar"))


def photographs(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(picture(i, 8)))
    return folder


def test_a_restoration_that_would_have_the_name_of_anothers_sample_is_refused(make_measurement_job, tmp_path):
    folder = photographs(tmp_path / "photos", "a.png", "a.sample00.png", "b.sample07.png", "c.std.png")
    single, several = (
        make_measurement_job(folder, restoration={"samples_per_image": k}, output=str(tmp_path / f"run{k}"))
        for k in (1, 2)
    )
    with pytest.raises(JobError, match=r"'a.sample00.png' would be a sample of 'a.png' and the restoration"):
        open_or_plan(several)
    assert not (tmp_path / "run2" / "plan.parquet").exists()
    assert open_or_plan(single).summary.samples == 4
    (folder / "a.sample00.png").rename(folder / "a.sample02.png")  # of two samples there is no third
    (target,) = write_restored(execute(several))
    files = {path.name for path in target.iterdir()}
    assert len(files) == 4 * 4
    assert files > {"a.sample01.png", "a.sample02.png", "a.sample02.sample00.png", "c.std.png", "a.std.npy"}


@pytest.mark.parametrize(("length", "count", "form"), [(251, 1, "png"), (242, 2, "png"), (250, 1, "webp")])
def test_names_may_be_long_and_those_that_would_be_too_long_are_refused(
    make_measurement_job, tmp_path, length, count, form
):
    """The longest that fits is written, and one byte more is refused before any work."""
    restoration = {"samples_per_image": count, "format": form}
    fits = make_measurement_job(
        photographs(tmp_path / "fits", f"{'n' * length}.png"), restoration=restoration
    )
    (target,) = write_restored(execute(fits))
    assert max(len(path.name) for path in target.iterdir()) == 255
    if length < 251:
        folder = photographs(tmp_path / "long", f"{'n' * (length + 1)}.png")
        with pytest.raises(JobError, match="a name of 256 bytes, and files have 255 at most; rename it"):
            open_or_plan(make_measurement_job(folder, restoration=restoration, output=str(tmp_path / "o")))


def test_a_folder_named_by_dots_is_restored_under_its_own_name(make_measurement_job, tmp_path, monkeypatch):
    folder = photographs(tmp_path / "photos", "a.png", "below/b.png")
    monkeypatch.chdir(folder / "below")
    run = execute(make_measurement_job(str(folder / "below" / "..")))
    assert write_restored(run) == [run.folder / "restored" / "photos"]
    assert (run.folder / "restored" / "photos" / "below" / "b.png").exists()


def test_a_folder_without_a_name_is_refused(make_measurement_job, tmp_path):
    job = make_measurement_job("/", output="s3://bucket/run")
    with pytest.raises(JobError, match=r"data\.shards: a folder without a name \(/\)"):
        planned(job, tmp_path, lambda unit: None)


@pytest.mark.parametrize("output", [".", "run", "deep/run", "../link/run"])
def test_an_output_inside_the_input_is_refused(make_measurement_job, make_job, tmp_path, output):
    folder = photographs(tmp_path / "photos", "a.png", "deep/b.png")
    (tmp_path / "link").symlink_to(folder)
    place = str(folder / output) if output[0] != "." else str(tmp_path / output.removeprefix("../"))
    for job in (
        make_measurement_job(folder, output=str(folder) if output == "." else place),
        make_job(data={"shards": str(folder), "size": SIZE}, output=str(folder) if output == "." else place),
    ):
        with pytest.raises(JobError, match=r"output: .* lies in .*photos, one of data\.shards"):
            open_or_plan(job)
    beside = make_measurement_job(folder, output=str(tmp_path / "photos-restored"))
    assert open_or_plan(beside).summary.samples == 2


def test_an_input_where_restorations_are_written_is_refused(make_measurement_job, tmp_path):
    """It would be taken for what is restored already, and removed before it is restored again."""
    shard = tar_of_arrays(tmp_path / "run" / "restored" / "s.tar", [measured(picture(0), POOL)])
    with pytest.raises(JobError, match="lies where restorations are written"):
        open_or_plan(make_measurement_job(shard, output=str(tmp_path / "run")))
    assert shard.exists()


def test_metrics_that_need_the_truth_are_refused(make_measurement_job, make_job):
    with pytest.raises(ValidationError, match="metrics: psnr compares with the truth"):
        make_measurement_job("unused.tar", metrics=["psnr"])
    with pytest.raises(ValidationError, match=r"restoration: is for data\.kind=measurements"):
        make_job(restoration={"format": "jpeg"})


def test_the_command_restores_reports_and_says_where(make_measurement_job, tmp_path):
    shard = tar_of_arrays(tmp_path / "s.tar", [measured(picture(i), POOL) for i in range(3)])
    job = make_measurement_job(shard, restoration={"samples_per_image": 2})
    write_job(tmp_path / "job.yaml", job)
    result = kintsugi("run", tmp_path / "job.yaml", "--address", "none")
    assert result.exit_code == 0, result.output
    assert f"restored: {job.output}/restored/s.tar" in result.output.replace("\n", "")
    metrics = json.loads((Path(job.output) / "report" / "metrics.json").read_text())
    assert set(metrics["metrics"]) == {"residual", "spread", "seconds"}
    html = (Path(job.output) / "report" / "report.html").read_text()
    assert html.count("<figure>") == 3
    assert 'alt="truth"' not in html
    assert "s per tile of" in kintsugi("plan", tmp_path / "job.yaml").output


def test_resuming_restores_the_same_bytes(make_measurement_job, tmp_path):
    shard = tar_of_arrays(tmp_path / "s.tar", [measured(picture(i), POOL) for i in range(4)])
    job = make_measurement_job(shard)
    run = execute(job)
    before = digests(run)
    next((run.folder / "commits").iterdir()).unlink()
    assert digests(execute(job)) == before
    assert Run.open(run.folder).progress().units == run.summary.units
    assert pq.read_table(next((run.folder / "data").iterdir())).column_names[0] == "key"


def network_that_takes(monkeypatch, tiles):
    """Inject: calls of the network with more than so many tiles run out of memory; returns what was asked."""
    asked: list[int] = []
    original = NaturalPrior.__call__

    def call(self, x, t):
        asked.append(len(x))
        if len(x) > tiles:
            raise torch.OutOfMemoryError("injected")
        return original(self, x, t)

    monkeypatch.setattr(NaturalPrior, "__call__", call)
    return asked


@pytest.mark.slow
def test_a_batch_of_tiles_is_rehearsed_as_large_as_it_will_be(make_measurement_job, monkeypatch):
    stage = Stage(make_measurement_job("unused"), "cpu")
    asked = network_that_takes(monkeypatch, 5)
    stage.batch_size = largest_batch(stage.rehearse, 40, stage.device)
    assert stage.batch_size == 5
    assert max(asked) > 5
    asked.clear()
    stage.run(samples(["large"], [np.zeros((3, 24, 24), np.float32)]))  # 96² and more than 5 tiles
    assert max(asked) == 5


@pytest.mark.slow
def test_a_size_that_lacks_memory_has_what_was_kept_for_others(make_measurement_job, monkeypatch):
    stage = Stage(make_measurement_job("unused", compute={"batch_size": 8, "cpus_per_actor": 1}), "cpu")
    network_that_takes(monkeypatch, 3)
    (restored,) = stage.run(samples(["large"], [np.zeros((3, 24, 24), np.float32)]))
    assert restored.error is None
    assert list(stage.problems.prepared) == [(3, 96, 96)]
    assert stage.batch_size == 2
    assert [note.split(": ")[1] for note in stage.notes] == [
        "one size of images at a time is kept prepared from now on",
        "batches of 4, not compiled from now on",
        "batches of 2, not compiled from now on",
    ]


def test_an_image_that_never_fits_costs_the_others_nothing(make_measurement_job, monkeypatch):
    stage = Stage(make_measurement_job("unused", compute={"batch_size": 8, "cpus_per_actor": 1}), "cpu")
    network_that_takes(monkeypatch, 0)
    with pytest.raises(torch.OutOfMemoryError):
        stage.run(samples(["large"], [np.zeros((3, 24, 24), np.float32)]))
    assert stage.batch_size == 8
    assert not stage.loaded.prior.network.unet.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": {"kind": "measurements", "shards": "a", "fit": "resize_crop"}}, "data.fit: measurements"),
        ({"images": "none"}, "images: restored measurements are always kept"),
    ],
)
def test_settings_that_mean_nothing_for_measurements_are_refused(make_measurement_job, fields, message):
    with pytest.raises(ValidationError, match=message):
        make_measurement_job("a", **fields)
