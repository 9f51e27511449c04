"""Corrections by a measurement whose operator has no decomposition: solved for, linearised where need be."""

import torch
from torch import Tensor

from kintsugi.numerics import Map, conjugate_gradients, inner, linearised, nth
from kintsugi.operators import Nonlinear, Solved
from kintsugi.operators.base import Reading
from kintsugi.samplers.lmmse import TRUST, solved_towards, stationary
from kintsugi.samplers.problem import Problem

GAUSS_NEWTON, ITERATIONS = 3, 15
SHARES = (1.0, 0.5, 0.25)
"""Of a Gauss–Newton step, the first of which that lessens the objective is made."""
BELIEVED = 0.6
"""Of the way from the middle of a cell to its point nearest to a prediction. By PSNR and SWD of 8 images."""


def solved_for(
    problem: Problem, prediction: Tensor, variances: Tensor, density: Map, deviation: Tensor | None
) -> Tensor:
    """argmin ‖y − H(x)‖² / (σ_y² + 0.01²) + (x − x̂₀)ᵀ C⁻¹ (x − x̂₀), (B, C, H, W).

    Of a linear operator by conjugate gradients among the measurements; of another one by damped Gauss–Newton
    steps from x̂₀, each with a Jacobian of H alone. Numbers of iterations are fixed; the share of a step is a
    sample's own.

    Args:
        variances, deviation: of C, see `lmmse.towards`. density: c at squared frequencies.
    """
    operator = problem.operator
    covariance = stationary(variances.to(prediction), deviation)
    if isinstance(operator, Solved):
        missed = problem.y - operator.forward(prediction)
        return prediction + solved_towards(operator, missed, problem.sigma_y, covariance, density)
    return gauss_newton(problem, prediction, variances, deviation)


def gauss_newton(
    problem: Problem, prediction: Tensor, variances: Tensor, deviation: Tensor | None = None
) -> Tensor:
    """argmin of the misfit and (x − x̂₀)ᵀ C⁻¹ (x − x̂₀) for a non-linear operator, (B, C, H, W).

    The misfit is that of the operator's `reading` of y, `narrowed`, with variances of at least 0.01². C as of
    `solved_for`.
    """

    def misfit(x: Tensor) -> Tensor:
        missed = reading.target - reading.forward(x)
        return inner(missed / ridge, missed)

    assert isinstance(problem.operator, Nonlinear)
    reading = narrowed(problem.operator.reading(problem.y, problem.sigma_y), prediction)
    ridge = reading.variance + TRUST**2
    covariance = stationary(variances.to(prediction), deviation)
    # With noise the plain one does better (HDR, 0.2 dB): what few iterations leave stays near the prediction.
    alike = reading.target.shape == prediction.shape and not problem.noisy
    inverse = nearly_inverse(ridge, variances.to(prediction)) if alike else lambda r: r / ridge
    moved, pulled = prediction, torch.zeros_like(prediction)  # the second is C⁻¹ (moved − x̂₀)
    for _ in range(GAUSS_NEWTON):
        now, push, pull = linearised(reading.forward, moved)
        target = reading.target - now + push(moved - prediction)

        def matrix(z: Tensor, push: Map = push, pull: Map = pull) -> Tensor:
            return push(covariance(pull(z))) + ridge * z

        z = nth(conjugate_gradients(matrix, inverse, target), ITERATIONS)
        aim = pull(z)
        least = misfit(moved) + inner(pulled, moved - prediction)
        found, found_pulled = moved, pulled
        for share in reversed(SHARES):
            tried_pulled = pulled + share * (aim - pulled)
            tried = prediction + covariance(tried_pulled)
            better = misfit(tried) + inner(tried_pulled, tried - prediction) < least
            found, found_pulled = (
                torch.where(better, tried, found),
                torch.where(better, tried_pulled, found_pulled),
            )
        moved, pulled = found, found_pulled
    return moved


def narrowed(reading: Reading, prediction: Tensor) -> Reading:
    """What is read once a prediction (B, C, H, W) says where in its cell a rounded value is: no cell is left.

    With m what is predicted less the target t, and h the cell: t + κ clamp(m, −h, h) ± (1 − κ) h / √3, the
    evenly spread rest. Around t ± h / √3 instead, values that agree with y would be pulled to the middle.
    """
    missed = reading.forward(prediction) - reading.target
    edge = torch.as_tensor(reading.cell).to(missed)
    return Reading(
        reading.forward,
        reading.target + BELIEVED * missed.clamp(-edge, edge),
        reading.variance + ((1 - BELIEVED) * edge) ** 2 / 3,
    )


def nearly_inverse(ridge: float | Tensor, variances: Tensor) -> Map:
    """About (J C Jᵀ + ridge)⁻¹ of what is read like an image: that of J = 1."""
    level = ridge.mean((-3, -2, -1), keepdim=True) if isinstance(ridge, Tensor) and ridge.ndim > 2 else ridge
    return stationary(1 / (variances + level), None)
