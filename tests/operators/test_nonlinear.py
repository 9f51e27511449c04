"""Non-linear operators against their definitions, their surrogate inverses and real codecs."""

import io

import numpy as np
import pytest
import torch
from kit.operators import draw
from PIL import Image
from skimage import data

from kintsugi import operators

SHAPE = (3, 16, 32)


def build(name, shape=SHAPE, dtype=torch.float64, **parameters):
    return operators.build({"name": name, **parameters}, shape, dtype=dtype)


def image(seed=0, batch=2):
    return torch.rand(batch, *SHAPE, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_quantize_takes_the_nearest_of_its_levels(bits):
    operator, x = build("quantize", bits=bits), 1.2 * image()
    levels = np.linspace(-1, 1, 2**bits)
    nearest = levels[np.abs(x.numpy()[..., None] - levels).argmin(-1)]
    y = operator.forward(x)
    np.testing.assert_allclose(y, nearest, atol=1e-12)
    torch.testing.assert_close(operator.forward(operator.pinv(y)), y)
    torch.testing.assert_close(operator.vjp(x, y), torch.where(x.abs() <= 1, y, 0))


def test_hdr_clips_what_it_overexposes():
    operator, x = build("hdr", factor=3.0), image()
    y = operator.forward(x)
    torch.testing.assert_close(y, torch.where((3 * x).abs() < 1, 3 * x, x.sign()))
    torch.testing.assert_close(operator.forward(operator.pinv(y)), y)
    torch.testing.assert_close(operator.vjp(x, y), torch.where((3 * x).abs() < 1, 3 * y, 0))
    torch.testing.assert_close(
        operator.impose(x, operator.forward(image(1)))[y.abs() < 1],
        image(1).clamp(-1 / 3, 1 / 3)[y.abs() < 1],
    )


@pytest.mark.parametrize(("oversample", "border"), [(2.0, (4, 8)), (0.0, (0, 0)), (8.0, (16, 32))])
def test_phase_retrieval_measures_the_magnitudes_of_numpys_transform(oversample, border):
    operator, x = build("phase_retrieval", oversample=oversample), image()
    padded = np.pad(x.numpy() + 1, ((0, 0), (0, 0), (border[0],) * 2, (border[1],) * 2))
    expected = np.abs(np.fft.fft2(padded, norm="ortho"))
    np.testing.assert_allclose(operator.forward(x), expected, atol=1e-12)


def test_gradient_of_phase_retrieval_is_its_difference_quotient():
    operator, x, direction = build("phase_retrieval"), image(), draw(build("phase_retrieval"), SHAPE, batch=2)
    y = draw(operator, operator.measurement_shape, batch=2, seed=1)
    quotient = (operator.forward(x + 1e-6 * direction) - operator.forward(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(
        (operator.vjp(x, y) * direction).sum(), (y * quotient).sum(), rtol=1e-6, atol=0
    )


def test_imposing_magnitudes_reduces_the_error():
    """Fienup 1982: the misfit of the magnitudes never grows from one step to the next."""
    operator, x = build("phase_retrieval"), image(1)
    y = operator.forward(image())
    misfits = []
    for _ in range(20):
        misfits.append((operator.forward(x) - y).norm().item())
        x = operator.impose(x, y)
    assert (np.diff(misfits) <= 1e-9).all()
    assert misfits[-1] < 0.7 * misfits[0]


def test_the_inverse_of_magnitudes_is_the_image_when_all_phases_are_zero():
    operator = build("phase_retrieval", oversample=0.0)
    impulse = -torch.ones(1, *SHAPE, dtype=torch.float64)
    impulse[..., 0, 0] = 1
    torch.testing.assert_close(operator.pinv(operator.forward(impulse)), impulse)


# JPEG.


def photograph(side=256):
    return np.asarray(Image.fromarray(data.astronaut()).resize((side, side), Image.Resampling.BICUBIC))


def to_tensor(rgb):
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1


def pillow(rgb, quality, subsampling):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer))


def psnr(one, other):
    return 10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


@pytest.mark.parametrize("side", [256, 90])
@pytest.mark.parametrize("quality", [5, 10, 50, 75, 95])
@pytest.mark.parametrize(("subsampling", "decibel"), [("4:4:4", 40), ("4:2:0", 35)])
def test_jpeg_is_pillows(subsampling, decibel, quality, side):
    """But for what Pillow rounds to 8 bits on the way (see below) and its smoother chroma decoding."""
    rgb = photograph(side)
    operator = build("jpeg", (3, side, side), quality=quality, subsampling=subsampling)
    y = operator.forward(to_tensor(rgb))[0].permute(1, 2, 0).numpy()
    decoded = ((y + 1) * 127.5).clip(0, 255).round()
    assert psnr(decoded, pillow(rgb, quality, subsampling)) > decibel


@pytest.mark.parametrize("quality", [5, 10, 50, 75, 95])
def test_a_grey_jpeg_is_pillows(quality):
    grey = np.asarray(Image.fromarray(photograph(90)).convert("L"))
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=quality)
    y = build("jpeg", (1, 90, 90), quality=quality).forward(to_tensor(grey[..., None]))[0, 0].numpy()
    assert psnr(((y + 1) * 127.5).clip(0, 255).round(), np.asarray(Image.open(buffer))) > 43


