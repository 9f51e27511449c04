"""Predictions corrected with the covariance of their own errors: no vector-Jacobian product."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kintsugi.numerics import cosines, finest_laplacian
from kintsugi.operators import Operator
from kintsugi.operators.base import Factored
from kintsugi.priors.base import Prior, autoencoder_of
from kintsugi.samplers.base import Share, Strength
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import Denoiser, Level, Stepwise, noise_in
from kintsugi.samplers.errors import FORMULAS, ErrorVariances, check_covariance, errors_of, frequencies_of
from kintsugi.samplers.linearised import gauss_newton, solved_for
from kintsugi.samplers.lmmse import spectrum, towards
from kintsugi.samplers.problem import Init, Problem

ITERATIONS = 15
"""Of conjugate gradients. With 30 nothing changes in the third digit of PSNR."""
PROBES = 24
WINDOW = 9
"""Pixels, over which the energy of details is averaged."""
EXPONENT, SCALE, FLOOR = 0.49, 10.2, 1e-5
"""Of m² = SCALE (energy + FLOOR)^EXPONENT, fitted to errors of the embedded prior on Set14 at σ = 0.28."""


@dataclass(kw_only=True, frozen=True)
class Covariance(Stepwise):
    """Posterior-mean correction with a covariance diagonal in the DCT (Peng et al., ICML 2024, 2402.02149).

    Their type II guidance: the error x₀ − x̂₀ of a prediction is N(0, C) with C = Ψᵀ diag(c) Ψ, so that
    x̂ = x̂₀ + C Hᵀ (H C Hᵀ + σ_y²)⁻¹ (y − H x̂₀); then noise of the next level, a share eta of it fresh. With C
    the identity it is DDNM. A non-linear operator is linearised at x̂, a few times (Gauss–Newton). No
    vector-Jacobian products of the network. trust, the accounting of noise, local and temperature are ours.

    Args:
        covariance: c at each noise level: `wiener`, of the best linear denoiser of images with a 1/f²
            spectrum; `white`, of independent values of variance 1, as latents are; `natural`, measured on the
            embedded prior; or a file that `kintsugi calibrate` wrote.
        eta: 0 keeps texture, 0.85 lowers distortion.
        trust: λ, by which C is multiplied in all steps but the last where y is noisy. What the corrected
            prediction is uncertain by then (of C, without M) counts as noise of the next level, of which less
            is added. For operators with a decomposition.
        local: M C M instead of C, M (B, 1, H, W) larger where the prediction has fine details.
        temperature: τ of a closing x̂ + τ ξ, ξ ~ N(0, C − C Hᵀ (H C Hᵀ + σ_y²)⁻¹ H C), the posterior's error.
    """

    takes_latents: ClassVar[bool] = True
    steps: PositiveInt = 5
    start: Annotated[float, Field(gt=0, le=1)] = 0.4
    init: Init = "lmmse"
    covariance: str = "wiener"
    eta: Share = 0.0
    trust: PositiveFloat = 10.0
    local: bool = False
    temperature: Strength = 0.0

    def __post_init__(self) -> None:
        check_covariance(self.covariance)

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> list[Level]:
        """The levels for a job; see `samplers.base.Sampler`."""
        latents = autoencoder_of(prior) is not None
        if latents and self.covariance not in FORMULAS:
            raise ValueError(
                "covariance: natural and tables are of images; with a prior of latents use white, or the "
                "sampler latino"
            )
        if self.temperature > 0 and (latents or not operator.decomposed):
            raise ValueError("temperature: needs an operator with a decomposition; use temperature: 0")
        self.errors(prior)
        return super().prepare(prior, operator, sigma_y, like)

    def errors(self, prior: Prior) -> ErrorVariances:
        """c(σ, |f|) for a prior; raises a ValueError that begins with the field."""
        return self.remembered("errors", (prior,), (), lambda: errors_of(self.covariance, prior))

    def belief(self, prior: Prior, operator: Operator, sigma: float, trust: float) -> "Belief":
        """Of predictions at a noise level, kept."""
        errors, shape = self.errors(prior), operator.image_shape[1:]
        return self.remembered(
            f"belief {sigma} {trust}", (errors,), shape, lambda: Belief(errors, sigma, trust, shape)
        )

    def begin(self, problem: Problem, level: Level) -> Tensor:
        """The state at the first level; of a non-linear operator of its own counterpart of `lmmse`."""
        operator = problem.operator
        if operator.linear or self.init == "pinv" or isinstance(operator, Decoded):
            return super().begin(problem, level)
        mean = gauss_newton(problem, torch.zeros_like(problem.pinv), spectrum(*operator.image_shape[1:]))
        return problem.around(mean, level.a, level.s)

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """The corrected prediction, and noise of the next level less what the correction has of y's."""
        prediction, operator = denoise(x, now), problem.operator
        last, counted = later.s == 0, problem.noisy and operator.decomposed
        trust = self.trust if counted and not last else 1.0
        belief = self.belief(denoise.prior, operator, now.sigma, trust)
        deviation = local_deviation(prediction) if self.local else None
        corrected = belief.correct(problem, prediction, deviation)
        if last:
            if self.temperature > 0:
                corrected = corrected + self.temperature * belief.draw(problem, deviation)
            return corrected, corrected
        noise = (1 - self.eta**2) ** 0.5 * noise_in(x, prediction, now)
        if self.eta > 0:
            noise = noise + self.eta * problem.draw()
        if counted:
            spread = self.remembered(
                f"spread {now.sigma}", (operator, belief), (), lambda: belief.along(operator)
            )
            share = fresh_share(problem, spread.to(x), later.sigma)
            noise = noise + operator.from_spectral((share - 1) * operator.to_spectral(noise))
        return later.a * corrected + later.s * noise, corrected


