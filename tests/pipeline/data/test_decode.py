"""What files say of their pixels: how many images, which colours, how many bits, on which range."""

import io
import re
import struct
import zlib

import numpy as np
import pytest
from kit.jobs import execute, rows
from kit.shards import SIZE, chunk, encode, picture, png, write_tar
from PIL import Image, ImageCms

from kintsugi.pipeline.data import decode as decoding
from kintsugi.pipeline.data.collection import as_it_is
from kintsugi.pipeline.data.convert import Images, Measurements
from kintsugi.pipeline.data.decode import Decoded, decode
from kintsugi.pipeline.data.depth import RANGES
from kintsugi.pipeline.data.make.choosing import Options
from kintsugi.pipeline.data.make.sources import Source
from kintsugi.pipeline.data.make.writing import store
from kintsugi.pipeline.data.pictures import array_file, png16
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.parts import Data

TRUTH = picture(5)
DEEP = TRUTH.astype(np.uint16) * 257 + np.random.default_rng(1).integers(-90, 90, TRUTH.shape).astype(
    np.uint16
)
DEEP[TRUTH == 0], DEEP[TRUTH == 255] = 0, 65535


def decoded(content: bytes, suffix: str = "png", **options) -> Decoded:
    return decode("key", 0, {suffix: content}, Images(SIZE, "exact", **options), None)


def measured(content: bytes, suffix: str = "npy", channels: int = 3, **options) -> Decoded:
    return decode("key", 0, {suffix: content}, Measurements(channels, **options), None)


def everywhere(content: bytes, suffix: str) -> list[str]:
    """Why a file is refused as an image, as a measurement, by `score` and by `kintsugi shard`."""
    source = Source({f"a.{suffix}": len(content)}, lambda name: content, [], [])
    stored = [store(source, f"a.{suffix}", Options(size=size)) for size in (None, SIZE)]
    scored = decode("key", 0, {suffix: content}, as_it_is, None).error
    return [decoded(content, suffix).error, measured(content, suffix).error, scored, *map(str, stored)]


# Files of several images

SEVERAL = {"TIFF": "tif", "GIF": "gif", "WEBP": "webp", "PNG": "png", "AVIF": "avif", "MPO": "jpg"}


def frames(count: int = 3) -> list[Image.Image]:
    """Made anew, for Pillow's writers leave their settings in images."""
    return [Image.fromarray(picture(n)) for n in range(count)]


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_file_of_several_images_fails_and_says_so(kind):
    several = encode(frames()[0], kind, save_all=True, append_images=frames()[1:])
    for why in everywhere(several, SEVERAL[kind]):
        assert re.search(rf"a file of several images, pages or frames \({kind}\)", why)


@pytest.mark.parametrize("kind", SEVERAL)
def test_the_only_image_of_such_a_file_is_read(kind):
    kind = "JPEG" if kind == "MPO" else kind
    sample = decoded(content := encode(frames()[0], kind), "jpg")
    assert sample.error is None
    np.testing.assert_array_equal(sample.image, Image.open(io.BytesIO(content)).convert("RGB"))


