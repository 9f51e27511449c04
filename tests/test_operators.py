"""Every operator of the registry is the linear map it says it is, and its decomposition is exact."""

from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import torch
from PIL import Image

import operators
from operators import SpecError
from operators.masks import freeform

SHAPE = (3, 8, 12)
GOLDEN = Path(__file__).parent / "golden" / "conjugate.npz"


def channel_mask():
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.6


EXAMPLES = {
    "average_pool": [{}, {"factor": 2}],
    "bicubic": [{}, {"factor": 2}, {"factor": 1}],
    "denoise": [{}],
    "gaussian_blur": [
        {},
        {"sigma": 1.0, "taps": 9},
        {"sigma": 1.0, "taps": 9, "boundary": "zero"},
        {"sigma": 1.5, "taps": 7, "boundary": "circular"},
        {"sigma": 0.8, "taps": 5, "threshold": 0.0},
    ],
    "inpaint": [
        {"mask": "box"},
        {"mask": "half"},
        {"mask": "random", "keep": 0.3, "seed": 3},
        {"mask": "freeform", "holes": (0.2, 0.5)},
        {"mask": channel_mask()},
    ],
}
SPECS = [{"name": name, **example} for name, examples in EXAMPLES.items() for example in examples]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}


def label(spec):
    return "-".join("tensor" if isinstance(v, torch.Tensor) else str(v) for v in spec.values())


@pytest.fixture(params=SPECS, ids=label)
def spec(request):
    return request.param


@pytest.fixture(params=list(TOLERANCE), ids=str)
def operator(request, spec):
    return operators.build(spec, SHAPE, dtype=request.param)


@pytest.fixture
def operator64(spec):
    return operators.build(spec, SHAPE, dtype=torch.float64)


@pytest.fixture
def close(operator):
    tolerance = TOLERANCE[operator.singular_values.dtype]
    return lambda one, other: torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def draw(operator, shape, seed=0, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator).to(operator.singular_values)


def dense(function, shape):
    """The matrix of a linear function, from the images of the unit vectors."""
    n = int(np.prod(shape))
    return function(torch.eye(n, dtype=torch.float64).view(n, *shape)).flatten(1).T


def test_every_registered_operator_has_an_example():
    assert set(EXAMPLES) == set(operators.REGISTRY)


def test_shapes_and_precision(operator):
    x = draw(operator, SHAPE)
    y = operator.forward(x)
    assert operator.image_shape == SHAPE
    assert y.shape == (3, *operator.measurement_shape)
    assert operator.adjoint(y).shape == operator.pinv(y).shape == operator.project(x).shape == x.shape
    for result in (y, operator.adjoint(y), operator.pinv(y), operator.project(x), operator.to_spectral(x)):
        assert result.dtype == x.dtype


def test_adjoint(operator, close):
    x, y = draw(operator, SHAPE), draw(operator, operator.measurement_shape, seed=1)
    close((operator.forward(x) * y).sum(), (x * operator.adjoint(y)).sum())


def test_pinv_meets_the_four_conditions_of_moore_and_penrose(operator, close):
    """H H⁺ H = H and H⁺ H H⁺ = H⁺ here; H⁺H and H H⁺ are symmetric (the former: see `project`)."""
    x, y = draw(operator, SHAPE), draw(operator, operator.measurement_shape, seed=1)
    close(operator.forward(operator.pinv(operator.forward(x))), operator.forward(x))
    close(operator.pinv(operator.forward(operator.pinv(y))), operator.pinv(y))
    other = draw(operator, operator.measurement_shape, seed=2)
    close(
        (operator.forward(operator.pinv(y)) * other).sum(), (y * operator.forward(operator.pinv(other))).sum()
    )


def test_project_is_the_orthogonal_projection_onto_what_is_measured(operator, close):
    x, z = draw(operator, SHAPE), draw(operator, SHAPE, seed=1)
    projected = operator.project(x)
    close(projected, operator.pinv(operator.forward(x)))
    close(operator.project(projected), projected)
    close((projected * z).sum(), (x * operator.project(z)).sum())


def test_spectral_map_of_one_is_the_identity_and_of_squares_the_normal_operator(operator, close):
    x = draw(operator, SHAPE)
    close(operator.spectral_map(torch.ones_like, x), x)
    close(operator.spectral_map(torch.square, x), operator.adjoint(operator.forward(x)))


