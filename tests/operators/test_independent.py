"""Every operator against a construction of it by other means."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.signal
import torch
from kit.operators import SHAPE, channel_mask, dense, draw
from PIL import Image

from kintsugi import operators

GOLDEN = Path(__file__).parents[1] / "golden" / "conjugate.npz"


def build(name, shape=SHAPE, **parameters):
    return operators.build({"name": name, **parameters}, shape, dtype=torch.float64)


# Resizing.


def test_bicubic_is_the_reference_implementations():
    golden = np.load(GOLDEN)
    operator = operators.build({"name": "bicubic", "factor": 4}, (3, 32, 32))
    y = operator.forward(torch.from_numpy(golden["x_true"])).flatten(1)
    reference = torch.from_numpy(golden["cpgdm|bicubic4|w15.0|lam0.0|nfe5|start0.6|sy0.0|y"])
    torch.testing.assert_close(y, reference, rtol=0, atol=1e-5)


def keys(x):
    """The cubic convolution kernel of Keys (1981) with a = −0.5."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def keys_matrix(n, m):
    """Each output is centred on its share of the image; beyond the border the image is mirrored."""
    margin = math.ceil(2 * n / m)
    pixels = np.pad(np.arange(n), margin, mode="symmetric")
    positions = np.arange(n + 2 * margin) - margin
    centres = (np.arange(m)[:, None] + 0.5) * n / m - 0.5
    weights = keys((positions - centres) * m / n)
    return (weights / weights.sum(1, keepdims=True)) @ np.eye(n)[pixels]


@pytest.mark.parametrize(
    ("name", "factor"),
    [*(("bicubic", factor) for factor in (1, 2, 3, 4)), *(("resize", factor) for factor in (1, 4, 1.7, 5.3))],
)
def test_bicubic_is_the_cubic_kernel_over_a_mirrored_image(name, factor):
    height, width = 12, 24
    operator = build(name, (1, height, width), factor=factor)
    x = np.random.default_rng(0).standard_normal((height, width))
    rows, columns = (keys_matrix(n, round(n / factor)) for n in (height, width))
    y = operator.forward(torch.from_numpy(x)[None, None])[0, 0]
    np.testing.assert_allclose(y, rows @ x @ columns.T, atol=1e-12)


@pytest.mark.parametrize("factor", [2.0, 2.4, 3.6])
@pytest.mark.parametrize(
    ("kernel", "filter_"),
    [
        ("cubic", Image.Resampling.BICUBIC),
        ("box", Image.Resampling.BOX),
        ("linear", Image.Resampling.BILINEAR),
        ("lanczos3", Image.Resampling.LANCZOS),
    ],
)
def test_resize_is_pillows_inside_the_borders(kernel, filter_, factor):
    """Pillow cuts kernels off at the border where this one mirrors the image."""
    operator = build("resize", (1, 60, 48), kernel=kernel, factor=factor)
    x = np.random.default_rng(0).standard_normal((60, 48))
    y = operator.forward(torch.from_numpy(x)[None, None])[0, 0].numpy()
    theirs = np.asarray(Image.fromarray(x.astype(np.float32)).resize(y.shape[::-1], filter_))
    inside = (slice(4, -4), slice(4, -4))
    np.testing.assert_allclose(y[inside], theirs[inside], atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_average_pool_is_torchs(factor):
    operator = build("average_pool", factor=factor)
    x = draw(operator, SHAPE)
    torch.testing.assert_close(operator.forward(x), torch.nn.functional.avg_pool2d(x, factor))


# Blurs.

BOUNDARIES = pytest.mark.parametrize(
    ("boundary", "mode"), [("reflect", "reflect"), ("zero", "constant"), ("circular", "wrap")]
)


@pytest.mark.parametrize("taps", [9, 61])
@BOUNDARIES
def test_gaussian_blur_is_scipys(boundary, mode, taps):
    operator = build("gaussian_blur", sigma=3.0, taps=taps, boundary=boundary, threshold=0.0)
    kernel = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / 3.0**2)
    kernel /= kernel.sum()
    x = draw(operator, SHAPE)
    y = x.numpy()
    for axis in (-2, -1):
        y = scipy.ndimage.correlate1d(y, kernel, axis=axis, mode=mode)
    # The exact operator has singular values down to 1e-12 of the largest; smaller ones are rounding.
    np.testing.assert_allclose(operator.forward(x), y, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "boundary"),
    [
        ("gaussian_blur", "reflect"),
        ("gaussian_blur", "zero"),
        ("gaussian_blur", "circular"),
        ("motion_blur", "circular"),
    ],
)
def test_blur_threshold_drops_only_what_it_says(name, boundary):
    kept, exact = (build(name, taps=31, boundary=boundary, threshold=t) for t in (3e-2, 0.0))
    difference = dense(kept.forward, SHAPE) - dense(exact.forward, SHAPE)
    assert 0 < torch.linalg.matrix_norm(difference, 2) < 3e-2
    values = kept.singular_values
    assert values[values > 0].min() >= (3e-2**2 if name == "gaussian_blur" else 3e-2)


