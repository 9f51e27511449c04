"""Properties that every operator, sampler, prior and metric has, to be asserted in a test of one's own.

    def test_mine():
        kintsugi.testing.check_sampler({"name": "mine"})

Each function raises an AssertionError for a property that does not hold, and a SpecError for a spec that
cannot be built. Kintsugi's own are tested by the same functions.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.testing import assert_close

from kintsugi import operators, priors, samplers
from kintsugi.operators import Linear, Operator
from kintsugi.pipeline.analysis.measures import badness, limited
from kintsugi.pipeline.metrics.features import SIZES
from kintsugi.pipeline.metrics.metric import Batched, ClipMetric, ImageMetric, SetMetric
from kintsugi.pipeline.metrics.reference import Reference
from kintsugi.pipeline.metrics.registry import REGISTRY, TRUTH, check
from kintsugi.pipeline.metrics.scoring import Scorer
from kintsugi.pipeline.metrics.sets import evaluate
from kintsugi.priors.base import Autoencoder, autoencoder_of, channels_of
from kintsugi.priors.trial import SHAPE, Counting, draw, mixture, suited
from kintsugi.samplers import KeyedNoise, Restoration, Sampler
from kintsugi.samplers.base import of_each

Spec = Mapping[str, Any]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-11}
DEGRADATIONS: tuple[Spec, ...] = (
    {"name": "inpaint", "mask": "random"},
    {"name": "gaussian_blur"},
    {"name": "blur", "kernel": [[0, 1, 1], [2, 3, 0]], "boundary": "valid"},
    {"name": "hdr"},
    {"name": "phase_retrieval"},
)
"""Operators with which a sampler is tried: linear with and without small singular values or a decomposition,
and non-linear."""


def check_operator(spec: Spec, image_shape: tuple[int, int, int] = (3, 8, 16)) -> None:
    """What every operator is, in both precisions; of a linear one, that its decomposition is exact.

    Shapes and types, independence of the batch, f = 1 in the spectrum is the identity, a consistent image
    stays; if linear: the adjoint, the conditions of Moore and Penrose, an orthogonal projection, H⁺ imposes,
    and orthonormal singular vectors with the stated singular values. Of one without a decomposition: the
    adjoint, the symmetries, and that H⁺ amplifies nothing.

    Args:
        image_shape: (C, H, W) of the images it is tried with.
    """
    for dtype in TOLERANCE:
        operator = operators.build(spec, image_shape, dtype=dtype)
        check_any(operator, dtype)
        if isinstance(operator, Linear):
            (check_linear if operator.decomposed else check_solved)(operator, dtype)


def check_any(operator: Operator, dtype: torch.dtype) -> None:
    """What holds for non-linear operators, too."""
    limit = TOLERANCE[dtype]
    x = draw(5, *operator.image_shape, dtype=dtype)
    y, v = operator.forward(x), draw(5, *operator.measurement_shape, seed=1, dtype=dtype)
    assert y.shape == v.shape, f"forward gives {tuple(y.shape)}, measurement_shape says {tuple(v.shape)}"
    spectral = operator.to_spectral(x)
    images = [operator.pinv(y), operator.project(x), operator.impose(x, y), operator.vjp(x, y)]
    images.append(operator.from_spectral(spectral))
    assert all(image.shape == x.shape for image in images)
    assert all(result.dtype == dtype for result in (y, spectral, *images))
    assert (operator.singular_values * spectral).shape == spectral.shape
    for function, arguments in (
        (operator.forward, (x,)),
        (operator.pinv, (v,)),
        (operator.project, (x,)),
        (operator.vjp, (x, v)),
        (operator.impose, (x, v)),
        (operator.to_spectral, (x,)),
    ):
        alone = function(*(argument[3:4] for argument in arguments))
        assert_close(alone, function(*arguments)[3:4], rtol=limit, atol=limit)
    assert_close(operator.spectral_map(torch.ones_like, x), x, rtol=limit, atol=limit)
    assert_close(operator.impose(x, y), x, rtol=limit, atol=limit)


def check_linear(h: Linear, dtype: torch.dtype) -> None:
    """What holds for y = H x."""

    def close(one: Tensor, other: Tensor) -> None:
        assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    x, z = (draw(3, *h.image_shape, seed=seed, dtype=dtype) for seed in (0, 1))
    y, w = (draw(3, *h.measurement_shape, seed=seed, dtype=dtype) for seed in (1, 2))
    close((h.forward(x) * y).sum(), (x * h.adjoint(y)).sum())
    assert torch.equal(h.vjp(x, y), h.adjoint(y))
    # H H⁺ H = H, H⁺ H H⁺ = H⁺, and H H⁺ is symmetric; H⁺ H below.
    close(h.forward(h.pinv(h.forward(x))), h.forward(x))
    close(h.pinv(h.forward(h.pinv(y))), h.pinv(y))
    close((h.forward(h.pinv(y)) * w).sum(), (y * h.forward(h.pinv(w))).sum())
    projected = h.project(x)
    close(projected, h.spectral_map(lambda s: (s > 0).to(s), x))
    close(h.project(projected), projected)
    close((projected * z).sum(), (x * h.project(z)).sum())
    seen = h.forward(z)
    imposed = h.impose(x, seen)
    close(h.forward(imposed), seen)
    close(imposed - h.project(imposed), x - projected)
    close(h.spectral_map(torch.square, x), h.adjoint(h.forward(x)))
    c = h.to_spectral(z)
    close(h.to_spectral(h.from_spectral(c)), c)
    close(h.from_spectral(c).square().flatten(1).sum(1), c.square().flatten(1).sum(1))
    close(h.forward(h.from_spectral(h.to_spectral(x))), h.forward(x))
    if h.isotropic:
        close(h.adjoint(h.forward(x)), h.singular_values.max() ** 2 * x)


def check_solved(h: Linear, dtype: torch.dtype) -> None:
    """What holds for y = H x whose H⁺ is regularised, and whose spectral form is that of another operator."""
    limit = 10 * TOLERANCE[torch.float32]  # what is solved for has a tolerance of its own

    def close(one: Tensor, other: Tensor, limit: float = TOLERANCE[dtype]) -> None:
        assert_close(one, other, rtol=limit, atol=limit)

    x, z = (draw(3, *h.image_shape, seed=seed, dtype=dtype) for seed in (0, 1))
    y, w = (draw(3, *h.measurement_shape, seed=seed, dtype=dtype) for seed in (1, 2))
    close((h.forward(x) * y).sum(), (x * h.adjoint(y)).sum())
    assert torch.equal(h.vjp(x, y), h.adjoint(y))
    # H H⁺ and H⁺H are symmetric, and between nothing and a projection.
    fitted, projected = h.forward(h.pinv(y)), h.project(x)
    close((fitted * w).sum(), (y * h.forward(h.pinv(w))).sum(), limit)
    close((projected * z).sum(), (x * h.project(z)).sum(), limit)
    for one, other in ((fitted, y), (projected, x)):
        share = (one * other).flatten(1).sum(1) / other.square().flatten(1).sum(1)
        assert (share > -limit).all()
        assert (share < 1 + limit).all(), "H⁺ amplifies what it has seen"
    c = h.to_spectral(z)
    close(h.to_spectral(h.from_spectral(c)), c)


def check_sampler(spec: Spec) -> None:
    """What every sampler does, with `DEGRADATIONS`, noiseless and noisy.

    Its samples depend on seed and key, and on nothing else: not on the batch, its order, or the job before.
    They are finite. Network evaluations and vector-Jacobian products are as many as it says, a graph is
    recorded for nothing else, and the callback is called once an evaluation with (step, x, x̂₀).
    """
    used = samplers.build(spec)
    for of in DEGRADATIONS:
        operator = operators.build(of, SHAPE, dtype=torch.float64)
        for sigma_y in (0.0, 0.1):
            y = operator.forward(draw(3, *SHAPE) / 4)
            y = y + sigma_y * draw(*y.shape, seed=2)
            check_samples(used, samplers.build(spec), operator, y, sigma_y)
            check_counts(used, operator, y, sigma_y)


def check_samples(used: Sampler, new: Sampler, operator: Operator, y: Tensor, sigma_y: float) -> None:
    """The samples of three measurements depend on their keys alone; `used` did other jobs before."""
    keys, prior = ["a", "b", "c"], mixture()

    def restore(sampler: Sampler, y: Tensor, keys: list[str], seed: int = 0) -> Tensor:
        of = suited(prior, sampler, operator)
        return sampler(of, operator, y, KeyedNoise(seed, keys), sigma_y=sigma_y).image

    together = restore(used, y, keys)
    assert together.shape == (len(y), *operator.image_shape)
    assert together.dtype == y.dtype
    assert torch.isfinite(together).all()
    assert torch.equal(restore(new, y, keys), together), "it keeps something of the job before"
    assert_close(restore(used, y[1:2], ["b"])[0], together[1], rtol=1e-9, atol=1e-9)
    assert_close(restore(used, y.flip(0), keys[::-1]).flip(0), together, rtol=1e-9, atol=1e-9)
    if operator.linear:
        for other in (restore(used, y, ["d", "e", "f"]), restore(used, y, keys, seed=1)):
            assert not torch.equal(other, together), "another key or seed gives the same sample"


def check_counts(sampler: Sampler, operator: Operator, y: Tensor, sigma_y: float) -> None:
    """What a restoration says that it cost is what it cost, and the callback sees each evaluation.

    Where samples need more or fewer evaluations, each by itself costs what is said of it in a batch.
    """
    keys = ["a", "b", "c"]
    together = spent(sampler, operator, y, sigma_y, keys)
    if isinstance(together.forwards, Tensor):
        for i in range(len(y)):
            alone = spent(sampler, operator, y[i : i + 1], sigma_y, keys[i : i + 1])
            assert of_each(alone.forwards, 1)[0] == together.forwards[i]
            assert of_each(alone.vjps, 1)[0] == of_each(together.vjps, len(y))[i]


def spent(sampler: Sampler, operator: Operator, y: Tensor, sigma_y: float, keys: list[str]) -> Restoration:
    """A restoration, after it was checked what it cost."""
    prior, seen = Counting(mixture()), []

    def callback(step: int, x: Tensor, prediction: Tensor) -> None:
        assert x.shape == prediction.shape == (len(y), *operator.image_shape)
        seen.append(step)

    of = suited(prior, sampler, operator)
    result = sampler(of, operator, y, KeyedNoise(0, keys), sigma_y=sigma_y, callback=callback)
    assert len(y) * len(seen) == prior.forwards, "the callback is called once an evaluation"
    # Whether a sample needs a product may be known by its evaluation only.
    if not isinstance(result.vjps, Tensor):
        assert sum(prior.recorded) == len(prior.used), "a graph is recorded that nobody needs"
    for said, counted in ((result.forwards, prior.forwards), (result.vjps, prior.vjps)):
        if len(y) == 1 or not isinstance(said, Tensor):
            assert sum(of_each(said, len(y))) == counted, "it says another number than it cost"
    assert not result.image.requires_grad
    return result


def check_prior(spec: Spec, image_shape: tuple[int, int, int] | None = None) -> None:
    """What every prior is: as `describe` says it, a function of each image alone, and differentiable in it.

    Args:
        image_shape: (C, H, W), by default the smallest that it takes, at least 16 pixels; of a prior of
            latents, of a job's images.
    """
    found, prior = priors.describe(spec), priors.load(spec)
    side = found.multiple * -(-16 // found.multiple)
    shape = image_shape or (channels_of(found) or 3, side, side)
    assert prior.sha256 == priors.examine(spec, shape).sha256, "the checksum is not of the files described"
    if (autoencoder := autoencoder_of(prior)) is not None:
        sides = (size * autoencoder.enlarge for size in shape[1:])
        shape = check_autoencoder(autoencoder, (shape[0], *sides))
    assert not any(weight.requires_grad for weight in prior.network.parameters())
    assert not prior.network.training
    path, x = prior.path, draw(3, *shape, dtype=torch.float32)
    t = path.data_time + torch.tensor([0.2, 0.5, 0.8]) * (path.noise_time - path.data_time)
    with torch.no_grad():
        u = prior(x, t)
        assert torch.equal(prior(x, t), u)
        assert_close(prior(x[1:2], t[1:2])[0], u[1], rtol=1e-4, atol=1e-4)
    assert u.shape == x.shape
    assert u.dtype == x.dtype
    assert torch.isfinite(u).all()
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prior(leaf, t).sum(), leaf)
    assert torch.isfinite(gradient).all()


def check_autoencoder(autoencoder: Autoencoder, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of latents of images (C, H, W), which become images again, each by itself, differentiably."""
    _, height, width = image_shape
    factor = autoencoder.factor
    shape = (autoencoder.channels, height // factor, width // factor)
    x = draw(2, *image_shape, dtype=torch.float32).requires_grad_()
    z = autoencoder.encode(x)
    decoded = autoencoder.decode(z)
    assert (z.shape, decoded.shape) == ((2, *shape), x.shape)
    assert (z.dtype, decoded.dtype) == (x.dtype, x.dtype)
    (gradient,) = torch.autograd.grad(decoded[0].sum(), x)
    assert torch.isfinite(gradient).all()
    assert not gradient[1].any(), "an image depends on the others of its batch"
    return shape


NOISES = (0.0, 0.03, 0.1, 0.3)
"""Standard deviations on [-1, 1] of the noise with which a metric is tried."""


def textures(count: int, height: int, width: int) -> Tensor:
    """Images (count, 3, height, width) on [-1, 1], float32, with the spectrum of photographs: power 1/f²."""
    f = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)).clamp_min(1 / height)
    x = torch.fft.irfft2(torch.fft.rfft2(draw(count, 3, height, width)) / f, s=(height, width))
    return (x / x.abs().amax((1, 2, 3), keepdim=True)).float()


