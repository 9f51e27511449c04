"""Numerics that operators, priors and samplers share."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

Map = Callable[[Tensor], Tensor]
NORMAL_QUARTILE = 0.6744897501960817
DB2 = (-0.48296291314453414, 0.8365163037378079, -0.2241438680420134, -0.12940952255126037)
"""The high-pass filter of Daubechies' wavelet with two vanishing moments."""
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
TOGETHER = {"cuda": 16}
"""Images that a network which measures images sees at once, by device; elsewhere one: more are no faster."""


def reflect(positions: Tensor, n: int) -> Tensor:
    """Fold positions outside 0…n−1 back, the border pixel itself repeated: … 1 0 | 0 1 …"""
    folded = positions.remainder(2 * n)
    return torch.minimum(folded, 2 * n - 1 - folded)


def filled(x: Tensor, count: int) -> Tensor:
    """x (n, …) with its last entry repeated up to `count`."""
    return torch.cat([x, x[-1:].expand(count - len(x), *x.shape[1:])]) if len(x) < count else x


def at_once(device: torch.device) -> int:
    """How many images a network which measures images sees at once on a device."""
    return TOGETHER.get(device.type, 1)


def in_whole_batches(network: Callable[..., Tensor], device: torch.device, *images: Tensor) -> Tensor:
    """What a network makes of images (n, C, H, W), n > 0, (n, …): always so many at once, the last filled up.

    Libraries choose the order of sums by the size of a batch. In one of a fixed size it is the same for
    every image, whatever the others are.

    Args:
        network: of as many batches as there are `images`. device: on which it computes.
    """
    size, count = at_once(device), len(images[0])
    parts = [[filled(x[first : first + size], size) for x in images] for first in range(0, count, size)]
    return torch.cat([network(*part) for part in parts])[:count]


def larger(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The larger of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_min(other)
    return other.clamp_min(one) if isinstance(other, Tensor) else max(one, other)


def smaller(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    """The smaller of two numbers, each of which may be one for each sample."""
    if isinstance(one, Tensor):
        return one.clamp_max(other)
    return other.clamp_max(one) if isinstance(other, Tensor) else min(one, other)


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II matrix (n, n), a frequency per row."""
    frequencies, positions = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n) + 0.5
    matrix = torch.cos(torch.pi * frequencies * positions / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix


def inner(one: Tensor, other: Tensor) -> Tensor:
    """⟨one, other⟩ of each sample (B, C, H, W): (B, 1, 1, 1)."""
    return (one * other).sum((1, 2, 3), keepdim=True)


def conjugate_gradients(
    matrix: Map, inverse: Map, b: Tensor, tolerance: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Better and better solutions x of matrix(x) = b, each with its residual b − matrix(x), without end.

    Every sample of b (B, C, H, W) has step sizes of its own, so that none depends on its batch; nothing waits
    for the device. Hestenes & Stiefel 1952.

    Args:
        matrix, inverse: symmetric and positive definite maps of (B, C, H, W); the second preconditions.
        tolerance: of ‖b − matrix(x)‖ / ‖b‖ in the norm of `inverse`. A solution within it stays as it is.
            When all are the iterates end, on a CPU; on a GPU to ask that would be to wait. 0: no end.
    """

    x, r = torch.zeros_like(b), b
    preconditioned = inverse(r)
    direction = preconditioned
    energy = inner(r, preconditioned)
    precise, tiny = max(torch.finfo(x.dtype).eps, tolerance) ** 2 * energy, torch.finfo(x.dtype).tiny
    while True:
        image = matrix(direction)
        curvature = inner(direction, image)
        # A sample that has converged stays where it is, whatever others need.
        step = torch.where((energy > precise) & (curvature > 0), energy / curvature.clamp_min(tiny), 0)
        x = x + step * direction
        r = r - step * image
        yield x, r
        preconditioned = inverse(r)
        before, energy = energy, inner(r, preconditioned)
        if tolerance > 0 and b.device.type == "cpu" and not (energy > precise).any():
            return
        turn = torch.where(energy > precise, energy / before.clamp_min(tiny), 0)
        direction = preconditioned + turn * direction


def nth(iterates: Iterator[tuple[Tensor, Tensor]], number: int) -> Tensor:
    """The solution after so many iterations, or the last one where there are fewer."""
    *_, (found, _) = islice(iterates, number)
    return found


def linearised(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Map, Map]:
    """H(x), and v ↦ J v and v ↦ Jᵀ v with J = ∂H/∂x there; J by the derivative of Jᵀ v in v."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        y = function(leaf)
        cotangent = torch.zeros_like(y, requires_grad=True)
        (gradient,) = torch.autograd.grad(y, leaf, cotangent, create_graph=True)

    def push(v: Tensor) -> Tensor:
        return torch.autograd.grad(gradient, cotangent, v, retain_graph=True)[0]

    def pull(v: Tensor) -> Tensor:
        return torch.autograd.grad(y, leaf, v, retain_graph=True)[0]

    return y.detach(), push, pull


def diagonal_details(planes: Tensor) -> Tensor:
    """The finest diagonal wavelet coefficients of planes (C, h, w), beyond whose borders is their mirror."""
    filters = planes.new_tensor(DB2)
    for axis in (1, 2):
        n = planes.shape[axis]
        outputs = 2 * torch.arange((n + 3) // 2)[:, None] + 1 - torch.arange(4)
        folded = reflect(outputs, n).to(planes.device)
        planes = (planes.movedim(axis, -1)[..., folded] @ filters).movedim(-1, axis)
    return planes


def noise_in_details(details: Tensor) -> Tensor:
    """σ of the noise in planes, a number: their mean, of the `diagonal_details` (C, h, w) that are not 0.

    The median absolute value over that of a standard normal variable (Donoho & Johnstone 1994), as
    `skimage.restoration.estimate_sigma` has it; 0 where there are none.
    """
    return torch.stack([median_level(plane[plane != 0]) for plane in details]).mean()


def median_level(details: Tensor) -> Tensor:
    """σ of normal variables of which a few are not: their median absolute value over a standard one's."""
    if details.numel() == 0:
        return details.new_zeros(())
    return details.abs().quantile(0.5) / NORMAL_QUARTILE


def finest_laplacian(x: Tensor) -> Tensor:
    """x less its half-resolution content: level 0 of the Laplacian pyramid, (B, C, H, W).

    Burt and Adelson 1983: binomial filter (1 4 6 4 1)/16, borders mirrored.
    """
    spaced = torch.zeros_like(x)
    spaced[..., ::2, ::2] = 4 * smooth(x, 2)
    return x - smooth(spaced, 1)


def smooth(x: Tensor, step: int) -> Tensor:
    """The binomial filter at every `step`-th pixel: one axis after the other, a tenth of conv2d's time."""
    height, width = x.shape[-2:]
    x = pad(x, (2, 2, 2, 2), mode="reflect")
    taps = list(enumerate(BINOMIAL))
    x = torch.stack([tap * x[..., i : i + height : step, :] for i, tap in taps]).sum(0)
    return torch.stack([tap * x[..., i : i + width : step] for i, tap in taps]).sum(0)