@BOUNDARIES
def test_uniform_blur_is_scipys(boundary, mode):
    operator = build("uniform_blur", taps=5, boundary=boundary, threshold=0.0)
    x = draw(operator, SHAPE)
    expected = scipy.ndimage.uniform_filter(x.numpy(), (0, 0, 5, 5), mode=mode)
    np.testing.assert_allclose(operator.forward(x), expected, atol=1e-10)


def anisotropic_kernel(sigmas, angle, taps):
    """exp(−½ dᵀ Σ⁻¹ d), Σ turned counter-clockwise as seen on a screen, whose rows count downwards."""
    turn = np.deg2rad(angle)
    long, short = np.array([np.cos(turn), -np.sin(turn)]), np.array([np.sin(turn), np.cos(turn)])
    covariance = sigmas[0] ** 2 * np.outer(long, long) + sigmas[1] ** 2 * np.outer(short, short)
    y, x = np.mgrid[:taps, :taps] - taps // 2
    d = np.stack([x, y], axis=-1)
    kernel = np.exp(-0.5 * np.einsum("...i,ij,...j", d, np.linalg.inv(covariance), d))
    return kernel / kernel.sum()


@pytest.mark.parametrize(
    ("boundary", "mode", "angle"),
    [
        ("reflect", "reflect", 0),
        ("zero", "constant", 90),
        ("circular", "wrap", 180),
        ("circular", "wrap", 30),
        ("circular", "wrap", -45),
        ("circular", "wrap", 100),
    ],
)
def test_anisotropic_blur_is_scipys_with_a_turned_gaussian(boundary, mode, angle):
    parameters = {"sigmas": (3.0, 0.8), "angle": float(angle), "taps": 9}
    operator = build("anisotropic_blur", **parameters, boundary=boundary, threshold=0.0)
    x = draw(operator, SHAPE)
    kernel = anisotropic_kernel(**parameters)
    expected = [[scipy.ndimage.convolve(plane, kernel, mode=mode) for plane in image] for image in x.numpy()]
    np.testing.assert_allclose(operator.forward(x), expected, atol=1e-10)


