"""How likely a decoded JPEG is under a quality: its coefficients are multiples of the quality's steps."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kintsugi.operators.channels import mix
from kintsugi.operators.family import Family
from kintsugi.operators.jpeg import JPEG

BLOCKS = 1024
"""Of a plane's blocks of 8 × 8 pixels so many at most are looked at, evenly spread."""
ROUNDING = 12**-0.5
"""The deviation of rounding to 8 bits, in levels: what is finer is not relied upon."""
REACH = 12
ASTRAY = 1e-2
"""Of coefficients this share may be anywhere: clipping to what 8 bits can hold moves them."""
SMALLEST = 0.5
"""Of the scale of coefficients, in levels: those that are all zero say little of their steps."""

Values = tuple[float, ...]


class LatticeLikelihood:
    """The log-likelihood of JPEG qualities.

    A coefficient is a multiple of its step Δ, plus the noise of the measurement: n Δ + e, where n Δ is what
    rounding makes of a Laplace variable, whose scale is that of the same coefficient in all blocks.
    """

    def __init__(self, family: Family, device: torch.device):
        self.family, self.device = family, device
        self.operators: dict[Values, JPEG] = {}

    def operator(self, values: Values) -> JPEG:
        """The operator of a quality, float64."""
        if values not in self.operators:
            built = self.family.operator(values, torch.float64).to(self.device)
            assert isinstance(built, JPEG)
            self.operators[values] = built
        return self.operators[values]

    def of(self, y: Tensor, sigma_y: float) -> Callable[[Sequence[Values]], Tensor]:
        """The log-likelihoods (G,) of qualities under a measurement y (C, h, w)."""
        noise = ((127.5 * sigma_y) ** 2 + ROUNDING**2) ** 0.5

        def log_likelihood(grid: Sequence[Values]) -> Tensor:
            found = []
            for values in grid:
                operator = self.operator(values)
                luma, chroma = coefficients(operator, y.to(self.device, torch.float64))
                gains = operator.colours.norm(dim=1).tolist()
                shrunk = noise * (0.5 if operator.subsampled else 1.0)  # the mean of four pixels
                parts = [on_lattice(luma[0], operator.luminance, noise * gains[0])]
                for plane, gain in zip(chroma, gains[1:], strict=True):
                    parts.append(on_lattice(plane, operator.chrominance, shrunk * gain))
                found.append(torch.stack(parts).sum())
            return torch.stack(found).cpu()

        return log_likelihood


def coefficients(operator: JPEG, y: Tensor) -> tuple[Tensor, Tensor]:
    """Of luminance (1, 64, n), chrominances (2, 64, m), none of grey, of the whole blocks of y (C, h, w)."""
    side = 16 if operator.subsampled else 8
    height, width = (n // side * side for n in y.shape[-2:])
    colours = mix(operator.colours, (y[None, :, :height, :width] + 1) * 127.5)
    luma, chroma = colours[:, :1] - 128, colours[:, 1:]
    if operator.subsampled:
        chroma = F.avg_pool2d(chroma, 2)
    planes = []
    for plane in (luma[0], chroma[0]):
        count, rows, columns = len(plane), plane.shape[-2] // 8, plane.shape[-1] // 8
        blocks = plane.view(count, rows, 8, columns, 8).permute(0, 2, 4, 1, 3)
        blocks = blocks.reshape(count, 64, rows * columns)
        planes.append(operator.transform @ blocks[..., :: max(1, blocks.shape[-1] // BLOCKS)])
    return planes[0], planes[1]


def on_lattice(found: Tensor, steps: Tensor, deviation: float) -> Tensor:
    """log p of coefficients (64, n) that are multiples of steps (64, 1), plus normal noise."""
    scale = found.abs().mean(1, keepdim=True).clamp_min(SMALLEST)
    reach = min(REACH, 1 + int(3 * deviation / steps.min()))
    nearest = (found / steps).round()
    terms = []
    for shift in range(-reach, reach + 1):
        n = (nearest + shift).abs()
        tails = torch.exp(-(n - 0.5) * steps / scale) * -torch.expm1(-steps / scale) / 2
        mass = torch.where(n == 0, -torch.expm1(-steps / (2 * scale)), tails)
        off = (found - (nearest + shift) * steps) / deviation
        terms.append(mass.clamp_min(1e-300).log() - 0.5 * off**2)
    # On the scale of the terms, which lack the normal density's factor.
    free = ASTRAY * deviation * (2 * torch.pi) ** 0.5 / (2 * scale)
    terms.append(free.log() - found.abs() / scale)
    return torch.logsumexp(torch.stack(terms), 0).sum()
