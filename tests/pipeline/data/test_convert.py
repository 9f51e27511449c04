"""Images and measurements of any number of channels: what is stored becomes what the job asks for."""

import io

import numpy as np
import pytest
from kit.shards import SIZE, encode, npy, picture
from PIL import Image

from kintsugi.pipeline.data.convert import LUMINANCE, Images, Measurements
from kintsugi.pipeline.data.decode import Decoded, decode
from kintsugi.pipeline.data.pictures import MAX_VALUES, decoded, png16, suffix_of
from kintsugi.pipeline.data.pictures import encode as encode_picture

COLOUR = picture(3)
GREY = COLOUR[..., 1]
RGBA = np.concatenate([COLOUR, picture(4)[..., :1]], -1)
FOUR = RGBA.transpose(2, 0, 1)


def image(content: bytes, suffix: str, channels: int, fit: str = "exact", **options) -> Decoded:
    return decode("key", 0, {suffix: content}, Images(SIZE, fit, channels=channels, **options), None)


def measured(content: bytes, suffix: str, channels: int, **options) -> Decoded:
    return decode("key", 0, {suffix: content}, Measurements(channels, **options), None)


def test_a_grey_png_is_one_channel_and_three_equal_ones():
    one, three = (image(encode(GREY), "png", channels) for channels in (1, 3))
    np.testing.assert_array_equal(one.array, GREY[..., None])
    np.testing.assert_array_equal(three.array, np.repeat(GREY[..., None], 3, -1))


def test_a_grey_jpeg_is_what_pillow_reads():
    content = encode(GREY, "JPEG", quality=90)
    expected = decoded(content)
    assert expected.shape == (SIZE, SIZE, 1)
    np.testing.assert_array_equal(image(content, "jpg", 1).array, expected)


def test_colours_become_their_luma():
    found = image(encode(COLOUR), "png", 1).array
    assert (found.shape, found.dtype) == ((SIZE, SIZE, 1), np.uint8)
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(found[..., 0], luma, atol=0.51)
    assert LUMINANCE.sum() == pytest.approx(1)


def test_colours_of_16_bits_become_their_luma_with_these_bits():
    deep = COLOUR.astype(np.uint16) * 257 + 40 * (COLOUR < 200)
    found = image(png16(deep.astype(np.uint16)), "png", 1).array
    assert (found.shape, found.dtype) == ((SIZE, SIZE, 1), np.float32)
    luma = deep @ np.array([0.299, 0.587, 0.114]) / 32767.5 - 1
    np.testing.assert_allclose(found[..., 0], luma, atol=1e-5)


def test_grey_of_16_bits_keeps_them():
    deep = GREY.astype(np.uint16) * 256 + 77
    found = image(png16(deep[..., None]), "png", 1).array
    np.testing.assert_allclose(found[..., 0], deep / 32767.5 - 1, atol=1e-6)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (1, SIZE, SIZE)])
def test_an_array_of_one_channel_may_have_two_dimensions(shape):
    found = image(npy(GREY.reshape(shape)), "npy", 1).array
    np.testing.assert_array_equal(found, GREY[..., None])


def test_an_array_of_two_dimensions_is_no_image_of_more_channels():
    assert "shape (32, 32); it must be (C, h, w)" in image(npy(GREY), "npy", 2).error


def test_an_array_of_four_channels_is_as_it_is_stored():
    np.testing.assert_array_equal(image(npy(FOUR), "npy", 4).array, RGBA)
    floats = (FOUR / 127.5 - 1).astype(np.float32)
    found = image(npy(floats), "npy", 4).array
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, floats.transpose(1, 2, 0))
    unit = image(npy((FOUR / 255).astype(np.float32)), "npy", 4, range="[0,1]").array
    np.testing.assert_allclose(unit, floats.transpose(1, 2, 0), atol=1e-6)


def test_an_array_of_16_bits_is_on_the_range_of_its_white():
    found = image(npy(FOUR.astype(np.uint16) * 257), "npy", 4).array
    np.testing.assert_allclose(found, RGBA / 127.5 - 1, atol=1e-6)


def test_an_alpha_channel_is_one_of_four_and_else_the_image_is_over_white():
    np.testing.assert_array_equal(image(encode(RGBA), "png", 4).array, RGBA)
    clear = RGBA.copy()
    clear[..., 3] = 0
    for channels in (1, 3):
        assert (image(encode(clear), "png", channels).array == 255).all()


@pytest.mark.parametrize("fit", ["exact", "resize_crop"])
def test_grey_and_alpha_are_two_channels(fit):
    both = RGBA[..., 2:]
    np.testing.assert_array_equal(image(encode(Image.fromarray(both, "LA")), "png", 2, fit).array, both)


