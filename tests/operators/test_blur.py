"""`blur`: kernels of one's own against scipy's convolutions and dense pseudo-inverses, and their files."""

import os
import struct
import zlib

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import scipy.signal
import torch
from kit.operators import dense, draw
from PIL import Image

from kintsugi import operators
from kintsugi.operators import SpecError
from kintsugi.operators.base import Separable
from kintsugi.operators.bordered import extension, fast
from kintsugi.operators.convolution import Convolution, Mirrored
from kintsugi.operators.kernels import MAX_BYTES
from kintsugi.operators.solved import TOLERANCE, Solved

SHAPE = (1, 11, 14)
MODES = {"reflect": "reflect", "zero": "constant", "circular": "wrap"}


def random(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 1, shape)


def shaken(taps=19):
    """A kernel as of a camera: a curve, off the centre, in a window of odd size."""
    t = np.linspace(0, 1, 400)
    kernel, _, _ = np.histogram2d(
        0.6 * taps + 0.3 * taps * np.sin(4 * t), taps * (0.2 + 0.6 * t**2), taps, [[0, taps]] * 2
    )
    return kernel / kernel.sum()


def turned(taps=7):
    """An anisotropic Gaussian at 30°."""
    y, x = np.mgrid[:taps, :taps] - taps // 2
    u, v = 0.866 * x + 0.5 * y, 0.866 * y - 0.5 * x
    return np.exp(-0.5 * ((u / 2) ** 2 + (v / 0.7) ** 2))


def disc(taps=5):
    y, x = np.mgrid[:taps, :taps] - taps // 2
    return (x**2 + y**2 <= (taps / 2) ** 2).astype(float)


KERNELS = {
    "full": random(3, 5),
    "even": random(4, 2),
    "even and odd": random(4, 3),
    "rank 1": np.outer(random(3, seed=1), random(4, seed=2)),
    "row": random(1, 5),
    "column": random(4, 1),
    "one": np.ones((1, 1)),
    "turned": turned(),
    "disc": disc(),
    "shaken": shaken(9),
    "with negative taps": np.array([[0.0, -0.2, 0.1], [0.1, 1.0, -0.3]]),
}


def build(kernel, shape=SHAPE, dtype=torch.float64, **parameters):
    spec = {"name": "blur", "kernel": np.asarray(kernel).tolist(), "threshold": 0.03, **parameters}
    return operators.build(spec, shape, dtype=dtype)


