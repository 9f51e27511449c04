"""Restore what a Bayer sensor saw, a physics of deepinv: python examples/deepinv_physics.py."""

import torch
from deepinv.physics import Demosaicing
from skimage.data import astronaut
from torch import Tensor

import kintsugi
from kintsugi import operators, samplers


def psnr(restored: Tensor) -> float:
    return 10 * torch.log10(4 / (restored - truth).square().mean()).item()


truth = torch.from_numpy(astronaut()[:64, 192:256]).permute(2, 0, 1)[None].float() / 127.5 - 1
operator = operators.from_deepinv(Demosaicing((3, 64, 64)), (3, 64, 64)).float()
noise = torch.randn(operator.measurement_shape, generator=torch.Generator().manual_seed(0))
y = operator.forward(truth) + 0.02 * noise
sampler = samplers.build({"name": "conjugate", "steps": 5})
keys = samplers.KeyedNoise(0, ["astronaut"])
restored = sampler(kintsugi.load_prior("natural"), operator, y, keys, sigma_y=0.02).image
print(f"{psnr(operator.pinv(y)):.1f} dB became {psnr(restored):.1f} dB")