def check_metric(name: str) -> None:
    """What every metric is, of images or of sets: a finite number, the same again, the best of equal images.

    Of images: it leaves them as they are, gives of several at once what it gives of each, takes any size from
    `smallest` on, gives what lies in `range`, and gets worse as noise grows. Of sets: it does not depend on
    the order of the images, and gets worse with features that are farther away. Of clips: it leaves frames as
    they are, is best of equal ones, and gets worse with noise that grows.
    """
    metric = REGISTRY.get(name)
    check([name], metric.smallest if metric else 1, has_truth=True, reference="truth")
    if isinstance(metric, SetMetric):
        check_set_metric(name, metric)
    elif isinstance(metric, ClipMetric):
        check_clip_metric(metric)
    elif metric:
        check_image_metric(name, metric)


def check_image_metric(name: str, metric: ImageMetric) -> None:
    """What holds for a metric of images; of one that needs a truth, how it values noise, too."""
    smallest, side = metric.smallest, max(32, metric.smallest)
    truth = textures(3, side, side + 9)
    noisy = [truth + sigma * draw(*truth.shape, seed=1, dtype=torch.float32) for sigma in NOISES]
    scorer, images = Scorer([name]), [((x[:1].double() + 1) / 2).clamp(0, 1) for x in (noisy[-1], truth)]

    def values(x: Tensor, y: Tensor = truth) -> np.ndarray:
        return np.array(scorer(x, y, y)[name])

    before, taken = [image.clone() for image in images], 1 + (metric.needs_truth or metric.needs_prior)
    scorer.measures[name](*images[:taken])
    assert all(map(torch.equal, images, before)), "it changes the images that it is given"
    if isinstance(measure := scorer.measures[name], Batched):
        many = [((x.double() + 1) / 2).clamp(0, 1) for x in (noisy[-1], truth)][:taken]
        alone = torch.cat([measure(*(x[i : i + 1] for x in many)) for i in range(len(truth))])
        assert torch.equal(measure(*many), alone), "a value depends on the batch"
    found = np.stack([values(x) for x in noisy])  # (noise, image)
    assert np.isfinite(found[1:]).all(), "a noisy image has no finite value"
    least, most = metric.range
    assert (found >= least - 1e-5).all(), f"less than range says: {found.min()}"
    assert (limited(name, found) <= most + 1e-5).all(), f"more than range and most say: {found.max()}"
    for i, x in enumerate(noisy):
        again = values(x.flip(0), truth.flip(0))[::-1]
        assert np.array_equal(again, found[i]), f"the same images again: {again}, after {found[i]}"
    small = textures(1, smallest, smallest)
    assert np.isfinite(values(0.9 * small, small)).all(), "smallest is too small"
    if metric.needs_truth and metric.better is not None:
        worse = badness(name, found).mean(1)
        assert (worse[1:] > worse[:-1]).all(), f"better is {metric.better}, and with more noise it is {found}"
        assert metric.better != "one" or np.allclose(found[0], 1), "equal images are not 1"
    if torch.cuda.is_available():
        assert_close(
            Scorer([name], "cuda")(noisy[2], truth, truth)[name], found[2].tolist(), rtol=1e-3, atol=1e-4
        )


