"""Every operator of the registry is the map it says it is, and its decomposition is exact."""

import pytest
import torch
from kit.operators import SHAPE, blur_file, channel_mask, dense, draw

from kintsugi import operators
from kintsugi.operators import SpecError
from kintsugi.testing import check_operator

SQUARE = (3, 12, 12)


COLORIZE = {"name": "colorize"}
SMALL_MOTION = {"name": "motion_blur", "taps": 7, "seed": 2}
TURNED = {"name": "anisotropic_blur", "sigmas": (2.0, 0.7), "angle": 30.0, "taps": 5}
RANDOM = {"name": "inpaint", "mask": "random", "keep": 0.6}


SKEW = [[0.0, 1.0, 0.0, 2.0], [3.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.5, 0.0]]
"""Of full rank, an even and an odd side, its weight off the centre."""
SHARP = [[0.0, 0.1, 0.0], [0.2, 1.0, -0.1], [0.05, 0.1, 0.0]]
"""Well conditioned, so that no threshold is needed."""
DISC = [[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def composed(*specs):
    return {"operators": list(specs)}


EXAMPLES = {
    "anisotropic_blur": [
        {},
        {"sigmas": (2.0, 0.7), "angle": 90.0, "boundary": "zero"},
        {k: v for k, v in TURNED.items() if k != "name"},
    ],
    "average_pool": [{}, {"factor": 2}],
    "bicubic": [{}, {"factor": 2}, {"factor": 1}],
    "blur": [
        {"kernel": SKEW},  # circular
        {"kernel": SKEW, "centre": (0, 3)},
        {"kernel": [[1.0, 2.0, 0.5, 3.0], [2.0, 4.0, 1.0, 6.0]], "boundary": "valid"},  # of rank 1, even
        {"kernel": [[1.0, 2.0, 0.5]], "boundary": "zero", "centre": (0, 0)},
        {"kernel": [[0.5], [0.0], [2.0], [1.0]], "boundary": "reflect"},
        {"kernel": DISC, "boundary": "reflect"},
        *({"kernel": SKEW, "boundary": edge} for edge in ("reflect", "zero", "valid")),
        {"kernel": SHARP, "boundary": "reflect", "threshold": 0.0},
        {"kernel": SHARP, "boundary": "valid", "threshold": 0.0, "normalise": False},
    ],
    "colorize": [{}, {"weights": "luma"}],
    "compose": [
        composed({"name": "denoise"}, {"name": "bicubic", "factor": 2}, {"name": "denoise"}),
        composed(
            {"name": "gaussian_blur", "sigma": 1.0, "taps": 5, "boundary": "zero"},
            {"name": "resize", "factor": 1.5},
        ),
        composed(SMALL_MOTION, TURNED),
        composed(RANDOM, {"name": "inpaint", "mask": "half"}),
        composed({"name": "colorize", "weights": "luma"}, COLORIZE),
        composed({"name": "average_pool", "factor": 2}, COLORIZE, {"name": "gaussian_blur", "sigma": 0.7}),
        composed(COLORIZE, SMALL_MOTION, COLORIZE),
        composed(RANDOM, COLORIZE),
        composed(COLORIZE, {"name": "compressed_sensing", "block": 4}),
        composed({"name": "compressed_sensing", "block": 4}, COLORIZE),
        composed({"name": "bicubic", "factor": 2}, {"name": "jpeg"}),
        composed({"name": "hdr"}, {"name": "quantize"}),
    ],
    "compressed_sensing": [{}, {"ratio": 0.25, "block": 4, "seed": 1}],
    "denoise": [{}],
    "gaussian_blur": [
        {},
        {"sigma": 1.0, "taps": 9},
        {"sigma": 1.0, "taps": 9, "boundary": "zero"},
        {"sigma": 1.5, "taps": 7, "boundary": "circular"},
        {"sigma": 0.8, "taps": 5, "threshold": 0.0},
    ],
    "gaussian_blur_rediff": [{}],
    "hdr": [{}, {"factor": 3.0}],
    "inpaint": [
        {"mask": "box"},
        {"mask": "half"},
        {"mask": "random", "keep": 0.3, "seed": 3},
        {"mask": "freeform", "holes": (0.2, 0.5)},
        {"mask": channel_mask()},
    ],
    "jpeg": [{}, {"quality": 60, "subsampling": "4:4:4"}],
    "linear_motion_blur": [{}, {"length": 6.0, "angle": 30.0}],
    "motion_blur": [{}, {"taps": 7, "intensity": 1.0, "seed": 1}],
    "nonlinear_blur": [{"weights": blur_file()}],
    "phase_retrieval": [{}, {"oversample": 0.0}],
    "quantize": [{}, {"bits": 1}],
    "resize": [{}, {"factor": 1.7}, *({"factor": 2.5, "kernel": k} for k in ("box", "linear", "lanczos3"))],
    "uniform_blur": [{}, {"taps": 3, "boundary": "zero"}, {"taps": 5, "boundary": "circular"}],
}
SPECS = [{"name": name, **example} for name, examples in EXAMPLES.items() for example in examples]


def shape_of(spec):
    return SQUARE if spec["name"] == "gaussian_blur_rediff" else SHAPE


def build(spec):
    return operators.build(spec, shape_of(spec), dtype=torch.float64)


LINEAR = [spec for spec in SPECS if build(spec).decomposed]
NONLINEAR = [spec for spec in SPECS if not build(spec).linear]


def label(value):
    if isinstance(value, dict):
        return "-".join(label(v) for v in value.values())
    if isinstance(value, list):
        return "+".join(label(v) for v in value)
    return (
        "tensor" if isinstance(value, torch.Tensor) else str(value).rpartition("/")[2]
    )  # of a file its name


@pytest.fixture(params=LINEAR, ids=label)
def linear(request):
    return build(request.param)


@pytest.fixture(params=NONLINEAR, ids=label)
def nonlinear(request):
    return build(request.param)


def test_every_registered_operator_has_an_example():
    assert set(EXAMPLES) == set(operators.REGISTRY)


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=label)
def test_every_operator_has_the_properties_that_are_offered_to_authors(spec):
    check_operator(spec, shape_of(spec))


CHANNELWISE = [
    spec
    for name, (spec, *_) in ((name, [s for s in SPECS if s["name"] == name]) for name in EXAMPLES)
    if name not in ("colorize", "compose", "jpeg", "nonlinear_blur")
]


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize(
    "spec", [*CHANNELWISE, COLORIZE, {"name": "compose", **composed(RANDOM, COLORIZE)}], ids=label
)
def test_every_operator_takes_any_number_of_channels(spec, channels):
    check_operator(spec, (channels, *shape_of(spec)[1:]))


@pytest.mark.parametrize("spec", [s for s in CHANNELWISE if s["name"] != "gaussian_blur_rediff"], ids=label)
def test_what_does_not_mix_channels_does_the_same_to_each(spec):
    four, one = (operators.build(spec, (c, *shape_of(spec)[1:]), dtype=torch.float64) for c in (4, 1))
    x = draw(four, four.image_shape) / 4
    y = four.forward(x)
    together = torch.cat([one.forward(plane) for plane in x.split(1, 1)], 1)
    torch.testing.assert_close(y, together, rtol=1e-12, atol=1e-12)
    back = torch.cat([one.pinv(plane) for plane in y.split(1, 1)], 1)
    torch.testing.assert_close(four.pinv(y), back, rtol=1e-6, atol=1e-6)  # which may be solved for


def test_jpeg_of_grey_has_the_properties_and_two_channels_are_refused():
    check_operator({"name": "jpeg", "quality": 60}, (1, 8, 16))
    with pytest.raises(SpecError, match="jpeg needs images of 1 or 3 channels, these have 2"):
        operators.build({"name": "jpeg"}, (2, 8, 16))


# What makes a linear one.


def test_decomposition_is_that_of_the_dense_matrix(linear):
    matrix = dense(linear.forward, linear.image_shape)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(dense(linear.adjoint, linear.measurement_shape), matrix.T, **close)
    coordinates = linear.to_spectral(torch.zeros(1, *linear.image_shape, dtype=torch.float64))
    ours = linear.singular_values.expand(coordinates.shape).flatten().sort(descending=True).values
    theirs = torch.linalg.svdvals(matrix)
    rank = min(len(ours), len(theirs))
    torch.testing.assert_close(ours[:rank], theirs[:rank], **close)
    assert (ours[rank:] == 0).all()
    assert (theirs[rank:] < 1e-12).all()


# What makes a non-linear one.


def test_gradient_is_bounded_by_the_lipschitz_constant_and_finite_everywhere(nonlinear):
    """The largest singular value of the Jacobian at x, by power iteration with a difference quotient.

    Rounding counts as the identity in the gradient, so the quotient is that of the gradient in v, which
    is linear: J Jᵀ v is the derivative of ½‖Jᵀv‖² in v.
    """
    x = draw(nonlinear, nonlinear.image_shape, batch=1) / 2
    v = draw(nonlinear, nonlinear.measurement_shape, seed=1, batch=1)
    for _ in range(20):
        v = torch.nn.functional.normalize(v.flatten(), dim=0).view_as(v)
        leaf = x.clone().requires_grad_()
        y = nonlinear.forward(leaf)
        v.requires_grad_()
        (pulled,) = torch.autograd.grad(y, leaf, v, create_graph=True)
        norm = pulled.norm()
        if norm == 0:
            break
        (v,) = torch.autograd.grad(pulled.square().sum() / 2, v)
        v = v.detach()
    assert norm <= nonlinear.lipschitz * (1 + 1e-9)
    for flat in (torch.zeros_like(x), -torch.ones_like(x), 2 * torch.ones_like(x)):
        y = nonlinear.forward(flat)
        assert nonlinear.vjp(flat, torch.ones_like(y)).isfinite().all()
        assert nonlinear.impose(flat, y).isfinite().all()


def test_the_gradient_does_not_reach_the_caller(nonlinear):
    x = draw(nonlinear, nonlinear.image_shape)
    with torch.no_grad():
        gradient = nonlinear.vjp(x, nonlinear.forward(x))
    assert not x.requires_grad
    assert not gradient.requires_grad


# What a spec may say.


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
        ({"name": "resize", "factor": 0.5}, r"operator\.factor"),
        ({"name": "resize", "factor": 17.0}, "factor: 17.0 leaves nothing"),
        ({"name": "resize", "kernel": "sinc"}, r"operator\.kernel"),
        ({"name": "gaussian_blur", "threshold": 2.0}, "threshold: 2.0 is above"),
        ({"name": "uniform_blur", "taps": 4}, "taps: must be odd"),
        ({"name": "anisotropic_blur", "sigmas": (1.0,)}, r"operator\.sigmas"),
        ({"name": "anisotropic_blur", "angle": 30.0, "boundary": "zero"}, "boundary: 'zero'.*use circular"),
        ({"name": "motion_blur", "taps": 60}, "taps: must be odd"),
        ({"name": "motion_blur", "intensity": 2.0}, r"operator\.intensity"),
        ({"name": "motion_blur", "boundary": "reflect"}, "boundary: 'reflect'.*use circular"),
        ({"name": "motion_blur", "threshold": 2.0}, "threshold: 2.0 is above"),
        ({"name": "gaussian_blur_rediff"}, "image_shape: .*square"),
        ({"name": "colorize", "weights": "red"}, r"operator\.weights"),
        ({"name": "compressed_sensing", "ratio": 0.0}, r"operator\.ratio"),
        ({"name": "compressed_sensing", "ratio": 1e-6}, "ratio: 1e-06 keeps none"),
        ({"name": "compressed_sensing", "block": 3}, "block: must be a power of two"),
        ({"name": "compressed_sensing", "block": 16}, "block: 16 does not divide the image side 8"),
        ({"name": "quantize", "bits": 0}, r"operator\.bits"),
        ({"name": "hdr", "factor": 0.0}, r"operator\.factor"),
        ({"name": "jpeg", "quality": 0}, r"operator\.quality"),
        ({"name": "jpeg", "subsampling": "4:2:2"}, r"operator\.subsampling"),
        ({"name": "phase_retrieval", "oversample": -1.0}, r"operator\.oversample"),
        ({"name": "compose"}, r"operator\.operators"),
        ({"name": "compose", "operators": []}, r"operator\.operators"),
        (
            {"name": "compose", **composed({"name": "denoise"}, {"name": "bicubic", "factor": 5})},
            "factor: 5 does not divide",
        ),
        ({"name": "compose", **composed({"name": "bicubik"})}, r"operator\.operators\.0\.name"),
        (
            {"name": "compose", **composed(RANDOM, {"name": "bicubic"})},
            "operators: inpaint → bicubic has no singular value decomposition",
        ),
        (
            {"name": "compose", **composed({"name": "inpaint", "mask": channel_mask()}, COLORIZE)},
            "operators: inpaint → colorize",
        ),
        (
            {"name": "compose", **composed({"name": "gaussian_blur"}, SMALL_MOTION)},
            "operators: gaussian_blur → motion_blur",
        ),
        (
            {"name": "compose", **composed(COLORIZE, {"name": "colorize", "weights": "luma"})},
            "weights: luma is for",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_spec_that_does_not_fit_is_refused_by_field(spec, message):
    with pytest.raises(SpecError, match=message):
        operators.build(spec, SHAPE)
