"""Reading: what a user would expect of any image file, and a clear error for what is none."""

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from kit.shards import SIZE, encode, picture, write_tar
from PIL import Image

from kintsugi.pipeline.data.convert import Images
from kintsugi.pipeline.data.decode import Decoded, decode
from kintsugi.pipeline.data.plan import make_plan
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.units import read_members, read_units
from kintsugi.pipeline.parts import Data

EXACT = Images(SIZE, "exact")


def read_all(paths: list[Path], target: Path, batch_size: int = 2, **data) -> list[list[Decoded]]:
    make_plan(Data(shards="unused", size=SIZE, **data), paths, 100, target)
    return [
        batch
        for unit in read_units(target)
        for batch in read_unit(unit, read_members(target, unit), EXACT, batch_size)
    ]


def decoded(content: bytes, suffix: str = "png", fit="exact") -> Decoded:
    return decode("key", 0, {suffix: content}, Images(SIZE, fit), None)


TRUTH = picture(5)
GREY = np.asarray(Image.fromarray(TRUTH).convert("L"))


def test_pixels_labels_and_sources_arrive_in_order(shards, tmp_path):
    batches = read_all(shards[:1], tmp_path / "plan.parquet", batch_size=3)
    assert [len(batch) for batch in batches] == [3, 1]
    for i, sample in enumerate(s for batch in batches for s in batch):
        assert (sample.key, sample.index, sample.label, sample.error) == (f"image_{i:03d}", i, i, None)
        assert sample.source == "PNG RGB 32x32"
        np.testing.assert_array_equal(sample.image, picture(i))


CONVERTED: dict[str, tuple[bytes, np.ndarray]] = {
    "greyscale": (encode(GREY), np.repeat(GREY[..., None], 3, -1)),
    "16-bit grey": (
        encode(Image.fromarray(GREY.astype(np.uint16) * 257)),
        np.repeat(GREY[..., None], 3, -1),
    ),
    "opaque RGBA": (encode(Image.fromarray(TRUTH).convert("RGBA")), TRUTH),
    "transparent RGBA": (
        encode(Image.fromarray(np.dstack([TRUTH, np.zeros_like(GREY)]))),
        np.full_like(TRUTH, 255),
    ),
    "palette": (
        encode(Image.fromarray(TRUTH).quantize(256)),
        np.asarray(Image.fromarray(TRUTH).quantize(256).convert("RGB")),
    ),
    "one bit": (
        encode(Image.fromarray(GREY > 128)),
        np.repeat(np.where(GREY > 128, 255, 0)[..., None], 3, -1).astype(np.uint8),
    ),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_modes_are_converted(kind):
    content, expected = CONVERTED[kind]
    sample = decoded(content)
    assert sample.error is None
    np.testing.assert_array_equal(sample.image, expected)


def test_cmyk_jpeg_is_converted():
    sample = decoded(encode(Image.fromarray(TRUTH).convert("CMYK"), "JPEG", quality=95), "jpg")
    assert np.abs(sample.image.astype(int) - TRUTH).mean() < 5


def test_a_sample_without_an_image_says_what_it_has():
    """What else cannot be read: tests/test_security.py."""
    sample = decode("key", 0, {"json": b"{}"}, EXACT, None)
    assert sample.image is None
    assert "no image among its members (json)" in sample.error


@pytest.mark.parametrize(("width", "height"), [(48, 32), (32, 57), (100, 64), (20, 40)])
def test_resize_crop_is_pils_bicubic_and_the_centre(width, height):
    original = Image.fromarray(picture(1, 100)).resize((width, height))
    sample = decoded(encode(original), fit="resize_crop")
    scale = SIZE / min(width, height)
    resized = original.resize(
        (max(SIZE, round(width * scale)), max(SIZE, round(height * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - SIZE) // 2, (resized.height - SIZE) // 2
    expected = np.asarray(resized)[top : top + SIZE, left : left + SIZE]
    np.testing.assert_array_equal(sample.image, expected)


def test_a_bad_sample_keeps_its_place_in_the_batch(tmp_path):
    contents = [encode(picture(0)), b"nonsense", encode(picture(2)), encode(picture(3))]
    shard = write_tar(tmp_path / "mixed.tar", [(f"{i}.png", c) for i, c in enumerate(contents)])
    batches = read_all([shard], tmp_path / "plan.parquet")
    assert [[s.error is None for s in batch] for batch in batches] == [[True, False], [True, True]]


def test_a_salvaged_shard_gives_its_complete_samples_and_one_failure(shards, tmp_path):
    import tarfile

    with tarfile.open(shards[0]) as tar:
        middle = tar.getmember("image_002.png").offset_data + 100
    cut = tmp_path / "cut.tar"
    cut.write_bytes(shards[0].read_bytes()[:middle])
    samples = [s for b in read_all([cut], tmp_path / "plan.parquet", damaged="salvage") for s in b]
    assert [s.error is None for s in samples] == [True, True, False]
    assert "cannot be read here" in samples[2].error


def test_a_shard_that_shrank_after_planning_loses_no_rows(shards, tmp_path):
    shard = tmp_path / "copy.tar"
    shard.write_bytes(shards[0].read_bytes())
    make_plan(Data(shards="unused", size=SIZE), [shard], 100, tmp_path / "plan.parquet")
    (unit,) = read_units(tmp_path / "plan.parquet")
    shard.write_bytes(shards[0].read_bytes()[:6000])
    members = read_members(tmp_path / "plan.parquet", unit)
    samples = [s for b in read_unit(unit, members, EXACT, 2) for s in b]
    assert [s.key for s in samples] == members.keys
    assert samples[0].error is None
    assert samples[-1].error is not None


def test_an_abandoned_read_ends_its_threads(shards, tmp_path):
    import threading

    make_plan(Data(shards="unused", size=SIZE), shards[:1], 100, tmp_path / "plan.parquet")
    (unit,) = read_units(tmp_path / "plan.parquet")
    before = threading.active_count()
    batches = read_unit(unit, read_members(tmp_path / "plan.parquet", unit), EXACT, 1)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_few_large_images_are_decoded_ahead(tmp_path, monkeypatch):
    """Of a unit of 40 images, as many as fit into the bound, beside those being decoded."""
    from kintsugi.pipeline.data import read

    monkeypatch.setattr(read, "BYTES_AHEAD", 4 * picture(0).nbytes)
    write_tar(tmp_path / "s.tar", [(f"{n:02d}.png", encode(picture(n))) for n in range(40)])
    make_plan(Data(shards="unused", size=SIZE), [tmp_path / "s.tar"], 100, tmp_path / "plan.parquet")
    (unit,) = read_units(tmp_path / "plan.parquet")
    alive: Counter[str] = Counter()

    class Counting(Images):
        def __call__(self, *arguments):
            alive["decoded"] += 1
            return super().__call__(*arguments)

    most = 0
    for batch in read_unit(unit, read_members(tmp_path / "plan.parquet", unit), Counting(SIZE, "exact"), 8):
        time.sleep(0.05)  # the network; what is decoded meanwhile waits
        alive["taken"] += len(batch)
        most = max(most, alive["decoded"] - alive["taken"])
    assert alive["taken"] == 40
    assert 4 <= most <= 4 + 2
