"""Restore what a neural codec lost, an operator of any torch module: python examples/neural_codec.py."""

import torch
from skimage import data
from torch import Tensor, nn

from kintsugi import load_prior, operators, samplers


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:  # to nine levels; the gradient passes through
        return x.tanh() + ((4 * x.tanh()).round() / 4 - x.tanh()).detach()


torch.manual_seed(0)
pictures = data.coffee()[:256, :256], data.astronaut()[:64, 192:256]
photograph, truth = (torch.from_numpy(one).permute(2, 0, 1)[None] / 127.5 - 1 for one in pictures)
codec = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Rounded(), nn.ConvTranspose2d(8, 3, 4, 4))
optimizer = torch.optim.Adam(codec.parameters(), 5e-3)
for _ in range(200):
    (codec(photograph) - photograph).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
operator = operators.of_module(codec, (3, 64, 64)).float()
y = operator.forward(truth)
sampler = samplers.build({"name": "conjugate", "steps": 5})
restored = sampler(load_prior("natural"), operator, y, samplers.KeyedNoise(0, ["astronaut"])).image
psnr = [10 * torch.log10(4 / (image - truth).square().mean()).item() for image in (y, restored)]
print("{:.1f} dB became {:.1f} dB".format(*psnr))