def check_clip_metric(metric: ClipMetric) -> None:
    """What holds for a metric of clips, of two frames of textures."""
    side = max(32, metric.smallest)
    truth = ((textures(2, side, side + 9) + 1) / 2).double().permute(0, 2, 3, 1).numpy()
    noise = draw(*truth.shape, seed=1).numpy()
    frames = [truth + strength * noise for strength in (0.0, 0.02, 0.2)]
    before = [each.copy() for each in frames]
    found = [metric.compare(restored, truth) for restored in frames]
    assert all(map(np.array_equal, frames, before)), "it changes the frames that it is given"
    assert found == [metric.compare(restored, truth) for restored in frames], "the same frames again"
    assert np.isfinite(found).all(), f"not finite: {found}"
    assert min(found) >= 0, f"negative: {found}"
    sign = {"higher": -1, "lower": 1}.get(metric.better or "", 0)
    assert (sign * np.diff(found) >= 0).all(), f"better is {metric.better}, and with more noise it is {found}"
    assert not sign or found[0] != found[-1], "equal frames are no better than others"


def check_set_metric(name: str, metric: SetMetric) -> None:
    """What holds for a metric of sets, of 64 images with random features."""
    keys, space = [f"{i}" for i in range(64)], metric.space
    truth, noise = (draw(64, SIZES[space], seed=seed, dtype=torch.float32).numpy() for seed in (0, 1))

    def value(noise: np.ndarray, order: Sequence[int] = range(64), step: int = 64) -> float:
        features = {space: truth + noise, space + TRUTH: truth}

        def blocks(columns: Sequence[str]) -> Iterator[tuple[list[str], Mapping[str, np.ndarray]]]:
            for first in range(0, 64, step):
                some = list(order[first : first + step])
                yield [keys[i] for i in some], {column: features[column][some] for column in columns}

        found = evaluate([name], 64, blocks, Reference("the truth", paired=True), 64, [])[name]
        assert found.value is not None, found.warnings[-1]
        return found.value

    found = np.array([value(strength * (noise + 1)) for strength in (0.0, 0.1, 1.0, 10.0)])
    scattered = value(noise + 1, range(63, -1, -1), 10)
    assert math.isclose(scattered, found[2], rel_tol=1e-6), "it leans on the order, or on units"
    sign = {"higher": -1, "lower": 1}.get(metric.better or "", 0)
    assert (np.diff(sign * found) >= 0).all(), f"better is {metric.better}, and farther away it is {found}"
    assert not sign or found[0] != found[-1], "equal sets are no better than others"