@pytest.mark.parametrize("quality", [5, 10, 50, 75, 95])
def test_the_planes_of_a_jpeg_are_pillows(quality):
    """Luminance and chrominance without the conversion of colours, which Pillow rounds to 8 bits."""
    ycc = Image.fromarray(photograph()).convert("YCbCr")
    buffer = io.BytesIO()
    ycc.save(buffer, "JPEG", quality=quality, subsampling="4:4:4")
    with Image.open(buffer) as opened:
        opened.draft("YCbCr", opened.size)
        theirs = np.asarray(opened)
    assert opened.mode == "YCbCr"
    operator = build("jpeg", quality=quality)
    planes = torch.from_numpy(np.array(ycc)).permute(2, 0, 1)[None].double() - 128
    tables = (operator.luminance, operator.chrominance, operator.chrominance)
    for k, table in enumerate(tables):
        decoded = (operator.code(planes[:, k : k + 1], table)[0, 0].numpy() + 128).clip(0, 255).round()
        assert psnr(decoded, theirs[..., k]) > 48


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_coding_twice_is_coding_once(subsampling):
    operator = build("jpeg", (3, 64, 64), quality=10, subsampling=subsampling)
    y = operator.forward(to_tensor(photograph(64)))
    assert (y - to_tensor(photograph(64))).abs().max() > 0.2
    torch.testing.assert_close(operator.forward(operator.pinv(y)), y)


def test_gradient_of_jpeg_is_that_of_subsampling_the_chroma():
    """Rounding counts as the identity: in full resolution nothing is left, in half the mean over 2 × 2."""
    x, v = image(), image(1)
    torch.testing.assert_close(build("jpeg", subsampling="4:4:4").vjp(x, v), v)
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    # A colour is its luma in every channel, which is coded in full, and the rest, which is chroma.
    grey = torch.outer(torch.ones(3, dtype=torch.float64), luma)
    pulled = torch.einsum("ij,bihw->bjhw", grey, v)
    chroma = torch.nn.functional.avg_pool2d(v - pulled, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(build("jpeg").vjp(x, v), pulled + chroma)


def test_jpeg_keeps_grey_images_grey_and_constants_nearly_constant():
    x = torch.full((1, *SHAPE), 0.3, dtype=torch.float64)
    y = build("jpeg", quality=50).forward(x)
    assert (y - y[..., :1, :1]).abs().max() < 1e-12
    assert (y - x).abs().max() < 8 / 127.5


def test_a_chain_is_bounded_by_the_product_of_its_bounds():
    chain = build(
        "compose", operators=[{"name": "average_pool", "factor": 4}, {"name": "hdr", "factor": 2.0}]
    )
    assert chain.lipschitz == pytest.approx(2.0 / 4)
    assert not chain.linear
    y = chain.forward(image())
    torch.testing.assert_close(chain.pinv(y), build("average_pool", factor=4).pinv(y / 2))