def test_spectral_coordinates_are_an_orthogonal_change_of_basis(operator, close):
    x = draw(operator, SHAPE)
    coordinates = operator.to_spectral(x)
    close(operator.from_spectral(coordinates), x)
    close(operator.to_spectral(operator.from_spectral(x.view_as(coordinates))), x.view_as(coordinates))
    close(coordinates.square().flatten(1).sum(1), x.square().flatten(1).sum(1))
    assert (operator.singular_values * coordinates).shape == coordinates.shape


def test_results_do_not_depend_on_the_batch(operator):
    x = draw(operator, SHAPE, batch=5)
    y = operator.forward(x)
    for function, argument in [
        (operator.forward, x),
        (operator.project, x),
        (operator.adjoint, y),
        (operator.pinv, y),
    ]:
        alone = function(argument[3:4])
        torch.testing.assert_close(function(argument)[3:4], alone, rtol=1e-6, atol=1e-6)


def test_decomposition_is_that_of_the_dense_matrix(operator64):
    matrix = dense(operator64.forward, SHAPE)
    adjoint = dense(operator64.adjoint, operator64.measurement_shape)
    torch.testing.assert_close(adjoint, matrix.T, rtol=0, atol=1e-12)
    ours = operator64.singular_values.expand(SHAPE).flatten().sort(descending=True).values
    theirs = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(ours[: len(theirs)], theirs, rtol=0, atol=1e-12)
    assert (ours[len(theirs) :] == 0).all()


# Each operator against an independent construction.


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


def keys_matrix(n, factor):
    """Each output is centred on its block; beyond the border the image is mirrored."""
    pixels = np.pad(np.arange(n), 2 * factor, mode="symmetric")
    positions = np.arange(n + 4 * factor) - 2 * factor
    centres = factor * np.arange(n // factor)[:, None] + (factor - 1) / 2
    weights = keys((positions - centres) / factor)
    return (weights / weights.sum(1, keepdims=True)) @ np.eye(n)[pixels]


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_bicubic_is_the_cubic_kernel_over_a_mirrored_image(factor):
    height, width = 12, 24
    spec = {"name": "bicubic", "factor": factor}
    operator = operators.build(spec, (1, height, width), dtype=torch.float64)
    x = np.random.default_rng(0).standard_normal((height, width))
    expected = keys_matrix(height, factor) @ x @ keys_matrix(width, factor).T
    np.testing.assert_allclose(operator.forward(torch.from_numpy(x)[None, None])[0, 0], expected, atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_average_pool_is_torchs(factor):
    operator = operators.build({"name": "average_pool", "factor": factor}, SHAPE, dtype=torch.float64)
    x = draw(operator, SHAPE)
    torch.testing.assert_close(operator.forward(x), torch.nn.functional.avg_pool2d(x, factor))


def blur(boundary, threshold, sigma=1.7, taps=9):
    parameters = {"sigma": sigma, "taps": taps, "boundary": boundary, "threshold": threshold}
    return operators.build({"name": "gaussian_blur", **parameters}, SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("taps", [9, 61])
@pytest.mark.parametrize(
    ("boundary", "mode"), [("reflect", "reflect"), ("zero", "constant"), ("circular", "wrap")]
)
def test_gaussian_blur_is_scipys(boundary, mode, taps):
    operator = blur(boundary, 0.0, sigma=3.0, taps=taps)
    kernel = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / 3.0**2)
    kernel /= kernel.sum()
    x = draw(operator, SHAPE)
    y = x.numpy()
    for axis in (-2, -1):
        y = scipy.ndimage.correlate1d(y, kernel, axis=axis, mode=mode)
    # The exact operator has singular values down to 1e-12 of the largest; smaller ones are rounding.
    np.testing.assert_allclose(operator.forward(x), y, atol=1e-10)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "circular"])
def test_blur_threshold_drops_only_what_it_says(boundary):
    kept, exact = blur(boundary, 3e-2), blur(boundary, 0.0)
    difference = dense(kept.forward, SHAPE) - dense(exact.forward, SHAPE)
    assert 0 < torch.linalg.matrix_norm(difference, 2) < 3e-2
    values = kept.singular_values
    assert values[values > 0].min() >= 3e-2**2


def test_inpainting_keeps_the_known_pixels_and_zeroes_the_others():
    known = channel_mask()
    operator = operators.build({"name": "inpaint", "mask": known}, SHAPE)
    x = draw(operator, SHAPE)
    assert torch.equal(operator.forward(x), torch.where(known, x, 0))


# Masks.


def known_pixels(mask, height=64, width=96, **parameters):
    spec = {"name": "inpaint", "mask": mask, **parameters}
    return operators.build(spec, (3, height, width)).singular_values.bool()