def motion_kernel(shape=(1, 64, 64), **parameters):
    operator = build("motion_blur", shape, threshold=0.0, **parameters)
    return operator.kernel.roll((shape[1] // 2, shape[2] // 2), (0, 1)).numpy()


@pytest.mark.parametrize("taps", [5, 15, 61])
def test_motion_blur_is_a_convolution_that_wraps_around(taps):
    """With a kernel larger than the image, too: the image is repeated before the convolution."""
    operator = build("motion_blur", taps=taps, threshold=0.0)
    x = draw(operator, SHAPE, batch=1)
    kernel = motion_kernel(taps=taps)[1:, 1:]
    repeated = np.pad(x[0].numpy(), ((0, 0), (31, 31), (31, 31)), mode="wrap")
    expected = [scipy.signal.convolve2d(plane, kernel, mode="valid") for plane in repeated]
    np.testing.assert_allclose(operator.forward(x)[0], expected, atol=1e-10)


@pytest.mark.parametrize("height", [15, 16])
def test_singular_values_of_a_convolution_are_even_to_the_last_bit(height):
    """Rounding must not keep one of two conjugate frequencies that lie at the threshold."""
    values = build("motion_blur", (1, height, 32), taps=9).singular_values
    assert torch.equal(values, values.flip(0, 1).roll((1, 1), (0, 1)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("intensity", [0.0, 0.5, 1.0])
def test_motion_kernels_are_centred_averages_within_their_window(intensity, seed):
    kernel = motion_kernel(taps=31, intensity=intensity, seed=seed)
    assert kernel.min() > -1e-15
    assert abs(kernel.sum() - 1) < 1e-12
    offsets = np.arange(64) - 32
    assert kernel[np.abs(offsets) > 15].max() < 1e-15
    assert kernel[:, np.abs(offsets) > 15].max() < 1e-15
    np.testing.assert_allclose([kernel.sum(1) @ offsets, kernel.sum(0) @ offsets], 0, atol=1e-10)
    assert np.abs(offsets[(kernel > 1e-6).any(0)]).max() + np.abs(offsets[(kernel > 1e-6).any(1)]).max() > 2


def spreads(kernel):
    """Standard deviations along and across a kernel, pixels."""
    offsets = np.argwhere(kernel > 0) - 32
    covariance = np.cov(offsets.T, aweights=kernel[kernel > 0], ddof=0)
    return np.sqrt(np.linalg.eigvalsh(covariance))


def test_motion_without_intensity_is_straight_and_with_it_is_not():
    across, along = np.transpose([spreads(motion_kernel(intensity=0.0, seed=s)) for s in range(10)])
    assert (across < 0.6).all()  # the width of a bilinear point
    assert (along > 60 * 0.25 / 12**0.5 * 0.99).all()
    across, _ = np.transpose([spreads(motion_kernel(intensity=0.5, seed=s)) for s in range(10)])
    assert (across > 0.6).all()


def test_motion_is_a_function_of_its_seed():
    assert np.array_equal(motion_kernel(seed=1), motion_kernel(seed=1))
    assert not np.allclose(motion_kernel(seed=1), motion_kernel(seed=2))


@pytest.mark.parametrize("n", [10, 40])
def test_rediffs_blur_is_the_released_construction(n):
    """What the released code does to (C, n, n): singular values by channel, vectors interleaved.

    In the span of what the blur keeps; its null vectors are whatever a library returns.
    """
    taps = np.exp(-0.5 * (np.arange(-30, 31) / 3.0) ** 2)
    taps /= taps.sum()
    small = np.zeros((n, n))
    for i in range(n):
        for j in range(max(0, i - 30), min(n, i + 30)):
            small[i, j] = taps[j - i + 30]
    u, s, vt = scipy.linalg.svd(small)
    s[s < 3e-2] = 0
    products = np.outer(s, s).ravel()
    order = np.argsort(-products, kind="stable")
    kept = np.count_nonzero(s)
    coordinates = np.zeros((3, n, n))
    coordinates[:, :kept, :kept] = np.random.default_rng(0).standard_normal((3, kept, kept))
    interleaved = coordinates.reshape(3, n * n)[:, order].T.ravel() * np.tile(products[order], 3)
    blurred = np.empty((3, n * n))
    blurred[:, order] = interleaved.reshape(n * n, 3).T
    y = build("gaussian_blur_rediff", (3, n, n)).forward(torch.from_numpy(vt.T @ coordinates @ vt)[None])
    np.testing.assert_allclose(y[0], u @ blurred.reshape(3, n, n) @ u.T, atol=1e-10)


def test_rediffs_blur_is_18_percent_away_from_the_blur_it_is_said_to_be():
    shape = (3, 32, 32)
    released, stated = build("gaussian_blur_rediff", shape), build("gaussian_blur", shape, boundary="zero")
    x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(0)).double()
    difference = (released.forward(x) - stated.forward(x)).norm() / stated.forward(x).norm()
    assert 0.17 < difference < 0.19


# Pixels, channels, coefficients.


def test_inpainting_keeps_the_known_pixels_and_zeroes_the_others():
    known = channel_mask()
    operator = operators.build({"name": "inpaint", "mask": known}, SHAPE)
    x = draw(operator, SHAPE)
    assert torch.equal(operator.forward(x), torch.where(known, x, 0))


def test_colorize_is_the_mean_or_the_luma():
    rgb = np.random.default_rng(0).integers(0, 256, (*SHAPE[1:], 3), dtype=np.uint8)
    x = torch.from_numpy(rgb).double().permute(2, 0, 1)[None]
    np.testing.assert_allclose(build("colorize").forward(x)[0, 0], rgb.mean(-1), atol=1e-10)
    luma = build("colorize", weights="luma").forward(x)[0, 0]
    np.testing.assert_allclose(luma, np.asarray(Image.fromarray(rgb).convert("L")), atol=0.51)


@pytest.mark.parametrize("block", [None, 4])
def test_compressed_sensing_keeps_rows_of_scipys_hadamard_matrix(block):
    operator = build("compressed_sensing", (1, 8, 16), ratio=0.3, block=block)
    measured = dense(operator.forward, (1, 8, 16))
    h, w = (block or 8), (block or 16)
    rows, columns = (np.kron(np.eye(n // b), scipy.linalg.hadamard(b) / b**0.5) for n, b in ((8, h), (16, w)))
    transform = np.kron(rows, columns)
    # Each measured row is one row of the transform, and none twice.
    overlaps = measured.numpy() @ transform.T
    which = overlaps.argmax(1)
    np.testing.assert_allclose(measured, transform[which], atol=1e-12)
    assert len(set(which)) == len(which) == round(0.3 * h * w) * (8 // h) * (16 // w)
    # Every block keeps the same coefficients.
    i, j = np.divmod(which, 16)
    kept = {(a // h, b // w): set() for a, b in zip(i, j, strict=True)}
    for a, b in zip(i, j, strict=True):
        kept[a // h, b // w].add((a % h, b % w))
    assert len(kept) == (8 // h) * (16 // w)
    assert len({frozenset(k) for k in kept.values()}) == 1


def test_compressed_sensing_is_a_function_of_its_seed():
    same, again, other = (build("compressed_sensing", seed=seed).kept for seed in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


# Composition.


@pytest.mark.parametrize(
    "specs",
    [
        [{"name": "gaussian_blur", "sigma": 1.0, "boundary": "zero"}, {"name": "bicubic", "factor": 2}],
        [{"name": "motion_blur", "taps": 7}, {"name": "motion_blur", "taps": 5, "seed": 3}],
        [{"name": "inpaint", "mask": "random"}, {"name": "inpaint", "mask": channel_mask()}],
        [{"name": "resize", "factor": 1.5}, {"name": "colorize"}, {"name": "uniform_blur", "taps": 3}],
        [{"name": "colorize"}, {"name": "colorize"}, {"name": "motion_blur", "taps": 7}, {"name": "denoise"}],
        [{"name": "inpaint", "mask": "half"}, {"name": "colorize"}, {"name": "inpaint", "mask": "box"}],
        [{"name": "average_pool"}, {"name": "colorize", "weights": "luma"}, {"name": "colorize"}],
        [{"name": "bicubic", "factor": 2}, {"name": "jpeg", "quality": 50}, {"name": "colorize"}],
    ],
    ids=lambda specs: "+".join(spec["name"] for spec in specs),
)
def test_composition_applies_one_operator_after_the_other(specs):
    composed = build("compose", operators=specs)
    x = draw(composed, SHAPE)
    y, shape = x, SHAPE
    for spec in specs:
        operator = operators.build(spec, shape, dtype=torch.float64)
        y, shape = operator.forward(y), operator.measurement_shape
    assert composed.measurement_shape == shape
    torch.testing.assert_close(composed.forward(x), y, rtol=0, atol=1e-12)


def test_a_composition_measures_pixels_if_all_its_operators_do():
    sensed = [{"name": "colorize"}, {"name": "compressed_sensing"}]
    assert not build("compose", operators=sensed).pixels
    assert not build("compose", operators=[*sensed, {"name": "quantize"}]).pixels
    assert build("compose", operators=[{"name": "colorize"}, {"name": "bicubic"}]).pixels