def test_each_channel_is_resized_as_a_picture_of_it_is():
    large = np.concatenate([picture(3, 2 * SIZE), picture(4, 2 * SIZE)[..., :1]], -1)
    found = image(npy(large.transpose(2, 0, 1)), "npy", 4, "resize_crop").array
    for i in range(4):
        alone = image(encode(large[..., i]), "png", 1, "resize_crop").array
        np.testing.assert_array_equal(found[..., i : i + 1], alone)


def test_an_array_is_the_image_where_it_is_no_grey_or_rgb_and_else_the_picture():
    content = {"png": encode(COLOUR), "npy": npy(FOUR)}
    for channels, expected in ((3, COLOUR), (4, RGBA)):
        sample = decode("key", 0, content, Images(SIZE, "exact", channels=channels), None)
        np.testing.assert_array_equal(sample.array, expected)


@pytest.mark.parametrize(
    ("content", "suffix", "channels", "why"),
    [
        (npy(FOUR), "npy", 3, "an array of 4 channels, but 3 channels are asked for (data.channels)"),
        (npy(FOUR), "npy", 1, "an array of 4 channels, but 1 channels are asked for (data.channels)"),
        (npy(FOUR[:2]), "npy", 4, "an array of 2 channels, but 4 channels are asked for (data.channels)"),
        (encode(COLOUR), "png", 4, "an image of mode RGB, but 4 channels are asked for (data.channels)"),
        (encode(GREY), "png", 2, "an image of mode L, but 2 channels are asked for (data.channels)"),
        (encode(Image.fromarray(COLOUR).convert("CMYK"), "JPEG"), "jpg", 4, "of CMYK, which are not read"),
        (npy(FOUR[:, 1:]), "npy", 4, "32x31 pixels, but data.size is 32"),
        (npy(FOUR.astype(np.int64)), "npy", 4, "an array of int64"),
        (npy(FOUR[None]), "npy", 4, "with shape (1, 4, 32, 32)"),
        (npy(np.full((4, SIZE, SIZE), np.nan)), "npy", 4, "NaN or infinity"),
        (npy(np.zeros((4, 0, 0), np.uint8)), "npy", 4, "0x0 pixels"),
        (npy(np.zeros((0, SIZE, SIZE), np.float32)), "npy", 4, "an array of 0 channels"),
        (npy(FOUR.astype(np.float32)), "npy", 4, "data.range"),
        (npy(FOUR)[:-9], "npy", 4, ""),
        (npy(np.array([{}]), allow_pickle=True), "npy", 4, ""),
    ],
)
def test_what_is_no_such_image_is_a_failed_row_that_says_why(content, suffix, channels, why):
    sample = image(content, suffix, channels)
    assert sample.image is None
    assert why in sample.error
    assert sample.error


@pytest.mark.parametrize("shape", [(4, 1 << 20, 1 << 20), (1 << 40, 1, 1), (MAX_VALUES + 1, 1, 1)])
def test_an_array_that_claims_more_than_there_may_be_is_refused_by_its_header(shape):
    told = io.BytesIO()
    np.lib.format.write_array_header_1_0(told, {"descr": "|u1", "fortran_order": False, "shape": shape})
    content = told.getvalue() + bytes(64)
    for sample in (image(content, "npy", 4), measured(content, "npy", 4)):
        assert sample.image is None
        assert "more than 300,000,000 values" in sample.error


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_a_measurement_of_such_channels_is_channels_first_on_its_range(channels):
    planes = FOUR[:channels, :, :20]
    found = measured(npy(planes), "npy", channels).array
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, planes / 127.5 - 1, atol=1e-6)


def test_a_measured_picture_has_the_channels_of_the_job():
    np.testing.assert_allclose(measured(encode(GREY), "png", 1).array[0], GREY / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(measured(encode(RGBA), "png", 4).array, FOUR / 127.5 - 1, atol=1e-6)
    assert "mode RGB, but 4" in measured(encode(COLOUR), "png", 4).error


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["png", "png16"])
def test_a_picture_of_any_channels_is_written_and_read_as_it_was(channels, form):
    levels = RGBA[..., :channels] if form == "png" else RGBA[..., :channels].astype(np.uint16) * 257
    content = encode_picture(levels, form)
    found = decoded(content)
    assert suffix_of(form, channels) == ("png" if channels in (1, 3) else "npy")
    if found.dtype != levels.dtype:  # Pillow reads the upper 8 bits of colours
        levels = (levels >> 8).astype(np.uint8)
    np.testing.assert_array_equal(found, levels)