def test_box_is_centred_and_of_the_stated_size():
    known = known_pixels("box", box=0.25)
    unknown = torch.zeros(64, 96, dtype=torch.bool)
    unknown[24:40, 36:60] = True
    assert torch.equal(known, (~unknown).expand(3, -1, -1))


def test_half_hides_the_right_half():
    known = known_pixels("half")
    assert known[..., :48].all()
    assert not known[..., 48:].any()


def test_random_mask_keeps_whole_pixels_at_the_stated_rate():
    known = known_pixels("random", keep=0.3)
    assert abs(known.double().mean() - 0.3) < 4 * (0.3 * 0.7 / known[0].numel()) ** 0.5
    assert (known == known[0]).all()


@pytest.mark.parametrize("holes", [(0.1, 0.2), (0.4, 0.5)])
def test_freeform_covers_a_share_within_the_range(holes):
    for seed in range(5):
        share = 1 - known_pixels("freeform", holes=holes, seed=seed).double().mean()
        assert holes[0] <= share <= holes[1]


@pytest.mark.parametrize("mask", ["random", "freeform"])
def test_masks_are_functions_of_their_seed(mask):
    assert torch.equal(known_pixels(mask, seed=1), known_pixels(mask, seed=1))
    assert not torch.equal(known_pixels(mask, seed=1), known_pixels(mask, seed=2))


def test_freeform_refuses_a_range_it_cannot_meet():
    with pytest.raises(ValueError, match="holes"):
        freeform(8, 8, (0.9, 0.1), seed=0)


@pytest.fixture
def mask_files(tmp_path):
    """The same mask as a PNG and two .npz files; true = white."""
    white = torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) < 0.5
    png, npz, named = (str(tmp_path / name) for name in ("mask.png", "mask.npz", "named.npz"))
    Image.fromarray(np.where(white, 255, 0).astype(np.uint8)).save(png)
    np.savez(npz, white.numpy())
    np.savez(named, other=np.zeros((2, 2)), m=white.numpy().astype(np.uint8) * 255)
    return white, [png, npz, named]


def test_mask_files_keep_what_known_names(mask_files):
    white, files = mask_files
    for file in files:
        assert (known_pixels(file, 16, 24, known="white") == white).all()
        assert (known_pixels(file, 16, 24, known="black") == ~white).all()


def test_mask_files_are_resized_by_nearest_neighbour(mask_files):
    white, files = mask_files
    larger = white.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for file in files:
        assert (known_pixels(file, 32, 48, known="white") == larger).all()


def test_mask_files_without_polarity_or_with_other_proportions_are_refused(mask_files):
    for file in mask_files[1]:
        with pytest.raises(SpecError, match="known"):
            known_pixels(file, 16, 24)
        with pytest.raises(SpecError, match=r"mask.*16×24"):
            known_pixels(file, 24, 24, known="white")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"operator\.name: missing"),
        ({"name": "bicubik"}, r"operator\.name.*'bicubik'.*bicubic"),
        ({"name": "bicubic", "scale": 2}, r"operator\.scale.*factor"),
        ({"name": "bicubic", "factor": "x"}, r"operator\.factor"),
        ({"name": "bicubic", "factor": 0}, r"operator\.factor"),
        ({"name": "average_pool", "factor": 5}, "factor: 5 does not divide"),
        ({"name": "gaussian_blur", "sigma": -1.0}, r"operator\.sigma"),
        ({"name": "gaussian_blur", "taps": 8}, "taps: must be odd"),
        ({"name": "gaussian_blur", "boundary": "mirror"}, r"operator\.boundary"),
        ({"name": "gaussian_blur", "threshold": -0.1}, r"operator\.threshold"),
        ({"name": "inpaint"}, r"operator\.mask"),
        ({"name": "inpaint", "mask": "circle"}, "mask: 'circle'"),
        ({"name": "inpaint", "mask": "absent.png", "known": "white"}, r"absent\.png"),
        ({"name": "inpaint", "mask": "random", "keep": 1.5}, r"operator\.keep"),
        ({"name": "inpaint", "mask": torch.ones(SHAPE)}, "mask: .*boolean"),
        ({"name": "inpaint", "mask": torch.ones(5, 5, dtype=torch.bool)}, r"mask: shape \(5, 5\)"),
        ({"name": "denoise", "sigma": 1.0}, r"operator\.sigma"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spec_that_does_not_fit_is_refused_by_field(spec, message):
    with pytest.raises(SpecError, match=message):
        operators.build(spec, SHAPE)
