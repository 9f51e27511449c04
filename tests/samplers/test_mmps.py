"""MMPS against its paper's algorithm in dense matrices, and against the posterior of a Gaussian prior."""

from itertools import pairwise

import pytest
import torch
from kit.operators import dense
from kit.posterior import SHAPE, bias, natural_texture
from kit.samplers import relative_error

from kintsugi import operators, samplers
from kintsugi.priors.paths import VariancePreserving
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.mmps import solved
from kintsugi.testing import draw, mixture

D, PATH, KEYS = torch.float64, VariancePreserving(), ["a", "b"]
START, END, STEPS = 0.95, 0.001, 3
TIMES = torch.linspace(START, END, STEPS + 1, dtype=D)[:-1]


def krylov(matrix, b, size):
    """The x in span(b, A b, …) with the least ‖A x − b‖, by least squares."""
    basis = [b]
    for _ in range(size - 1):
        basis.append(matrix @ basis[-1])
    basis = torch.linalg.qr(torch.stack(basis, dim=1))[0]
    return basis @ torch.linalg.lstsq(matrix @ basis, b[:, None], driver="gelsd").solution[:, 0]


def transcribed(operator, y, sigma, iterations, eta):
    """The algorithm for one sample after another: dense Jacobians by autograd, ᾱ, DDIM's two coefficients."""
    prior, images = mixture(), []
    for key, one in zip(KEYS, y, strict=True):
        draws = iter(KeyedNoise(0, [key]).normal(f"step-{i}", SHAPE).double()[0] for i in range(1, STEPS))
        ab = PATH.a(TIMES[0]) ** 2
        z = KeyedNoise(0, [key]).normal("start", SHAPE).double()
        x = (ab**0.5 * operator.pinv(one[None]) + (1 - ab) ** 0.5 * z)[0]
        for t, later in pairwise([*TIMES, None]):
            ab = PATH.a(t) ** 2
            after = torch.ones((), dtype=D) if later is None else PATH.a(later) ** 2

            def clean(state, t=t, ab=ab):
                return ((state - (1 - ab) ** 0.5 * prior(state[None], t[None])[0]) / ab**0.5).flatten()

            x0, jacobian = clean(x), torch.autograd.functional.jacobian(clean, x).reshape(64, 64)
            h = torch.autograd.functional.jacobian(
                lambda v: operator.forward(v.view(1, *SHAPE)).flatten(), x0
            )
            covariance = (1 - ab) / ab**0.5 * jacobian.T
            misfit = one.flatten() - operator.forward(x0.view(1, *SHAPE)).flatten()
            system = sigma**2 * torch.eye(len(h), dtype=D) + h @ covariance @ h.T
            x0 = (x0 + covariance @ h.T @ krylov(system, misfit, iterations)).view(SHAPE)
            noise = (x - ab**0.5 * x0) / (1 - ab) ** 0.5
            fresh = eta * ((1 - after) / (1 - ab) * (1 - ab / after)) ** 0.5
            x = after**0.5 * x0 + (1 - after - fresh**2).clamp_min(0) ** 0.5 * noise
            if later is not None and eta > 0:
                x = x + fresh * next(draws)
        images.append(x)
    return torch.stack(images)


@pytest.mark.parametrize(("iterations", "eta"), [(1, 1.0), (3, 0.6), (3, 0.0)])
@pytest.mark.parametrize("kind", ["inpaint", "gaussian_blur", "hdr"])
def test_it_is_the_algorithm_of_its_paper(kind, iterations, eta):
    """Without noise, so that the start is H⁺y; the floor is then the σ of y."""
    spec = {"name": kind} | ({"mask": "random"} if kind == "inpaint" else {})
    operator = operators.build(spec, SHAPE, dtype=D)
    y = operator.forward(draw(2, *SHAPE, seed=3) / 4)
    settings = {"steps": STEPS, "start": START, "iterations": iterations, "eta": eta, "floor": 0.1}
    found = samplers.build({"name": "mmps", **settings})(mixture(), operator, y, KeyedNoise(0, KEYS))
    torch.testing.assert_close(
        found.image, transcribed(operator, y, 0.1, iterations, eta), rtol=1e-6, atol=1e-6
    )
    assert (found.forwards, found.vjps) == (STEPS, STEPS * iterations)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("start", [0.3, 0.9])
def test_one_step_is_the_posterior_mean_of_a_gaussian_given_the_state_too(start, sigma_y):
    """E[x₀ | x, y], x = a x₀ + s z: that of two measurements at once."""
    gaussian, operator = natural_texture(), operators.build({"name": "bicubic"}, SHAPE, dtype=D)
    y = operator.forward(gaussian.draw(2, torch.Generator().manual_seed(0)))
    seen, floor = [], 0.05
    sampler = samplers.build({"name": "mmps", "steps": 1, "start": start, "iterations": 16, "floor": floor})
    found = sampler(
        gaussian.prior,
        operator,
        y,
        KeyedNoise(0, KEYS),
        sigma_y=sigma_y,
        callback=lambda k, x, x0: seen.append(x),
    )
    t = torch.tensor(start, dtype=D)
    h, a, s, sigma = dense(operator.forward, SHAPE), PATH.a(t), PATH.s(t), sigma_y or floor
    precision = torch.linalg.inv(gaussian.covariance) + h.T @ h / sigma**2 + (a / s) ** 2 * torch.eye(64)
    told = y.flatten(1) @ h / sigma**2 + a / s**2 * seen[0].flatten(1)
    assert relative_error(found.image.flatten(1), torch.linalg.solve(precision, told.T).T) < 1e-6


def test_samples_have_the_mean_and_the_variance_of_a_gaussian_posterior():
    """With the solver at its end the mean is exact, and the variance is as steps grow."""
    figures = [
        bias(
            {"name": "mmps", "steps": steps, "iterations": 8, "grid": "karras"},
            natural_texture(),
            "SR 2×, σ 0.2",
            40,
        )
        for steps in (25, 100)
    ]
    for coarse, fine in ((figures[0].unseen, figures[1].unseen), (figures[0].total, figures[1].total)):
        assert abs(fine - 1) < 0.4 * abs(coarse - 1)
        assert abs(fine - 1) < 0.13 + 3.5 * figures[1].uncertainty
    assert figures[1].mean < 2e-3


def test_the_solver_solves_more_with_every_iteration_and_for_each_sample_by_itself():
    """Of an indefinite system, where conjugate gradients may divide by something negative."""
    values = torch.cat([torch.linspace(-0.05, -0.01, 4, dtype=D), torch.linspace(0.5, 2, 60, dtype=D)])
    basis = torch.linalg.qr(draw(64, 64, seed=1))[0]
    matrix, b = basis * values @ basis.T, draw(3, *SHAPE, seed=2)

    def shift(b, iterations):
        return solved(lambda u: (u.flatten(1) @ matrix.T).view(-1, *SHAPE), lambda v: v, 0.0, b, iterations)

    left = torch.stack([(b - shift(b, k)).flatten(1).norm(dim=1) for k in (1, 2, 4, 8, 16)])
    assert (left[1:] < left[:-1]).all()
    torch.testing.assert_close(shift(b[1:2], 8), shift(b, 8)[1:2])
    assert torch.equal(shift(0 * b, 3), 0 * b), "nothing is to be done"
