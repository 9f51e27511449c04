"""Operators of modules: against dense matrices and closed forms, and what is no operator is refused."""

import pytest
import torch
from kit.operators import dense
from kit.samplers import BY_NETWORK, FEW
from torch import nn

from kintsugi import operators, samplers, testing
from kintsugi.operators import of_module
from kintsugi.operators.module import LinearModule, Module, linearised

SHAPE = (2, 6, 7)


def convolution(seed=0, channels=3, stride=2):
    """A linear module whose measurements are no images."""
    torch.manual_seed(seed)
    return nn.Conv2d(SHAPE[0], channels, 3, stride, 1, bias=False)


class Codec(nn.Module):
    """A small autoencoder with rounding between, whose gradient passes through."""

    def __init__(self, rounds=True):
        super().__init__()
        torch.manual_seed(0)
        self.rounds = rounds
        self.encoder = nn.Sequential(nn.Conv2d(2, 8, 3, 1, 1), nn.GELU(), nn.Conv2d(8, 4, 3, 2, 1))
        self.decoder = nn.ConvTranspose2d(4, 2, 4, 2, 1)

    def forward(self, x):
        z = 8 * self.encoder(x)
        return self.decoder((z + self.rounds * (z.round() - z).detach()) / 8)


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (lambda shape: of_module(Codec(rounds=False), shape, threshold=0.3), (2, 8, 16)),
        (lambda shape: of_module(convolution(), shape, linear=True), (2, 8, 16)),
        (lambda shape: of_module(lambda x: torch.fft.rfft2(x)[..., :2, :], shape, linear=True), (1, 6, 8)),
        (lambda shape: of_module(lambda x: (x.flatten(1) ** 3)[:, ::2], shape), (1, 6, 8)),
    ],
    ids=["codec", "convolution", "complex", "flat"],
)
def test_modules_are_operators(factory, shape, monkeypatch):
    monkeypatch.setitem(operators.BUILTIN, "of_a_module", factory)
    testing.check_operator({"name": "of_a_module"}, shape)


def test_a_linear_module_is_inverted_as_its_matrix_is():
    operator = of_module(convolution(), SHAPE, linear=True, threshold=0.1, tolerance=1e-9)
    assert isinstance(operator, LinearModule)
    h = dense(operator.forward, SHAPE)
    largest = torch.linalg.matrix_norm(h, 2)
    assert largest <= operator.lipschitz <= 1.1 * largest + 1e-9
    assert operator.ridge == pytest.approx((0.1 * operator.lipschitz) ** 2)
    inverse = h.T @ torch.linalg.inv(h @ h.T + operator.ridge * torch.eye(len(h)).double())
    close = {"rtol": 0, "atol": 1e-7}
    torch.testing.assert_close(dense(operator.pinv, operator.measurement_shape), inverse, **close)
    torch.testing.assert_close(dense(operator.adjoint, operator.measurement_shape), h.T, rtol=0, atol=1e-12)