def blurred(x, kernel, boundary, centre=None):
    """By scipy, of images (B, C, H, W); `centre` by its `origin`."""
    if boundary == "valid":
        return np.stack([[scipy.signal.convolve2d(p, kernel, mode="valid") for p in image] for image in x])
    # scipy's origin is from the middle, to the other side.
    origin = [0, 0] if centre is None else [c - k // 2 for c, k in zip(centre, kernel.shape, strict=True)]
    return np.stack(
        [
            [scipy.ndimage.convolve(p, kernel, mode=MODES[boundary], origin=origin) for p in image]
            for image in x
        ]
    )


@pytest.mark.parametrize("boundary", [*MODES, "valid"])
@pytest.mark.parametrize("name", KERNELS)
def test_it_is_scipys_convolution(name, boundary):
    kernel = KERNELS[name] / KERNELS[name].sum()
    # Exact operators lose to a threshold in y, too; those that are solved for need one.
    operator = build(KERNELS[name], boundary=boundary)
    if not isinstance(operator, Solved):
        operator = build(KERNELS[name], boundary=boundary, threshold=0.0)
    x = draw(operator, SHAPE)
    np.testing.assert_allclose(operator.forward(x), blurred(x.numpy(), kernel, boundary), atol=1e-10)


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("name", ["full", "even", "rank 1", "disc"])
def test_an_origin_beside_the_middle_shifts_as_scipys(name, boundary):
    kernel = KERNELS[name] / KERNELS[name].sum()
    for centre in ((0, 0), (kernel.shape[0] - 1, 1)):
        operator = build(kernel, boundary=boundary, centre=centre)
        if not isinstance(operator, Solved):
            operator = build(kernel, boundary=boundary, centre=centre, threshold=0.0)
        x = draw(operator, SHAPE)
        expected = blurred(x.numpy(), kernel, boundary, centre)
        np.testing.assert_allclose(operator.forward(x), expected, atol=1e-10)


def test_a_kernel_of_one_tap_beside_its_origin_is_a_shift():
    operator, kernel = build([[0, 0, 1.0], [0, 0, 0]]), np.random.default_rng(0).standard_normal(SHAPE)
    x = torch.from_numpy(kernel)[None]
    torch.testing.assert_close(operator.forward(x), x.roll((-1, 1), (2, 3)))


@pytest.mark.parametrize("boundary", ["reflect", "zero"])
def test_a_kernel_larger_than_the_image_reaches_beyond_its_copies(boundary):
    kernel = random(13, 9) / random(13, 9).sum()
    operator = build(kernel, (1, 5, 4), boundary=boundary)
    x = draw(operator, (1, 5, 4))
    np.testing.assert_allclose(operator.forward(x), blurred(x.numpy(), kernel, boundary), atol=1e-10)


@pytest.mark.parametrize(
    ("name", "boundary", "kind"),
    [
        ("rank 1", "circular", Separable),
        ("rank 1", "valid", Separable),
        ("row", "reflect", Separable),
        ("full", "circular", Convolution),
        ("disc", "reflect", Mirrored),
        ("disc", "zero", Solved),
        ("turned", "reflect", Solved),
        ("full", "valid", Solved),
    ],
)
def test_it_is_diagonal_where_it_can_be(name, boundary, kind):
    assert isinstance(build(KERNELS[name], boundary=boundary), kind)
    single = KERNELS[name].astype(np.float32)  # as a file may hold it
    assert isinstance(build(single, boundary=boundary), kind)


@pytest.mark.parametrize("boundary", [*MODES, "valid"])
@pytest.mark.parametrize("threshold", [0.0, 0.01])
def test_a_threshold_means_the_same_for_a_gaussian_and_for_its_kernel(boundary, threshold):
    taps = np.exp(-0.5 * (np.arange(9) - 4) ** 2 / 1.5**2)
    ours = build(3 * np.outer(taps, taps), boundary=boundary, threshold=threshold)
    if boundary != "valid":
        spec = {
            "name": "gaussian_blur",
            "sigma": 1.5,
            "taps": 9,
            "boundary": boundary,
            "threshold": threshold,
        }
        theirs = operators.build(spec, SHAPE, dtype=torch.float64)
        torch.testing.assert_close(ours.singular_values, theirs.singular_values, rtol=0, atol=1e-9)


# What is solved for.

SOLVED = pytest.mark.parametrize(
    ("name", "boundary"),
    [("full", "valid"), ("shaken", "valid"), ("even", "zero"), ("shaken", "zero"), ("turned", "reflect")],
)


@SOLVED
@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_solutions_are_the_dense_ones_to_the_tolerance(name, boundary, ridge):
    operator = build(KERNELS[name], boundary=boundary)
    h, v = dense(operator.forward, SHAPE), draw(operator, operator.measurement_shape, batch=8)
    amount = max(ridge, 0.03**2)
    inner = h @ h.T + amount * torch.eye(len(h), dtype=h.dtype)
    exact = (h.T @ torch.linalg.solve(inner, v.flatten(1).T)).T
    error = (operator.solve(v, ridge).flatten(1) - exact).norm(dim=1)
    # ‖Hᵀ (H Hᵀ + λ)⁻¹‖ ≤ 1 / (2 √λ).
    assert (error <= TOLERANCE * v.flatten(1).norm(dim=1) / (2 * amount**0.5)).all()
    if ridge == 0.0:
        assert torch.equal(operator.pinv(v), operator.solve(v))


@SOLVED
def test_every_direction_is_divided_by_no_less_than_it_should_be(name, boundary):
    """‖H H⁺H − H‖ ≤ threshold / 2, and H⁺ amplifies by 1 / (2 threshold) at most."""
    operator = build(KERNELS[name], boundary=boundary)
    h, inverse = dense(operator.forward, SHAPE), dense(operator.pinv, operator.measurement_shape)
    assert torch.linalg.matrix_norm(h @ inverse @ h - h, 2) <= 0.03 / 2 + 1e-6
    assert torch.linalg.matrix_norm(inverse, 2) <= 1 / (2 * 0.03) + 1e-4
    assert torch.linalg.matrix_norm(h, 2) <= operator.lipschitz + 1e-9


@pytest.mark.parametrize("boundary", ["reflect", "zero", "valid"])
def test_without_a_threshold_it_is_the_pseudo_inverse(boundary):
    kernel = [[0.0, 0.1, 0.0], [0.2, 1.0, -0.1], [0.05, 0.1, 0.0]]
    operator = build(kernel, boundary=boundary, threshold=0.0)
    assert isinstance(operator, Solved)
    h, inverse = dense(operator.forward, SHAPE), dense(operator.pinv, operator.measurement_shape)
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(inverse, torch.linalg.pinv(h), **close)
    for product, same in ((h @ inverse @ h, h), (inverse @ h @ inverse, inverse)):
        torch.testing.assert_close(product, same, **close)
    for product in (h @ inverse, inverse @ h):
        torch.testing.assert_close(product, product.T, **close)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["reflect", "valid"])
