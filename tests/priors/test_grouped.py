"""Images of any number of channels by a network for n, against posterior means in closed form."""

import pytest
import torch

from kintsugi import operators, samplers
from kintsugi.priors.analytic import StationaryGaussian, natural_spectrum
from kintsugi.priors.base import data_prediction
from kintsugi.priors.grouped import Grouped, frame_of, grouped, said
from kintsugi.priors.paths import DDPM, RectifiedFlow, VarianceExploding, VariancePreserving
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers import KeyedNoise

SIZE = 8
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
POWER = natural_spectrum(SIZE, SIZE)
TIMES = {  # at which √3 times the noise is still on the path
    "vp": (VariancePreserving(), (0.02, 0.3, 0.8)),
    "flow": (RectifiedFlow(), (0.97, 0.5, 0.05)),
    "ve": (VarianceExploding(), (0.02, 1.0, 40.0)),
    "ddpm": (DDPM(), (5.3, 300.0, 850.0)),
}
BOTH = pytest.mark.parametrize(
    ("path", "parametrization"), [(path, p) for path in TIMES for p in ("eps", "v", "x0")]
)


class Grey(StationaryGaussian):
    """RGB images of three equal channels, each that of a `StationaryGaussian`."""

    def denoise(self, x, a, s):
        # Of equal channels in independent noise their mean says all there is to know.
        return super().denoise(x.mean(1, keepdim=True), a, s / x.shape[1] ** 0.5).expand_as(x)


class Recorder(Grey):
    """Keeps what it is shown."""

    def __call__(self, x, t):
        self.seen, self.time = x, t
        return super().__call__(x, t)


class Labelled(Grey):
    classes, label, labels = 10, None, None


def case(name):
    path, times = TIMES[name]
    x = torch.randn(3, 4, SIZE, SIZE, generator=torch.manual_seed(0), dtype=torch.float64)
    return path, torch.tensor(times, dtype=torch.float64), x


def prediction(prior, x, t):
    p, q = (value.view(-1, 1, 1, 1) for value in data_prediction(prior.path, prior.parametrization, t))
    return p * x + q * prior(x, t)


@BOTH
def test_a_grey_image_has_its_own_posterior_mean_by_a_prior_that_knows_grey_images(path, parametrization):
    path, t, x = case(path)
    found = prediction(Grouped(Grey(POWER, path, parametrization), 3), x[:, :1], t)
    expected = prediction(StationaryGaussian(POWER, path, parametrization), x[:, :1], t)
    torch.testing.assert_close(found, expected, **CLOSE)


@BOTH
def test_by_one_that_takes_channels_for_independent_it_is_the_mean_at_the_noise_it_is_shown(
    path, parametrization
):
    """Not exact: such a prior does not know that three noisy pictures are of one thing."""
    path, t, x = case(path)
    found = prediction(Grouped(StationaryGaussian(POWER, path, parametrization), 3), x[:, :1], t)
    a, s = (value.view(-1, 1, 1, 1) for value in (path.a(t), path.s(t)))
    shown = StationaryGaussian(POWER).denoise(x[:, :1] / a, torch.ones_like(a), 3**0.5 * s / a)
    exact = StationaryGaussian(POWER).denoise(x[:, :1], a, s)
    torch.testing.assert_close(found, shown, **CLOSE)
    assert not torch.allclose(found, exact, atol=1e-2)


@BOTH
def test_its_vjp_is_that_of_the_posterior_mean(path, parametrization):
    path, t, x = case(path)
    plane = x[:, :1].clone().requires_grad_()
    found = prediction(Grouped(Grey(POWER, path, parametrization), 3), plane, t)
    (vjp,) = torch.autograd.grad(found, plane, x[:, 1:2])
    a, s = (value.view(-1, 1, 1, 1) for value in (path.a(t), path.s(t)))
    # The Wiener filter is its own transpose.
    expected = StationaryGaussian(POWER).denoise(x[:, 1:2], a, s)
    torch.testing.assert_close(vjp, expected, **CLOSE)


def test_what_the_network_sees_has_independent_noise_of_the_level_it_is_told():
    path, t = VariancePreserving(), torch.full((64,), 0.4, dtype=torch.float64)
    noise = torch.randn(64, 1, 32, 32, generator=torch.manual_seed(1), dtype=torch.float64)
    prior = Recorder(natural_spectrum(32, 32), path)
    Grouped(prior, 3)(path.s(t).view(-1, 1, 1, 1) * noise, t)
    told = path.s(prior.time)[0].item()
    mean, apart = prior.seen.mean(1), prior.seen - prior.seen.mean(1, keepdim=True)
    assert (mean.std() * 3**0.5).item() == pytest.approx(told, rel=0.05)
    # The given noise has two of the three dimensions.
    assert (apart.square().sum(1).mean() / 2).sqrt().item() == pytest.approx(told, rel=0.1)
    ratio = (path.a(t) / path.s(t))[0].item()
    assert path.a(prior.time)[0].item() / told == pytest.approx(ratio / 3**0.5)


@pytest.mark.parametrize("path", TIMES)
def test_at_the_noise_end_of_a_path_the_prediction_is_finite_and_nearly_none(path):
    path, _, x = case(path)
    t = torch.full((3,), path.noise_time, dtype=torch.float64)
    output = Grouped(Grey(POWER, path, "x0"), 3)(path.s(t).view(-1, 1, 1, 1) * x[:, :1], t)
    assert torch.isfinite(output).all()
    largest = 3**0.5 * path.a(t).max() / path.s(t).max() * POWER.max() * x.abs().max()
    assert output.abs().max() <= max(largest.item(), 1e-12)


