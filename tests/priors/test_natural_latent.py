"""The embedded latent prior: its autoencoder, its network, and how the two were trained."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from skimage.data import astronaut, chelsea, coffee
from skimage.transform import resize
from torch import nn

from kintsugi import priors
from kintsugi.priors import speed
from kintsugi.priors.base import autoencoder_of, data_prediction
from kintsugi.priors.natural_latent.autoencoder import NaturalAutoencoder
from kintsugi.priors.natural_latent.train_autoencoder import moments, whitened
from kintsugi.priors.natural_latent.training import Training, train
from kintsugi.testing import check_prior, draw

SPEC = {"name": "natural_latent"}
PHOTOGRAPHS = {"astronaut": (astronaut, 30.0), "chelsea": (chelsea, 34.5), "coffee": (coffee, 29.0)}
"""And the PSNR of their round trip in dB that is certain."""


@pytest.fixture
def prior():
    return priors.load(SPEC)


def photograph(name, side=256):
    """A photograph (1, 3, side, side) on [-1, 1]."""
    image = PHOTOGRAPHS[name][0]()
    short = min(image.shape[:2])
    small = resize(image[:short, :short], (side, side), anti_aliasing=True)
    return torch.from_numpy(small).permute(2, 0, 1)[None].float() * 2 - 1


def psnr(image, reference):
    return 10 * torch.log10(4 / (image - reference).square().mean()).item()


def test_it_has_the_properties_that_are_offered_to_authors():
    check_prior(SPEC)
    check_prior(SPEC, (3, 16, 48))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_survive_the_round_trip(prior, name):
    x = photograph(name)
    restored = prior.autoencoder.decode(prior.autoencoder.encode(x))
    assert psnr(restored, x) > PHOTOGRAPHS[name][1]


def test_latents_of_photographs_are_about_standard_normal(prior):
    z = prior.autoencoder.encode(torch.cat([photograph(name) for name in PHOTOGRAPHS]))
    values = z.transpose(0, 1).flatten(1)
    assert values.mean(1).abs().max() < 0.8
    assert ((values.std(1) > 0.5) & (values.std(1) < 1.6)).all()


def test_a_tile_with_a_margin_has_the_latents_and_pixels_of_the_whole(prior):
    """There are convolutions alone: what is far away does not matter."""
    x = photograph("astronaut", 128)
    z = prior.autoencoder.encode(x)
    assert torch.allclose(prior.autoencoder.encode(x[..., :96])[..., :16], z[..., :16], atol=1e-5)
    part, whole = prior.autoencoder.decode(z[..., :24]), prior.autoencoder.decode(z)
    assert torch.allclose(part[..., :32], whole[..., :32], atol=1e-5)


def test_it_denoises_latents_better_than_the_best_gain_of_each(prior):
    z = prior.autoencoder.encode(photograph("astronaut"))
    noise = draw(*z.shape, dtype=torch.float32)
    for sigma, factor in ((0.3, 0.65), (1.0, 0.55)):
        t = prior.path.time_of(-torch.tensor([sigma], dtype=torch.float64).log())
        p, q = (value.item() for value in data_prediction(prior.path, prior.parametrization, t))
        x = prior.path.a(t).item() * (z + sigma * noise)
        error = (p * x + q * prior(x, t.float()) - z).square().mean()
        variance = z.var((0, 2, 3))
        assert error < factor * (variance * sigma**2 / (variance + sigma**2)).mean()


def test_half_precision_reaches_network_and_autoencoder(prior):
    x, t = photograph("chelsea"), torch.tensor([0.3])
    autoencoder = prior.autoencoder
    z = autoencoder.encode(x)
    expected = [prior(z, t), z, autoencoder.decode(z)]
    speed.half_precision(prior, torch.bfloat16)
    assert all(weight.dtype == torch.bfloat16 for weight in autoencoder.parameters())
    found = [prior(z, t), prior.autoencoder.encode(x), prior.autoencoder.decode(z)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.03 * other.norm()


def test_its_autoencoder_is_described_without_weights(prior):
    described = autoencoder_of(priors.describe(SPEC))
    assert vars(described) == {name: getattr(prior.autoencoder, name) for name in vars(described)}


def test_in_float16_the_autoencoder_stays_in_float32(prior):
    speed.half_precision(prior, torch.float16)
    assert next(prior.autoencoder.parameters()).dtype == torch.float32


def test_sizes_that_it_does_not_take_are_found_without_loading_it():
    assert priors.describe(SPEC).multiple == 16
    with pytest.raises(priors.SpecError, match="divisible by 16"):
        priors.examine(SPEC, (3, 24, 32))


def test_whitening_is_part_of_the_convolutions():
    """Latents of identity covariance, and what is decoded is what it was, away from the borders."""
    torch.manual_seed(0)
    autoencoder = NaturalAutoencoder(8, 8, (1, 1))
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (20, 3, 64, 64)).astype(np.float32))
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(x))
        white = whitened(autoencoder, x)
        mean, covariance = moments(white, x)
        restored = white.decode(white.encode(x))
    torch.testing.assert_close(covariance, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(mean, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(restored[..., 28:36, 28:36], expected[..., 28:36, 28:36], rtol=0, atol=1e-5)


def test_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path):
    def run(folder, until):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3))
        training, exported = Training(network, 1e-2, 0.9), []

        def loss_of(rng):
            if training.step == until:
                raise KeyboardInterrupt
            return network(torch.from_numpy(rng.standard_normal((2, 4, 8, 8), np.float32))).square().mean()

        with suppress(KeyboardInterrupt):
            train(training, loss_of, exported.append, folder, steps=6, seed=0, save_every=2)
        return training, exported

    whole, exported = run(tmp_path / "whole", None)
    run(tmp_path / "parts", 5)
    continued, rest = run(tmp_path / "parts", None)
    assert (len(exported), len(rest)) == (3, 1), "it goes on from step 4"
    for one, other in ((whole.network, continued.network), (whole.averaged, continued.averaged)):
        assert all(map(torch.equal, one.parameters(), other.parameters()))
