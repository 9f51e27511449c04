"""An operator of one's own in a sampler, which loses every second row: python examples/own_operator.py."""

import torch
from skimage.data import astronaut
from torch import Tensor

import kintsugi
from kintsugi import operators, samplers


class Interlaced(operators.Mask):
    """Keeps the even rows. A mask has its adjoint, pseudo-inverse and singular values already."""

    def __init__(self, image_shape: tuple[int, int, int]):
        known = torch.zeros(image_shape, dtype=torch.bool)
        known[:, ::2] = True
        super().__init__(known)


def psnr(restored: Tensor) -> float:
    return 10 * torch.log10(4 / (restored - truth).square().mean()).item()


truth = torch.from_numpy(astronaut()[:64, 192:256]).permute(2, 0, 1)[None].float() / 127.5 - 1
operator = Interlaced((3, 64, 64)).float()
y = operator.forward(truth)
sampler = samplers.build({"name": "ddnm", "steps": 5, "start": 0.4, "init": "lmmse"})
restored = sampler(kintsugi.load_prior("natural"), operator, y, samplers.KeyedNoise(0, ["astronaut"])).image
print(f"{psnr(operator.pinv(y)):.1f} dB became {psnr(restored):.1f} dB")