@pytest.mark.parametrize("channels", [4, 5, 6])
def test_whole_groups_are_images_and_what_is_left_over_is_one_group(channels):
    path, t, _ = case("vp")
    x = torch.randn(3, channels, SIZE, SIZE, generator=torch.manual_seed(2), dtype=torch.float64)
    whole, prior = channels // 3 * 3, StationaryGaussian(POWER, path)
    parts = [x[:, i : i + 3] for i in range(0, whole, 3)] + ([x[:, whole:]] if whole < channels else [])
    expected = torch.cat([Grouped(prior, 3)(part, t) for part in parts], 1)
    torch.testing.assert_close(Grouped(prior, 3)(x, t), expected, **CLOSE)
    torch.testing.assert_close(expected[:, :3], prior(x[:, :3], t), **CLOSE)


class Pairs(StationaryGaussian):
    """RGB images M x₀ of two independent `StationaryGaussian` channels: the posterior mean of M x₀."""

    def denoise(self, x, a, s):
        frame = frame_of(3, 2).to(x)
        two = torch.einsum("nk,bnhw->bkhw", frame * (2 / 3), x)
        return torch.einsum("nk,bkhw->bnhw", frame, super().denoise(two, a, s * (2 / 3) ** 0.5))


@BOTH
def test_two_channels_have_their_own_posterior_mean_by_a_prior_that_knows_what_they_are_shown_as(
    path, parametrization
):
    path, t, x = case(path)
    found = prediction(Grouped(Pairs(POWER, path, parametrization), 3), x[:, :2], t)
    expected = prediction(StationaryGaussian(POWER, path, parametrization), x[:, :2], t)
    torch.testing.assert_close(found, expected, **CLOSE)


def test_channels_are_shown_as_frames_in_which_equal_ones_stay_equal():
    for n, count in ((3, 1), (3, 2), (4, 3)):
        frame = frame_of(n, count)
        torch.testing.assert_close(frame.T @ frame, n / count * torch.eye(count, dtype=torch.float64))
        torch.testing.assert_close(frame.sum(1), torch.ones(n, dtype=torch.float64))
    torch.testing.assert_close(frame_of(3, 2)[1], torch.full((2,), 0.5, dtype=torch.float64))


def test_a_network_of_one_channel_sees_each_by_itself():
    path, t, x = case("vp")
    prior = StationaryGaussian(POWER, path)
    torch.testing.assert_close(Grouped(prior, 1)(x, t), prior(x, t))


def test_alone_is_as_in_a_batch_and_always_the_same():
    path, t, x = case("flow")
    prior = Grouped(StationaryGaussian(POWER, path), 3)
    batch = prior(x, t)
    for i in range(3):
        torch.testing.assert_close(prior(x[i : i + 1], t[i : i + 1]), batch[i : i + 1])


def test_grey_is_restored_as_by_a_prior_for_grey():
    operator = operators.build({"name": "inpaint", "mask": "random"}, (1, SIZE, SIZE), dtype=torch.float64)
    y = operator.forward(torch.randn(2, 1, SIZE, SIZE, generator=torch.manual_seed(3), dtype=torch.float64))
    restored = [
        samplers.build({"name": "conjugate"})(prior, operator, y, KeyedNoise(0, ["a", "b"])).image
        for prior in (Grouped(Grey(POWER), 3), StationaryGaussian(POWER))
    ]
    torch.testing.assert_close(*restored, rtol=1e-7, atol=1e-7)


def test_tiles_of_grey_are_grey_each():
    path, t, x = case("vp")
    wide = torch.cat([x[:, :1], x[:, 1:2]], -1)
    tiles = Tiled(Grouped(Grey(POWER, path), 3), SIZE, SIZE, 0)(wide, t)
    expected = [StationaryGaussian(POWER, path)(plane, t) for plane in (x[:, :1], x[:, 1:2])]
    torch.testing.assert_close(tiles, torch.cat(expected, -1), **CLOSE)


def test_labels_pass_through():
    inner = Labelled(POWER)
    prior = Grouped(inner, 3)
    prior.labels = torch.tensor([4, 7])
    assert inner.labels.tolist() == prior.labels.tolist() == [4, 7]
    assert (prior.classes, prior.label) == (10, None)


def test_a_prior_without_classes_has_none_here_either():
    prior = Grouped(Grey(POWER), 3)
    prior.labels = torch.tensor([1])
    assert (prior.classes, prior.label, prior.labels) == (None, None, None)


def test_a_prior_that_takes_the_images_stays_as_it_is_and_nothing_is_said():
    prior = Grey(POWER)
    for own, of_images in ((3, 3), (1, 1), (None, 4)):
        assert grouped(prior, own, of_images) is prior
        assert said(own, of_images) == ""
    assert isinstance(grouped(prior, 3, 1), Grouped)


@pytest.mark.parametrize(
    ("own", "of_images", "words"),
    [
        (3, 1, "1 channel by a network for 3: shown 3 times with different noise, and averaged"),
        (3, 6, "6 channels by a network for 3: 2 × 3 together"),
        (3, 4, "4 channels by a network for 3: 1 × 3 together; 1 by itself, shown 3 times with"),
        (3, 2, "2 channels by a network for 3: 2 shown as 3 between them, with the noise that these lack"),
        (1, 4, "4 channels by a network for 1: each by itself"),
    ],
)
def test_how_channels_are_seen_is_said(own, of_images, words):
    assert said(own, of_images).startswith(words)
