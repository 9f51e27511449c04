"""SITCOM against its paper's algorithm, sample by sample, by autograd through network and operator."""

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.priors.paths import VariancePreserving
from kintsugi.samplers import KeyedNoise, SpecError
from kintsugi.samplers.base import of_each
from kintsugi.testing import draw, mixture

D, PATH, SHAPE, KEYS = torch.float64, VariancePreserving(), (1, 8, 8), ["a", "b", "c"]
START, END, LEVELS = 0.9, 0.001, 4
TIMES = torch.linspace(START, END, LEVELS + 1, dtype=D)[:-1]


def transcribed(operator, y, key, sigma, inner, lr, lam):
    """Algorithm 1 for one sample: the image, its network evaluations, and of these the products."""
    prior, forwards, products, noise = mixture(), 0, 0, KeyedNoise(0, [key])
    m, s2 = operator.pinv(y), PATH.s(TIMES[0]) ** 2
    if sigma > 0:  # the samplers' own start
        m = operator.spectral_map(lambda v: torch.where(v > 0, v**2 * s2 / (v**2 * s2 + sigma**2), 0), m)
    x = PATH.a(TIMES[0]) * m + PATH.s(TIMES[0]) * noise.normal("start", SHAPE).double()
    for i, t in enumerate(TIMES):
        v = x.clone().requires_grad_()
        adam = torch.optim.Adam([v], lr=lr)
        for k in range(inner):
            x0 = (v - PATH.s(t) * prior(v, t[None])) / PATH.a(t)
            misfit, forwards = (operator.forward(x0) - y).square().sum(), forwards + 1
            if misfit < (sigma + 0.001) ** 2 * y.numel() or k == inner - 1:
                break
            adam.zero_grad()
            (misfit + lam * (v - x).square().sum()).backward()
            adam.step()
            products += 1
        x0 = x0.detach()
        if i < LEVELS - 1:
            z = noise.normal(f"step-{i + 1}", SHAPE).double()
            x = PATH.a(TIMES[i + 1]) * x0 + PATH.s(TIMES[i + 1]) * z
    return x0[0], forwards, products


@pytest.mark.parametrize(("sigma_y", "lam"), [(0.0, 0.0), (0.8, 0.0), (0.8, 0.3)])
@pytest.mark.parametrize("kind", ["inpaint", "gaussian_blur", "hdr"])
def test_it_is_algorithm_1_of_its_paper(kind, sigma_y, lam):
    spec = {"name": kind} | ({"mask": "random"} if kind == "inpaint" else {})
    operator = operators.build(spec, SHAPE, dtype=D)
    y = operator.forward(draw(3, *SHAPE, seed=3) / 2)
    y = y + 0.92 * sigma_y * draw(*y.shape, seed=4)  # less than is told, so that some are near enough
    inner, lr, told = 8, 0.1, 0.0 if kind == "hdr" else sigma_y
    settings = {"steps": LEVELS * inner, "adam_steps": inner, "lr": lr, "lam": lam, "start": START}
    found = samplers.build({"name": "sitcom", **settings})(
        mixture(), operator, y, KeyedNoise(0, KEYS), sigma_y=told
    )
    for i, key in enumerate(KEYS):
        image, forwards, products = transcribed(operator, y[i : i + 1], key, told, inner, lr, lam)
        assert (of_each(found.forwards, 3)[i], of_each(found.vjps, 3)[i]) == (forwards, products)
        torch.testing.assert_close(found.image[i], image, rtol=1e-7, atol=1e-7)
    if told > 0 and lam == 0 and kind == "inpaint":
        assert len(set(of_each(found.forwards, 3))) > 1, "no sample agrees with y earlier than another"


def test_levels_are_whole():
    with pytest.raises(SpecError, match=r"adam_steps: 3 does not divide the 10 steps"):
        samplers.build({"name": "sitcom", "steps": 10, "adam_steps": 3})