def test_a_sample_alone_and_in_a_batch_is_solved_alike(boundary):
    operator = build(shaken(), (3, 48, 40), torch.float32, boundary=boundary)
    scale = torch.tensor([1e-3, 1.0, 10.0, 0.0])[:, None, None, None]
    y = scale * draw(operator, operator.measurement_shape, batch=4)
    together = operator.pinv(y)
    for i in range(4):
        torch.testing.assert_close(operator.pinv(y[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)
    assert (together[3] == 0).all()


@pytest.mark.slow
def test_single_precision_solves_as_double_does():
    single, double = (
        build(shaken(), (1, 48, 40), t, boundary="reflect") for t in (torch.float32, torch.float64)
    )
    y = draw(double, double.measurement_shape)
    exact = double.pinv(y)
    assert (single.pinv(y.float()) - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.slow
def test_what_does_not_converge_is_refused():
    with pytest.raises(SpecError, match=r"threshold: at 1e-07 .*boundary 'zero'; raise it, or use circular"):
        build(turned(15), (1, 48, 48), boundary="zero", threshold=1e-7)


def test_grids_are_fast_and_extensions_are_numpys():
    assert [fast(n) for n in (1, 7, 11, 97, 121, 282)] == [1, 8, 12, 100, 125, 288]
    for edge, mode in (("reflect", "symmetric"), ("zero", "constant")):
        matrix = extension(5, 12, 4, edge, 15).numpy()
        padded = np.pad(np.arange(1.0, 6), (4, 3), mode=mode)
        np.testing.assert_array_equal(matrix @ np.arange(1.0, 6), [*padded, 0, 0, 0])


def test_a_chain_with_what_is_not_linear_goes_through_it():
    """And one that is linear has no decomposition."""
    valid = {"name": "blur", "kernel": shaken(5).tolist(), "boundary": "valid"}
    chain = operators.build({"name": "compose", "operators": [valid, {"name": "quantize"}]}, (3, 12, 16))
    assert chain.measurement_shape == (3, 8, 12)
    assert chain.lipschitz >= 1
    colours = {"name": "compose", "operators": [valid, {"name": "colorize"}]}
    with pytest.raises(SpecError, match="blur → colorize has no singular value decomposition"):
        operators.build(colours, (3, 12, 16))
    mirrored = {"name": "blur", "kernel": disc().tolist(), "boundary": "reflect"}
    both = operators.build({"name": "compose", "operators": [mirrored, {"name": "colorize"}]}, (3, 12, 16))
    x = draw(both, (3, 12, 16))
    gray = operators.build(mirrored, (1, 12, 16)).forward(x.mean(1, keepdim=True))
    torch.testing.assert_close(both.forward(x), gray)


# A photograph.


@pytest.mark.slow
@pytest.mark.parametrize(("boundary", "threshold"), [("valid", 0.01), ("reflect", 0.03), ("zero", 0.03)])
def test_a_photograph_measured_by_a_camera_is_restored(boundary, threshold):
    """A piece of one, shaken over 19 pixels: most of what the blur took comes back, away from the borders."""
    from skimage import data

    image = torch.from_numpy(data.camera()[100:196, 180:276] / 127.5 - 1)[None, None]
    kernel = shaken()
    kernel = np.roll(kernel, (-2, 1), (0, 1))  # about its centre
    operator = build(kernel, (1, 96, 96), boundary=boundary, threshold=threshold)
    y = operator.forward(image)
    assert y.shape[2:] == ((78, 78) if boundary == "valid" else (96, 96))
    restored, inner = operator.pinv(y), slice(24, 72)
    # The first pixel of "valid" is the tenth of the image, whose window is whole.
    seen = slice(15, 63) if boundary == "valid" else inner
    truth = image[..., inner, inner]
    before, after = (
        (found - truth).square().mean().sqrt() for found in (y[..., seen, seen], restored[..., inner, inner])
    )
    assert after < 0.5 * before, (before, after)
    assert (operator.forward(restored) - y).square().mean().sqrt() < 0.01


# Kernels and their files.


def test_a_sum_of_one_is_made_or_left():
    x = torch.ones(1, *SHAPE, dtype=torch.float64)
    assert build(5 * KERNELS["full"]).forward(x).sub(1).abs().max() < 1e-9
    left = build(KERNELS["full"], normalise=False).forward(x)
    torch.testing.assert_close(left, torch.full_like(left, KERNELS["full"].sum()))
    laplacian = [[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]
    assert build(laplacian, normalise=False).forward(x).abs().max() < 1e-9


KERNEL = shaken(19)


def write_file(path, kernel=KERNEL):
    match path.suffix:
        case ".npy":
            np.save(path, kernel)
        case ".npz":
            np.savez_compressed(path, k=kernel, other=np.zeros(3))
        case ".mat":
            # As the files of Levin et al.: an image, its blurred version, and the kernel f.
            scipy.io.savemat(path, {"x": np.eye(40), "y": np.eye(40), "f": kernel}, do_compression=True)
    return str(path)


@pytest.mark.parametrize(("suffix", "variable"), [("npy", None), ("npz", "k"), ("mat", "f")])
def test_kernels_of_files_are_those_that_were_written(suffix, variable, tmp_path):
    path = write_file(tmp_path / f"kernel.{suffix}")
    from_file = operators.build(
        {"name": "blur", "kernel": path, "variable": variable}, (1, 32, 32), dtype=torch.float64
    )
    by_numbers = build(KERNEL, (1, 32, 32))
    assert torch.equal(from_file.kernel, by_numbers.kernel)


@pytest.mark.parametrize("version", ["4", "5"])
@pytest.mark.parametrize("kind", ["uint8", "float32", "int16", "float64"])
def test_mat_files_of_both_versions_and_all_types(version, kind, tmp_path):
    kernel = np.round(100 * KERNEL / KERNEL.max()).astype(kind)
    scipy.io.savemat(path := tmp_path / "k.mat", {"f": kernel}, format=version)
    found = operators.build({"name": "blur", "kernel": str(path)}, (1, 32, 32), dtype=torch.float64)
    assert torch.equal(found.kernel, build(kernel, (1, 32, 32)).kernel)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGB", "P"])
def test_png_kernels_are_grey_levels(mode, tmp_path):
    top = 65535 if mode == "I;16" else 255
    levels = np.round(top * KERNEL / KERNEL.max())
    image = Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.uint8))
    (image.convert(mode) if mode in ("RGB", "P") else image).save(path := tmp_path / "k.PNG")
    found = operators.build({"name": "blur", "kernel": str(path)}, (1, 32, 32), dtype=torch.float64)
    torch.testing.assert_close(found.kernel, build(levels, (1, 32, 32)).kernel)


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content


def bomb(path):
    """128 MiB of zeros in a small file, as an element of a .mat file."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    deflate = zlib.compressobj(9)
    inside = deflate.compress(struct.pack("<II", 14, 1 << 27))
    inside += b"".join(deflate.compress(bytes(1 << 24)) for _ in range(8)) + deflate.flush()
    path.write_bytes(header + element(15, inside))


def objects(path):
    scipy.io.savemat(path, {"f": {"a": 1}, "g": np.array([["text", 1]], dtype=object)})


def text(path):
    path.write_bytes(b"hello")


def cut(path):
    write_file(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def large(path):
    path.touch()
    os.truncate(path, MAX_BYTES + 1)


def pickled(path):
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def two(path):
    if path.suffix == ".npz":
        np.savez(path, a=KERNEL, b=KERNEL)
    else:
        scipy.io.savemat(path, {"a": KERNEL, "b": KERNEL})


def hdf5(path):
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<HH", 0x0200, 0x4D49) + bytes(900))


def saved(array):
    return lambda path: (
        np.save(path, array) if path.suffix == ".npy" else scipy.io.savemat(path, {"f": array})
    )


def coloured(path):
    Image.fromarray(random(5, 5, 3).astype(np.float32).view(np.uint8)[:, :5, :3]).save(path)


def transparent(path):
    Image.fromarray(np.full((5, 5, 4), 90, np.uint8)).save(path)


def huge(path):
    Image.new("L", (1100, 2)).save(path)


HOSTILE = [
    ("k.mat", bomb, "more than 67,108,864 bytes when inflated"),
    ("k.mat", objects, r"0 arrays of numbers \(none\); name one"),
    ("k.mat", text, "kernel: .*k.mat: "),
    ("k.mat", cut, "cut: its last element"),
    ("k.mat", large, "67,108,865 bytes, more than"),
    ("k.mat", two, r"2 arrays of numbers \(a, b\); name one by `variable`"),
    ("k.mat", hdf5, "MATLAB 7.3, which is HDF5; save it with -v7"),
    ("k.mat", saved(np.zeros((2, 1500))), "more than 1023"),
    ("k.mat", saved(1j * KERNEL), "values of type complex128"),
    ("k.mat", saved(np.zeros((2, 2, 2))), "0 arrays of numbers"),
    ("k.mat", lambda path: os.mkfifo(path), "no regular file"),
    ("k.npy", pickled, "Python objects"),
    ("k.npy", cut, "kernel: .*k.npy: cut"),
    ("k.npy", saved(np.zeros((1100, 1100))), "more than 1,046,529 values"),
    ("k.npy", saved(np.zeros(5)), r"has shape \(5,\), expected"),
    ("k.npy", saved(np.zeros((0, 5))), r"has shape \(0, 5\), expected"),
    ("k.npy", saved(np.zeros((3, 3))), "zero everywhere"),
    ("k.npy", saved(np.full((3, 3), np.nan)), "not finite"),
    ("k.npy", saved(np.array([["a"]])), "real numbers"),
    ("k.npz", two, "2 arrays and none is named"),
    ("k.npz", text, "holds no array"),
    ("k.png", text, "cannot identify image file"),
    ("k.png", coloured, "has colours"),
    ("k.png", transparent, "transparent"),
    ("k.png", huge, "a side of more than 1023"),
    ("k.tif", text, "not a file of one of .npy, .npz, .mat, .png"),
    ("missing.npy", lambda path: None, "No such file"),
]


@pytest.mark.parametrize(("name", "make", "message"), HOSTILE)
def test_files_that_hold_no_kernel_are_refused_in_words(name, make, message, tmp_path):
    make(tmp_path / name)
    with pytest.raises(SpecError, match=message) as error:
        operators.build({"name": "blur", "kernel": str(tmp_path / name)}, SHAPE)
    assert "operator 'blur': kernel: " in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"kernel": [[1.0, 2.0], [3.0]]}, "kernel: rows of different lengths"),
        ({"kernel": []}, r"kernel: the kernel has shape \(0,\)"),
        ({"kernel": [[float("inf")]]}, r"operator\.kernel"),
        ({"kernel": 3}, r"operator\.kernel"),
        ({}, r"operator\.kernel: missing"),
        ({"kernel": [[1.0, -1.0]]}, "normalise: the kernel sums to zero"),
        ({"kernel": [[1.0]], "variable": "f"}, "variable: 'f' is for"),
        ({"kernel": "k.png", "normalise": False}, "normalise: the grey levels of a PNG"),
        ({"kernel": [[1.0, 2.0]], "centre": (0, 2)}, r"centre: \(0, 2\) is outside of a kernel of 1×2"),
        ({"kernel": [[1.0, 2.0]], "centre": (0, 0), "boundary": "valid"}, 'centre: "valid" measures'),
        ({"kernel": np.ones((12, 3)).tolist(), "boundary": "valid"}, "12×3 fits nowhere into images"),
        ({"kernel": [[1.0]], "boundary": "mirror"}, r"operator\.boundary"),
        *(({"kernel": KERNELS["disc"].tolist(), "boundary": edge, "threshold": 2.0}, "threshold: 2.0 is")
          for edge in ("circular", "reflect", "zero")),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused_by_field(parameters, message):
    with pytest.raises(SpecError, match=message):
        operators.build({"name": "blur", **parameters}, SHAPE)


def test_the_array_named_is_the_one_that_is_read(tmp_path):
    scipy.io.savemat(path := tmp_path / "k.mat", {"f": KERNEL, "g": np.ones((3, 3))})
    spec = {"name": "blur", "kernel": str(path), "variable": "h"}
    with pytest.raises(SpecError, match=r"no array of numbers .* is called 'h'; there are: f, g"):
        operators.build(spec, SHAPE)
    assert isinstance(operators.build(spec | {"variable": "g"}, SHAPE), Separable)
