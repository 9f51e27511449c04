"""The noise level of a measurement, from the measurement alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.numerics import diagonal_details, noise_in_details
from kintsugi.operators import Operator

FEWEST = 256
"""Directions that the operator must leave unseen for these to be used."""
MEDIAN_DEVIATION = 1.1664
"""√n times the relative deviation of σ by the median of n absolute values."""


@dataclass(frozen=True)
class NoiseLevel:
    """σ of each sample on the [-1, 1] scale, its standard deviation, (B,) float64, and what it is from.

    Attributes:
        unseen: whether from directions that the operator leaves unseen; else by wavelets, which take fine
            texture for noise.
    """

    sigma: Tensor
    deviation: Tensor
    unseen: bool


def noise_level(operator: Operator, y: Tensor) -> NoiseLevel:
    """σ_y of measurements y (B, *measurement_shape).

    What y has outside of the range of H, y − H H⁺y, is noise alone: of m numbers it has m − rank, and σ² is
    its energy over these. Without such directions σ is the median absolute value of the finest diagonal
    wavelet coefficients over that of a standard normal variable (Donoho & Johnstone 1994), as
    `skimage.restoration.estimate_sigma` has it. `deviation` does not know what H and the wavelets overlook.

    Raises:
        ValueError: pixels that a mask hides hold one value: they were filled in, not measured.
    """
    if operator.linear and operator.decomposed:
        inverse = operator.pinv(y)
        seen = (operator.singular_values > 0).expand_as(operator.to_spectral(inverse)).flatten(1).sum(1)
        unseen = y[0].numel() - seen
        if bool((unseen >= FEWEST).all()):
            rest = (y - operator.forward(inverse)).double().flatten(1)
            if any(len(one.unique()) <= 2 for one in rest):
                raise ValueError("sigma: what is unknown of the measurement holds one value; state sigma")
            sigma = (rest.square().sum(1) / unseen).sqrt()
            return NoiseLevel(sigma, sigma / (2 * unseen).sqrt(), unseen=True)
    counts, sigmas = [], []
    for planes in y.double():
        details = diagonal_details(planes)
        sigmas.append(noise_in_details(details))
        counts.append(details.numel())
    sigma = torch.stack(sigmas)
    return NoiseLevel(sigma, MEDIAN_DEVIATION * sigma / torch.tensor(counts).to(sigma).sqrt(), unseen=False)
