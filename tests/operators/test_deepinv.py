"""The operators that deepinv defines as well, where it is installed."""

import pytest
import torch
from kit.operators import channel_mask, draw

from kintsugi import operators, testing

pytest.importorskip("deepinv", reason="deepinv, the library compared with, is not installed")
physics = pytest.importorskip("deepinv.physics")

SHAPE = (3, 16, 24)
KERNEL = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 1.0], [0.0, 1.0, 1.0]])[None, None] / 12


def build(name, shape=SHAPE, **parameters):
    return operators.build({"name": name, **parameters}, shape)


def assert_same(ours, theirs, atol=1e-5, pinv=True):
    """Forward, adjoint and, where theirs is exact, pseudo-inverse."""
    x, y = draw(ours, ours.image_shape), draw(ours, ours.measurement_shape, seed=1)
    close = {"rtol": 0, "atol": atol}
    torch.testing.assert_close(ours.forward(x), theirs.A(x), **close)
    torch.testing.assert_close(ours.adjoint(y), theirs.A_adjoint(y), **close)
    if pinv:
        torch.testing.assert_close(ours.pinv(y), theirs.A_dagger(y), **close)


def test_inpainting():
    mask = channel_mask()
    shape = tuple(mask.shape)
    assert_same(build("inpaint", shape, mask=mask), physics.Inpainting(shape, mask=mask.float()))


def test_decolorize():
    assert_same(build("colorize"), physics.Decolorize(channels=3, srf="flat"))
    assert_same(build("colorize", weights="luma"), physics.Decolorize(channels=3), atol=1e-3)


def test_bicubic_is_matlabs():
    for factor in (2, 4):
        assert_same(
            build("bicubic", factor=factor),
            physics.DownsamplingMatlab(factor=factor, kernel="cubic", padding="reflect"),
            pinv=False,
        )


@pytest.mark.parametrize("fourier", [False, True])
def test_circular_convolutions(fourier):
    ours = build("motion_blur", taps=9, threshold=0.0)
    kernel = ours.kernel.roll((4, 4), (0, 1))[None, None, :9, :9]
    if fourier:
        assert_same(ours, physics.BlurFFT(SHAPE, filter=kernel), pinv=False)
    else:
        assert_same(ours, physics.Blur(filter=kernel, padding="circular"), pinv=False)


@pytest.mark.parametrize(("boundary", "padding"), [("circular", "circular"), ("zero", "constant")])
def test_gaussian_blur(boundary, padding):
    offsets = torch.arange(9.0) - 4
    kernel = torch.exp(-0.5 * (offsets / 2.0) ** 2)
    kernel = torch.outer(kernel, kernel)
    ours = build("gaussian_blur", sigma=2.0, taps=9, boundary=boundary, threshold=0.0)
    theirs = physics.Blur(filter=(kernel / kernel.sum())[None, None], padding=padding)
    assert_same(ours, theirs, pinv=False)


def test_hadamard_coefficients():
    """Theirs keeps m coefficients in another order; all of them are the same energy, and invert alike."""
    shape = (1, 16, 16)
    ours = build("compressed_sensing", shape, ratio=1.0)
    theirs = physics.SinglePixelCamera(m=256, img_size=shape)
    x = draw(ours, shape)
    torch.testing.assert_close(
        ours.forward(x).flatten(1).sort().values, theirs.A(x).flatten(1).sort().values, rtol=0, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: physics.Blur(filter=KERNEL, padding="constant"),
        lambda: physics.Blur(filter=KERNEL, padding="valid"),
        lambda: physics.Tomography(angles=6, img_width=12, normalize=True),
    ],
    ids=["blur", "valid", "tomography"],
)
def test_a_physics_is_an_operator(make, monkeypatch):
    monkeypatch.setitem(
        operators.BUILTIN, "of_a_physics", lambda shape: operators.from_deepinv(make(), shape)
    )
    testing.check_operator({"name": "of_a_physics"}, (1, 12, 12))


def test_the_measurement_of_a_linear_physics_is_moved_from_0_1():
    """Of an image u in [0, 1] and x = 2u − 1: H x = 2 A u − A 1."""
    theirs = physics.Tomography(angles=6, img_width=12, normalize=True)
    ours = operators.from_deepinv(theirs, (1, 12, 12)).float()
    u = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    moved = 2 * theirs.A(u) - theirs.A(torch.ones_like(u))
    torch.testing.assert_close(ours.forward(2 * u - 1), moved, rtol=0, atol=1e-5)
    assert ours.linear
    assert not ours.pixels


SMALL = (1, 8, 8)
BLUR = torch.ones(1, 1, 3, 3) / 9


@pytest.mark.parametrize(
    "make",
    [
        lambda: physics.RandomPhaseRetrieval(m=90, img_size=SMALL),
        lambda: physics.StructuredRandomPhaseRetrieval(img_size=SMALL, output_size=(1, 12, 12), n_layers=2),
        lambda: physics.PhaseRetrieval(physics.Blur(filter=BLUR, padding="circular")),
        lambda: physics.Ptychography(img_size=SMALL),
    ],
    ids=["random", "structured", "blur", "ptychography"],
)
def test_phase_retrieval_is_an_operator_also_with_complex_weights(make):
    """In a random one deepinv takes complex images alone."""
    theirs = make()
    ours = operators.from_deepinv(theirs, SMALL, steps=1).float()
    u = torch.rand(3, *SMALL, generator=torch.Generator().manual_seed(0))
    dtype = getattr(theirs, "dtype", torch.float32)
    expected = 2 * theirs.A(u.to(dtype)) - int(ours.measurement_shape == SMALL)
    y = ours.forward(2 * u - 1)
    torch.testing.assert_close(y, expected.reshape(y.shape), rtol=1e-4, atol=1e-4)
    assert not ours.linear
    found = ours.forward(ours.impose(torch.zeros_like(u), y))
    assert (found - y).norm() < (ours.forward(torch.zeros_like(u)) - y).norm(), "a step towards y"


def test_a_linear_physics_with_complex_weights_is_an_operator():
    theirs = physics.Downsampling(img_size=SMALL, factor=2, filter="bicubic", padding="circular")
    ours = operators.from_deepinv(theirs, SMALL).float()
    assert_same(ours, theirs, pinv=False)
    assert ours.linear


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: physics.Haze(), "it raises IndexError"),
        (lambda: physics.SinglePhotonLidar(), "it raises RuntimeError"),
        (lambda: physics.Pansharpen(img_size=(3, 8, 8), factor=2), "gives a TensorList"),
    ],
    ids=["depth", "histograms", "list"],
)
def test_a_physics_of_something_else_than_images_is_refused(make, said):
    with pytest.raises(ValueError, match=f"forward: .*{said}"):
        operators.from_deepinv(make(), (3, 8, 8))


def test_a_physics_that_is_not_linear_keeps_the_scale():
    theirs = physics.Physics(A=lambda u: u**2)
    ours = operators.from_deepinv(theirs, (1, 6, 6)).float()
    u = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.forward(2 * u - 1), 2 * u**2 - 1, rtol=0, atol=1e-6)
    assert not ours.linear
