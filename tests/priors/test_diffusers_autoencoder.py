"""Autoencoders of diffusers against the modules themselves."""

import pytest
import torch
from kit.latents import make_kl, make_tiny, make_vq

from kintsugi.checkpoint import CheckpointError
from kintsugi.priors.formats.diffusers_autoencoder import LatentAutoencoder

MEAN, DEVIATION = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
MADE = {
    "kl": lambda: make_kl(shift_factor=0.3),
    "per channel": lambda: make_kl(latents_mean=MEAN, latents_std=DEVIATION),
    "vq": make_vq,
    "vq of other codes": lambda: make_vq(vq_embed_dim=2, scaling_factor=1.0),
    "tiny": lambda: make_tiny(scaling_factor=0.5),
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=MADE)
def module(request):
    return MADE[request.param]()


def test_latents_are_scaled_as_the_pipelines_do(module):
    made, x, config = LatentAutoencoder(module), draw(2, 3, 16, 24), module.config
    encoded = module.encode(x)
    raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    mean, deviation = config.get("shift_factor") or 0.0, 1.0
    if config.get("latents_mean"):
        mean, deviation = torch.tensor(MEAN).view(1, 4, 1, 1), torch.tensor(DEVIATION).view(1, 4, 1, 1)
    z = made.encode(x)
    assert z.shape == (2, made.channels, 16 // made.factor, 24 // made.factor)
    torch.testing.assert_close(z, (raw - mean) * config.scaling_factor / deviation)
    torch.testing.assert_close(made.decode(z), module.decode(raw).sample, rtol=1e-4, atol=1e-4)


def test_both_ways_have_derivatives_and_images_are_by_themselves(module):
    made, x = LatentAutoencoder(module), draw(2, 3, 16, 16).requires_grad_()
    decoded = made.decode(made.encode(x))
    (gradient,) = torch.autograd.grad(decoded[0].square().sum(), x)
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0
    torch.testing.assert_close(made.decode(made.encode(x[1:]))[0], decoded[1], rtol=1e-4, atol=1e-5)


def test_half_precision_around_it_does_not_reach_it(module):
    """1e5 is more than float16 has."""
    with torch.no_grad():
        list(module.decoder.parameters())[-1].add_(1e5)
    made, x = LatentAutoencoder(module), draw(1, 3, 16, 16)
    plain = made.decode(made.encode(x))
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(made.decode(made.encode(x)), plain)
    assert plain.abs().max() > 7e4
    made.to(torch.bfloat16)
    assert (made.decode(made.encode(x)).dtype, made.encode(x).dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"scaling_factor": 0.0}, "scaling_factor 0"),
        ({"scaling_factor": "many"}, "scaling_factor 'many'"),
        ({"scaling_factor": float("nan")}, "scaling_factor nan"),
        ({"latents_std": [1.0, 1.0]}, "latents_std"),
        ({"latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std"),
        ({"latents_mean": [1.0, 1.0]}, "latents_mean"),
        ({"in_channels": 4}, "in_channels 4"),
        ({"out_channels": 1}, "out_channels 1"),
    ],
    ids=str,
)
def test_what_is_no_scale_or_no_image_is_refused(config, field):
    with pytest.raises(CheckpointError, match=rf"config\.json has {field}"):
        LatentAutoencoder(make_kl(**config))
