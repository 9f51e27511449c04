"""How likely a measurement is under an operator, without a network: log p(y | θ) in the frequency domain.

The prior is stationary and Gaussian, with the spectrum A f^−β; A and β are those that make the measurement
likeliest (β near 2, as in natural images), for every operator anew. With the squared transfer function T the
mean ȳ of y's channels has at each frequency the variance

    v(f) = A f^−β T(f) + σ²,        log p(y | θ) = −½ Σ [log v + |ŷ|²/v] + log p(β)

which is Whittle's likelihood. Frequencies are those of the DCT, and where operators are circular of the FFT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from kintsugi.numerics import cosines
from kintsugi.operators import Operator
from kintsugi.operators.base import Separable
from kintsugi.operators.convolution import Convolution, Mirrored

SLOPE, SLOPE_DEVIATION = 2.6, 0.3
"""Of β before anything is seen: 2.6 ± 0.45 of 80 photographs, 2.9 ± 0.25 of 80 faces, at 128² and 256²."""
ROUNDING = (2 / 255) / 12**0.5
"""The deviation of what rounding to 8 bits does on the [-1, 1] scale."""
ITERATIONS = 12
PROBES = 16


@dataclass(frozen=True)
class Axes:
    """The frequencies of a measurement's plane (h, w): orthonormal DCT, or unitary FFT.

    Attributes:
        rows, columns: the transforms (h, h) and (w, w). squared: f² (h, w), in (cycles per pixel)².
        used: 1 where a frequency counts, 0 at the mean.
    """

    rows: Tensor
    columns: Tensor
    squared: Tensor
    used: Tensor

    def power(self, y: Tensor) -> Tensor:
        """|ŷ|² (…, h, w) of planes."""
        return (self.rows @ y.to(self.rows) @ self.columns.T).abs() ** 2


@lru_cache
def frequencies(height: int, width: int, circular: bool, device: torch.device) -> Axes:
    """The axes of planes of this size, float64."""
    squares, transforms = [], []
    for n in (height, width):
        if circular:
            transforms.append(torch.fft.fft(torch.eye(n, dtype=torch.float64), norm="ortho"))
            squares.append(torch.fft.fftfreq(n, dtype=torch.float64) ** 2)
        else:
            transforms.append(cosines(n))
            squares.append((torch.arange(n, dtype=torch.float64) / (2 * n)) ** 2)
    squared = squares[0][:, None] + squares[1]
    squared[0, 0] = (0.25 / max(height, width)) ** 2  # as in samplers.lmmse
    used = torch.ones_like(squared)
    used[0, 0] = 0
    return Axes(*(t.to(device) for t in (*transforms, squared, used)))


def coarseness(y: Tensor) -> tuple[float, float]:
    """What is added to the power of the mean ȳ of y's channels (C, h, w), and to its variance.

    Nothing finer than rounding to 8 bits is relied upon, as the zeros that a threshold leaves in exact
    measurements: these get the power that it would add. What is rounded has it.
    """
    alike = bool((y == y[:1]).all())
    variance = ROUNDING**2 / (1 if alike else len(y))
    levels = (y.double() + 1) * 127.5
    rounded = bool(((levels - levels.round()).abs() < 1e-3).all())
    return (0.0 if rounded else variance), variance


def axes_of(operators: Sequence[Operator], device: torch.device) -> Axes:
    """The axes in which these operators are best described."""
    _, height, width = operators[0].measurement_shape
    return frequencies(height, width, any(isinstance(one, Convolution) for one in operators), device)


def transfer(operator: Operator, axes: Axes) -> Tensor:
    """T (h, w): the power of H x at each frequency, relative to that of x under a 1/f² spectrum.

    Exact of circular and of separable blurs, and of others from random images.
    """
    density = 1 / axes.squared
    if isinstance(operator, Convolution) and axes.rows.is_complex():
        return operator.singular_values.to(density) ** 2
    if isinstance(operator, Mirrored) and not axes.rows.is_complex():
        return operator.singular_values.to(density) ** 2
    same_size = operator.measurement_shape[1:] == operator.image_shape[1:]
    if isinstance(operator, Separable) and same_size:
        matrices = [matrix.to(axes.rows) for matrix in operator.matrices()]
        rows, columns = (
            (basis @ matrix @ basis.mH).abs() ** 2
            for basis, matrix in zip((axes.rows, axes.columns), matrices, strict=True)
        )
        return (rows @ density @ columns.T) / density
    return probed(operator, axes) / density


def probed(operator: Operator, axes: Axes) -> Tensor:
    """The power (h, w) of H x at each frequency, x grey and of spectrum 1/f²: an average of random images."""
    channels, height, width = operator.image_shape
    inside = frequencies(height, width, axes.rows.is_complex(), axes.squared.device)
    z = torch.randn(PROBES, 1, height, width, generator=torch.Generator().manual_seed(0))
    white = inside.rows @ z.to(inside.rows) @ inside.columns.T
    x = inside.rows.mH @ (white / inside.squared.sqrt()) @ inside.columns.conj()
    y = operator.forward(x.real.expand(-1, channels, -1, -1).to(operator.singular_values))
    # The average has an error of its own; at neighbouring frequencies the transfer is about the same.
    relative = axes.power(y.mean(1)).mean(0) * axes.squared
    smooth = pad(relative[None, None], (1, 1, 1, 1), mode="replicate")
    return avg_pool2d(smooth, 3, stride=1)[0, 0] / axes.squared


@dataclass(frozen=True)
class Fit:
    """What a measurement says of operators: log-likelihoods (G,), and the spectra that they are for.

    Attributes:
        amplitude, slope: log A and β, (G,).
    """

    log_likelihood: Tensor
    amplitude: Tensor
    slope: Tensor


def fit(power: Tensor, transfers: Tensor, variance: float, axes: Axes) -> Fit:
    """The likelihood of |ŷ|² (h, w) under transfers T (G, h, w), each with its own A and β.

    By a fixed number of steps of Fisher scoring, none of which is larger than a model can bear.

    Args:
        variance: σ² of a coefficient.
    """
    logarithm = 0.5 * axes.squared.log()
    flat = logarithm.flatten()
    slope = transfers.new_full((len(transfers),), SLOPE)
    expected = (axes.used * transfers * torch.exp(-SLOPE * logarithm)).sum((1, 2))
    amplitude = torch.log((axes.used * power).sum() / expected)

    def signal() -> Tensor:
        return transfers * torch.exp(amplitude[:, None, None] - slope[:, None, None] * logarithm)

    for _ in range(ITERATIONS):
        own = signal()
        total = own + variance
        share = axes.used * own / total
        excess = (0.5 * share * (power / total - 1)).flatten(1)
        gradient = excess.sum(1), -excess @ flat - (slope - SLOPE) / SLOPE_DEVIATION**2
        weight = (0.5 * share**2).flatten(1)
        aa, ab = weight.sum(1).clamp_min(1e-9), -weight @ flat
        bb = weight @ flat**2 + 1 / SLOPE_DEVIATION**2
        determinant = aa * bb - ab**2
        higher = (bb * gradient[0] - ab * gradient[1]) / determinant
        steeper = (aa * gradient[1] - ab * gradient[0]) / determinant
        size = torch.maximum(higher.abs() / 1.5, steeper.abs() / 0.5).clamp_min(1)
        amplitude, slope = amplitude + higher / size, slope + steeper / size
    total = signal() + variance
    fitted = -0.5 * (axes.used * (total.log() + power / total)).sum((1, 2))
    return Fit(fitted - 0.5 * ((slope - SLOPE) / SLOPE_DEVIATION) ** 2, amplitude, slope)


def dispersion(power: Tensor, transfer: Tensor, found: Fit, best: int, variance: float, axes: Axes) -> float:
    """By how much the power in rings of equal frequency varies more than the model says, at least 1.

    Images are not Gaussian, and their spectra no exact power laws; a likelihood divided by it is as sure
    as it may be (quasi-likelihood; Wedderburn 1974).
    """
    logarithm = 0.5 * axes.squared.log()
    own = transfer * torch.exp(found.amplitude[best] - found.slope[best] * logarithm)
    ratio = power / (own + variance)
    rings = (axes.squared.sqrt() * min(power.shape)).round().long().flatten()
    weight = (axes.used * own / (own + variance)).flatten()
    zeros = torch.zeros(int(rings.max()) + 1).to(ratio)
    total = zeros.index_add(0, rings, weight)
    excess = zeros.index_add(0, rings, weight * (ratio.flatten() - 1))
    seen = total > 1
    return max(1.0, float((excess[seen] ** 2 / total[seen] / 2).mean()))