def test_samplers_restore_alike_with_the_module_and_the_decomposition():
    """Where the noise is above the threshold, what is solved for is what the decomposition divides."""
    blur = {"name": "gaussian_blur", "sigma": 1.0, "threshold": 0.0}
    exact = operators.build(blur, SHAPE, dtype=torch.float64)
    solved = of_module(exact, SHAPE, linear=True, tolerance=1e-9)
    prior = testing.mixture(shape=SHAPE)
    y = exact.forward(images(3, *SHAPE) / 4) + 0.2 * images(3, *SHAPE, seed=1)
    sampler = samplers.build({"name": "pigdm_discrete", "steps": 6})
    one, other = (
        sampler(prior, operator, y, samplers.KeyedNoise(0, ["a", "b", "c"]), sigma_y=0.2).image
        for operator in (exact, solved)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", BY_NETWORK)
def test_every_sampler_takes_modules(name):
    prior = testing.mixture(shape=SHAPE)
    for operator in (of_module(convolution(), SHAPE, linear=True), of_module(convolution(), SHAPE)):
        y = operator.forward(images(2, *SHAPE) / 4)
        sampler = samplers.build({"name": name, "steps": 4, **FEW.get(name, {})})
        of = testing.suited(prior, sampler, operator)
        image = sampler(of, operator, y, samplers.KeyedNoise(0, ["a", "b"]), sigma_y=0.05).image
        assert image.isfinite().all()
        assert image.shape == (2, *SHAPE)


def test_gauss_newton_inverts_what_has_an_inverse():
    operator = of_module(lambda x: x + 0.3 * torch.sin(2 * x), SHAPE, threshold=1e-3, steps=8)
    x = images(4, *SHAPE)
    torch.testing.assert_close(operator.pinv(operator.forward(x)), x, rtol=0, atol=1e-6)
    assert 1.4 < operator.lipschitz <= 1.6 * 1.1 + 1e-9


def test_what_is_not_measured_stays():
    """H sees every other column, cubed: those become the roots, and the others are left as they were."""
    operator = of_module(lambda x: x[..., ::2] + x[..., ::2] ** 3, SHAPE, threshold=1e-3, steps=10)
    x, truth = images(3, *SHAPE) / 3, images(3, *SHAPE, seed=1) / 3
    found = operator.impose(x, operator.forward(truth))
    torch.testing.assert_close(found[..., ::2], truth[..., ::2], rtol=0, atol=1e-6)
    assert torch.equal(found[..., 1::2], x[..., 1::2])


def test_a_codec_that_rounds_is_the_same_in_a_batch():
    """In double precision, where no value is as near to the middle of two levels as rounding errors are."""
    operator = of_module(Codec(), (2, 8, 16))
    y = images(4, 2, 8, 16)
    torch.testing.assert_close(operator.pinv(y[2:3]), operator.pinv(y)[2:3], rtol=1e-9, atol=1e-9)


def test_no_step_makes_the_misfit_larger():
    operator = of_module(Codec(), (2, 8, 16))
    assert isinstance(operator, Module)
    y, x = operator.forward(images(3, 2, 8, 16)), torch.zeros(3, 2, 8, 16, dtype=torch.float64)
    before = None
    for steps in (0, 1, 2, 4):
        operator.steps = steps
        misfit = (operator.forward(operator.impose(x, y)) - y).flatten(1).norm(dim=1)
        assert before is None or (misfit <= before).all()
        before = misfit
    assert (before < 0.2 * y.flatten(1).norm(dim=1)).all()


def test_the_gain_is_that_of_the_jacobian():
    operator = of_module(Codec(), shape := (2, 4, 6))
    x = torch.zeros(1, *shape, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(operator.forward, x).reshape(48, 48)
    largest = torch.linalg.matrix_norm(jacobian, 2)
    assert largest <= operator.lipschitz <= 2 * largest
    _, push, pull = linearised(operator.forward, x)
    v = images(1, *shape)
    torch.testing.assert_close(push(v).flatten(), jacobian @ v.flatten())
    torch.testing.assert_close(pull(v).flatten(), jacobian.T @ v.flatten())


def test_the_module_that_is_given_stays_as_it_is():
    module = Codec().train()
    of_module(module, (2, 8, 8)).to(torch.float32)
    assert module.training
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in module.parameters())


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor([1 + 2j], dtype=torch.complex64))

    def forward(self, x):
        return (self.factor * torch.fft.fft2(x)).abs()


def test_complex_weights_change_their_precision_and_stay_complex():
    module = Complex()
    operator, x = of_module(module, SHAPE), images(2, *SHAPE)
    for dtype in (torch.float64, torch.float32, torch.float64):
        operator.to(dtype)
        y = operator.forward(x.to(dtype))
        assert y.dtype == dtype
        expected = 5**0.5 * torch.fft.fft2(x).abs()
        torch.testing.assert_close(y.double(), expected, rtol=torch.finfo(dtype).eps * 10, atol=1e-6)
    assert module.factor.dtype == torch.complex64


REFUSED = {
    "its result has no gradient": (lambda x: x.detach(), False),
    "it must keep their precision": (lambda x: x.float(), False),
    "gives a list": (lambda x: [x], False),
    r"gives a tensor of shape \(\)": (lambda x: x.sum(), False),
    "H.x − 2z. is not": (lambda x: x**2, True),
    "H.x − 2z. is not H": (lambda x: x + 1, True),
    "nothing would be measured": (lambda x: 0 * x, False),
    r"of images \(2, 2, 6, 7\) it raises IndexError": (lambda x: x[5], False),
    "it raises TypeError": (lambda x: x + "", False),
    "the gradient that its module defines": (lambda x: x + x.detach(), True),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_no_operator_is_refused(said):
    function, linear = REFUSED[said]
    with pytest.raises(ValueError, match=said):
        of_module(function, SHAPE, linear=linear)