class Belief:
    """What is believed of the error of a prediction at noise level σ: N(0, M Ψᵀ diag(c) Ψ M).

    Args:
        trust: a factor of c. shape: (H, W) of the images.

    Attributes:
        variances: c (H, W) float64.
    """

    def __init__(self, errors: ErrorVariances, sigma: float, trust: float, shape: tuple[int, int]):
        self.errors, self.sigma, self.trust = errors, sigma, trust
        self.lowest = frequencies_of(*shape)[0, 0].item()
        self.variances = trust * errors(sigma, frequencies_of(*shape))

    def density(self, squared: Tensor) -> Tensor:
        """c at squared frequencies in (cycles per pixel)²."""
        at = squared.double().sqrt().clamp_min(self.lowest)
        return self.trust * self.errors(self.sigma, at).to(squared)

    def correct(self, problem: Problem, prediction: Tensor, deviation: Tensor | None) -> Tensor:
        """E[x₀ | x̂₀, y] (B, C, H, W); deviation: M (B, 1, H, W)."""
        operator = problem.operator
        if not operator.decomposed:
            return solved_for(problem, prediction, self.variances, self.density, deviation)
        residual = problem.known - operator.to_spectral(prediction)
        return prediction + towards(
            operator, residual, problem.sigma_y, self.variances, ITERATIONS, deviation
        )

    def draw(self, problem: Problem, deviation: Tensor | None) -> Tensor:
        """A draw of what `correct` leaves unknown: an error less what a measurement would say of it.

        Perturb and MAP: Papandreou and Yuille, NeurIPS 2010.
        """
        operator, variances = problem.operator, self.variances
        z, of_noise = problem.draw(), problem.draw()
        rows, columns = (cosines(n).to(z) for n in variances.shape)
        error = rows.T @ (variances.sqrt().to(z) * z) @ columns
        error = error if deviation is None else deviation * error
        noise = torch.where(operator.singular_values > 0, problem.sigma_y / operator.singular_values, 0)
        told = operator.to_spectral(error) + noise * operator.to_spectral(of_noise)
        return error - towards(operator, told, problem.sigma_y, self.variances, ITERATIONS, deviation)

    def along(self, operator: Operator) -> Tensor:
        """The variance of Vᵀ e, e ~ N(0, Ψᵀ diag(c) Ψ): exact for outer products, else by probes."""
        variances = self.variances
        rows, columns = (cosines(n) for n in variances.shape)
        if isinstance(operator, Factored):
            left = operator.rows_right.mT.double().cpu() @ rows.T
            right = operator.columns_right.mT.double().cpu() @ columns.T
            return left**2 @ variances @ (right**2).mT
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(PROBES, *operator.image_shape, generator=generator, dtype=torch.float64)
        probes = (rows.T @ (variances.sqrt() * z) @ columns).to(operator.singular_values)
        squared = [operator.to_spectral(probe[None]).double() ** 2 for probe in probes]
        # The channels are alike, whatever the operator makes of them.
        return torch.stack(squared).mean(0).mean(-3, keepdim=True)


def fresh_share(problem: Problem, spread: Tensor, sigma: float) -> Tensor:
    """√(1 − v/σ²) per direction, v the variance of the corrected prediction there; 1 where y is silent.

    v = σ_y² c / (S² c + σ_y²). What is uncertain in the prediction is then part of the next level's noise.
    """
    values, noise = problem.operator.singular_values, problem.sigma_y**2
    share = (1 - noise * spread / (values**2 * spread + noise) / sigma**2).clamp_min(0).sqrt()
    return torch.where(values > 0, share, 1)


def local_deviation(prediction: Tensor) -> Tensor:
    """M (B, 1, H, W): how much larger errors are where a prediction has details than on average."""
    energy = finest_laplacian(prediction).square().mean(1, keepdim=True)
    around = avg_pool2d(energy, WINDOW, stride=1, padding=WINDOW // 2, count_include_pad=False)
    return (SCALE * (around + FLOOR) ** EXPONENT).sqrt()