def test_smaller_pictures_in_the_jpegs_of_phones_belong_to_the_main_one():
    small = frames()[1].resize((SIZE // 2, SIZE // 2))
    content = encode(frames()[0], "MPO", save_all=True, append_images=[small])
    sample = decoded(content, "jpg")
    assert (sample.error, sample.source) == (None, f"MPO RGB {SIZE}x{SIZE}")
    np.testing.assert_array_equal(sample.image, Image.open(io.BytesIO(content)).convert("RGB"))
    assert (
        decoded(content[: content.index(b"\xff\xd9") + 2], "jpg").error is None
    )  # what is behind is cut off


def test_previews_and_masks_in_a_tiff_are_no_images_of_their_own():
    small = frames()[1].resize((8, 8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    content = encode(frames()[0], "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(decoded(content, "tif").image, picture(0))


def test_a_page_that_cannot_be_read_is_a_page():
    content = bytearray(encode(frames()[0], "TIFF", save_all=True, append_images=frames(2)[1:]))
    second = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<I", content, second + 2 + 12 * count, len(content) - 1)
    assert "several images" in decoded(bytes(content), "tif").error


def test_heic_is_called_what_it_is():
    content = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for why in everywhere(content, "heic"):
        assert "a HEIC or AVIF that the Pillow of this machine does not read; convert it" in why


def test_what_pillow_was_built_without_is_not_asked_for(monkeypatch):
    monkeypatch.delitem(Image.OPEN, "AVIF")
    assert "AVIF" not in decoding.readable()
    assert "a HEIC or AVIF" in decoded(encode(frames()[0], "AVIF"), "avif").error
    assert decoded(encode(TRUTH)).error is None


@pytest.mark.parametrize(
    ("suffix", "kind"), [("jfif", "JPEG"), ("jpe", "JPEG"), ("pgm", "PPM"), ("gif", "GIF")]
)
def test_other_suffixes_of_what_is_read(suffix, kind):
    image = Image.fromarray(TRUTH).convert("L")
    sample = decoded(content := encode(image, kind), suffix)
    np.testing.assert_array_equal(sample.image, Image.open(io.BytesIO(content)).convert("RGB"))


# 16 bits


def tiff16(values: np.ndarray, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, photometric="rgb" if values.ndim == 3 else "minisblack", **options)
    return buffer.getvalue()


OPAQUE = np.full((*TRUTH.shape[:2], 1), 65535, np.uint16)
OF_16_BITS = {
    "PNG": ("png", lambda: png16(DEEP)),
    "TIFF": ("tif", lambda: tiff16(DEEP)),
    "TIFF, big-endian": ("tif", lambda: tiff16(DEEP, byteorder=">")),
    "TIFF, deflate": ("tif", lambda: tiff16(DEEP, compression="zlib", predictor=True)),
    "TIFF, big-endian, deflate": ("tif", lambda: tiff16(DEEP, byteorder=">", compression="zlib")),
    "TIFF, tiles": ("tif", lambda: tiff16(DEEP, tile=(16, 16))),
    "TIFF with alpha": ("tif", lambda: tiff16(np.dstack([DEEP, OPAQUE]), extrasamples=["unassalpha"])),
    "PPM": ("ppm", lambda: b"P6 %d %d 65535\n" % DEEP.shape[1::-1] + DEEP.astype(">u2").tobytes()),
}


@pytest.mark.parametrize("kind", OF_16_BITS)
def test_colour_of_16_bits_is_read_with_16_bits(kind):
    suffix, make = OF_16_BITS[kind]
    expected = DEEP / 32767.5 - 1
    np.testing.assert_allclose(decoded(make(), suffix).image, expected, atol=1e-6)
    measurement = measured(make(), suffix).image
    np.testing.assert_allclose(measurement.transpose(1, 2, 0), expected, atol=1e-6)
    scored = decode("key", 0, {suffix: make()}, as_it_is, None).image
    np.testing.assert_array_equal(scored, np.rint(DEEP / 257).astype(np.uint8))


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    """A PNG with a chunk more, behind its header."""
    return content[:33] + chunk(kind, data) + content[33:]


def png_with_alpha(values: np.ndarray) -> bytes:
    """(H, W, 2 or 4) uint16 as a PNG."""
    height, width, channels = values.shape
    lines = np.pad(values.astype(">u2").reshape(height, -1).view(np.uint8), ((0, 0), (1, 0)))
    pixels = b"IDAT", zlib.compress(lines.tobytes())
    return png(width, height, pixels, bits=16, colour=4 if channels == 2 else 6)


@pytest.mark.parametrize("channels", [3, 1])
def test_transparency_of_16_bits_is_over_white(channels):
    alpha = np.full((SIZE, SIZE, 1), 65535, np.uint16)
    alpha[:4], alpha[4:8] = 0, 32768
    content = png_with_alpha(np.concatenate([DEEP[..., :channels], alpha], -1))
    share = alpha / 65535
    expected = (DEEP[..., :channels] / 32767.5 - 1) * share + 1 - share
    np.testing.assert_allclose(decoded(content).image, np.repeat(expected, 3 // channels, -1), atol=1e-6)


def test_one_value_that_is_transparent():
    content = with_chunk(png16(DEEP), b"tRNS", DEEP[3, 4].astype(">u2").tobytes())
    image = decoded(content).image
    assert (image[3, 4] == 1).all()
    assert (image[(DEEP[3, 4] != DEEP).any(-1)] < 1).any(-1).mean() > 0.9


@pytest.mark.parametrize(
    "options", [{"planarconfig": "separate"}, {"planarconfig": "separate", "compression": 8}]
)
def test_16_bits_that_are_not_read_are_refused(options):
    content = tiff16(np.moveaxis(DEEP, -1, 0), **options)
    assert "16 bits a channel, stored as" in decoded(content, "tif").error


def test_an_image_of_16_bits_is_cropped_and_resized():
    large = np.repeat(np.repeat(DEEP, 2, 0), 3, 1)
    image = decode("key", 0, {"png": png16(large)}, Images(SIZE, "resize_crop"), None).image
    assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.float32)
    assert np.abs(image).max() <= 1
    eight = decode(
        "key", 0, {"png": encode((large // 257).astype(np.uint8))}, Images(SIZE, "resize_crop"), None
    )
    assert np.abs((image + 1) * 127.5 - eight.image).mean() < 1


# Ranges

FLOATS = (DEEP / 65535).astype(np.float32).transpose(2, 0, 1)  # on [0, 1]
ON = {name: low + FLOATS * (high - low) for name, (low, high) in RANGES.items()}
FLOAT_RANGES = ("[-1,1]", "[0,1]", "[0,255]", "[0,65535]")


@pytest.mark.parametrize("stated", FLOAT_RANGES)
@pytest.mark.parametrize("actual", FLOAT_RANGES)
def test_floats_are_taken_for_what_they_are_said_to_be_or_refused(stated, actual):
    sample = measured(array_file(ON[actual]), range=stated)
    if stated == actual:
        np.testing.assert_allclose(sample.image, 2 * FLOATS - 1, atol=1e-6)
    elif (stated, actual) != ("[-1,1]", "[0,1]"):  # which is within [-1, 1]
        assert re.search(r"data\.range", sample.error), sample.error


@pytest.mark.parametrize("actual", FLOAT_RANGES[1:])
def test_floats_on_an_unstated_range_fail_and_name_it(actual):
    assert re.search(
        r"values from [\d.e-]+ to [\d.]+: say what they are on with data\.range=\[0,1\], .* or with "
        r"data\.range=\[-1,1\] that nothing is darker than mid-grey$",
        measured(array_file(ON[actual])).error,
    )


def test_floats_on_the_default_range_need_no_word_and_noise_may_leave_it():
    noisy = ON["[-1,1]"] + np.random.default_rng(0).normal(0, 1, FLOATS.shape).astype(np.float32)
    np.testing.assert_array_equal(measured(array_file(noisy), deviation=1.0).image, noisy)
    assert "far outside of [-1,1]" in measured(array_file(noisy), deviation=0.01).error
    assert measured(array_file(1e6 * noisy), pixels=False).error is None  # what has no range
    assert measured(array_file(np.zeros((3, 8, 8), np.float32))).error is None


def test_images_of_floats_need_a_range():
    content = encode(FLOATS[0], "TIFF")
    assert "floating point numbers; say with data.range" in decoded(content, "tif").error
    np.testing.assert_allclose(
        decoded(content, "tif", range="[0,1]").image[..., 1], 2 * FLOATS[0] - 1, atol=1e-6
    )


TWELVE = (DEEP[..., 0] >> 4).astype(np.uint16)


def test_12_bits_in_16_are_not_taken_for_a_black_picture():
    content = tiff16(TWELVE)
    for why in everywhere(content, "tif"):
        if "tif" not in why:  # `shard` without --size stores what is there
            assert re.search(r"16 bits with no value above \d+: is it of 12 bits or fewer\?", why)
    expected = TWELVE / 2047.5 - 1
    np.testing.assert_allclose(decoded(content, "tif", range="[0,4095]").image[..., 2], expected, atol=1e-6)
    np.testing.assert_allclose(measured(content, "tif", 1, range="[0,4095]").image[0], expected, atol=1e-6)
    assert measured(content, "tif", range="[0,65535]").image.max() < -0.8  # as dark as that
    assert "outside of [0,1023]" in measured(content, "tif", range="[0,1023]").error
    assert decoded(tiff16(np.zeros_like(TWELVE)), "tif").error is None  # black on any range


def test_integers_of_32_bits_are_not_clipped():
    content = encode(Image.fromarray(DEEP[..., 0].astype(np.int32) * 9), "TIFF")
    assert "outside of [0,65535]" in decoded(content, "tif").error


def test_8_bits_need_no_range_whatever_is_said_of_others():
    for stated in RANGES:
        np.testing.assert_array_equal(decoded(encode(TRUTH), range=stated).image, TRUTH)


def test_a_range_that_is_not_stated_leaves_the_hash_as_it_was():
    fields = {
        "data": {"shards": "/s.tar"},
        "degradation": {"operator": {"name": "average_pool", "factor": 4}},
        "output": "out",
    }
    job = Job.model_validate(fields)
    assert job.data.range is None
    stated = job.model_copy(update={"data": Data(shards="/s.tar", range="[0,65535]")})
    assert config_hash(stated) != config_hash(job)
    assert config_hash(job.model_copy(update={"data": Data(shards="/s.tar", range="[-1,1]")})) == config_hash(
        job
    )
    assert config_hash(job) == "704b21c045f32c74cd4283803dc3f7c8cd40d7958ab7674b8d5300464d6f5386"


def test_measurements_that_are_no_images_have_no_range():
    with pytest.raises(ValueError, match=r"data\.range: the measurement is no image"):
        Job.model_validate(
            {
                "data": {"kind": "measurements", "shards": "s.tar", "size": 32, "range": "[0,1]"},
                "degradation": {"operator": {"name": "compressed_sensing"}},
                "output": "out",
            }
        )


# Colours

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PRIMARIES = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
"""Of Display P3, the columns, adapted to D50."""


def display_p3() -> bytes:
    """sRGB's profile with other primaries, and the same curve."""
    profile = bytearray(SRGB)
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        tag, start, _ = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if tag in (names := [b"rXYZ", b"gXYZ", b"bXYZ"]):
            primary = PRIMARIES[:, names.index(tag)]
            struct.pack_into(">3i", profile, start + 8, *(round(v * 65536) for v in primary))
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey with a curve of one exponent."""
    text = b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78)
    tags = {
        b"desc": text,
        b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2),
    }
    start, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


P3 = display_p3()


def linear(levels: np.ndarray) -> np.ndarray:
    """sRGB's curve (IEC 61966-2-1) on [0, 1]."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def curved(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)


def p3_as_srgb(picture: np.ndarray) -> np.ndarray:
    """By the matrices of the two sets of primaries, both adapted to D50."""
    srgb = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.7141]])
    return 255 * curved((linear(picture / 255) @ (np.linalg.inv(srgb) @ PRIMARIES).T).clip(0, 1))


MUTED = (64 + TRUTH // 2).astype(np.uint8)  # inside of sRGB's colours


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF"])
def test_a_profile_other_than_srgb_is_converted(kind):
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}.get(kind, {})
    content = encode(MUTED, kind, icc_profile=P3, **lossless)
    plain = encode(MUTED, kind, **lossless)
    expected = p3_as_srgb(np.asarray(Image.open(io.BytesIO(plain))))
    assert np.abs(decoded(content).image - expected).max() < 2.5
    assert np.abs(MUTED - expected).max() > 10
    scored = decode("key", 0, {"png": content}, as_it_is, None).image
    np.testing.assert_array_equal(scored, decoded(content).image)
    measurement = measured(content, "png").image
    np.testing.assert_array_equal(((measurement + 1) * 127.5).round().transpose(1, 2, 0), scored)


def test_transparency_and_palettes_keep_their_meaning():
    alpha = np.full(MUTED.shape[:2], 255, np.uint8)
    alpha[:5] = 0
    image = decoded(encode(Image.fromarray(np.dstack([MUTED, alpha])), "PNG", icc_profile=P3)).image
    assert (image[:5] == 255).all()
    assert np.abs(image[5:] - p3_as_srgb(MUTED[5:])).max() < 2.5
    palette = Image.fromarray(MUTED).quantize(64)
    image = decoded(encode(palette, "PNG", icc_profile=P3)).image
    assert np.abs(image - p3_as_srgb(np.asarray(palette.convert("RGB")))).max() < 2.5


def test_srgb_changes_no_byte():
    image = Image.fromarray(TRUTH)
    for mode in ("RGB", "L", "RGBA", "P", "1"):
        converted = image.convert(mode)
        plain, marked = (encode(converted, "PNG", **o) for o in ({}, {"icc_profile": SRGB}))
        np.testing.assert_array_equal(decoded(marked).image, decoded(plain).image)


@pytest.mark.parametrize("gamma", [1.0, 1.8])
def test_grey_profiles_are_converted(gamma):
    grey = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (SIZE, 1))
    image = decoded(encode(grey, "PNG", icc_profile=grey_profile(gamma))).image
    expected = 255 * curved((grey / 255) ** gamma)
    assert np.abs(image - expected[..., None]).max() < 2.5


@pytest.mark.parametrize("profile", [b"nonsense" * 40, P3[:300], P3[:128] + bytes(400)])
def test_a_profile_that_is_broken_fails(profile):
    content = encode(TRUTH, "TIFF", icc_profile=profile)
    assert "an ICC profile that cannot be read" in decoded(content, "tif").error


@pytest.mark.parametrize(("mode", "profile"), [("RGB", grey_profile(1.0)), ("CMYK", P3)])
def test_a_profile_that_a_conversion_left_behind_says_nothing(mode, profile):
    image = Image.fromarray(TRUTH).convert(mode)
    plain, marked = (encode(image, "TIFF", **options) for options in ({}, {"icc_profile": profile}))
    np.testing.assert_array_equal(decoded(marked, "tif").image, decoded(plain, "tif").image)


def test_more_bits_with_a_profile_are_refused_unless_it_is_srgb():
    def marked(profile: bytes) -> bytes:
        return with_chunk(png16(DEEP), b"iCCP", b"p\0\0" + zlib.compress(profile))

    assert "more than 8 bits with an ICC profile other than sRGB" in decoded(marked(P3)).error
    np.testing.assert_array_equal(decoded(marked(SRGB)).image, decoded(png16(DEEP)).image)


# A run


def test_a_run_of_images_of_8_and_of_16_bits_restores_both(tmp_path, make_job):
    """Those of 8 bits as without the others; and the truth in a row has 8 bits."""
    eight, deep = encode(TRUTH), png16(DEEP)
    both = write_tar(tmp_path / "both.tar", [("a.png", eight), ("b.png", deep), ("c.png", eight)])
    alone = write_tar(tmp_path / "alone.tar", [("a.png", eight), ("c.png", eight)])
    done: dict[str, dict] = {}
    for shard in (both, alone):
        job = make_job(data={"shards": str(shard), "size": SIZE}, output=str(tmp_path / shard.stem))
        done[shard.stem] = {row["key"]: row for row in rows(execute(job))}
    assert [row["status"] for row in done["both"].values()] == ["ok"] * 3
    assert all(done["both"][key]["restored"] == done["alone"][key]["restored"] for key in "ac")
    truth = np.asarray(Image.open(io.BytesIO(done["both"]["b"]["truth"])))
    np.testing.assert_array_equal(truth, np.rint(DEEP / 257).astype(np.uint8))
