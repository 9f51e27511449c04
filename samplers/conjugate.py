"""The conjugate integrator: C-ΠGDM and C-ΠGFM, and with other settings ΠGDM, ΠGFM and DDIM.

One integrator for diffusion and flow, noiseless and noisy operators, and its own baseline; see
`samplers.coefficients` for the equations. Source: Pandey, Yang, Mandt, NeurIPS 2024 (2405.17673).
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from operators import Operator
from priors.base import Prior
from priors.paths import Path, VariancePreserving, log_snr
from samplers.base import Callback, Restoration
from samplers.coefficients import Absorb, Coefficients, Drift, Step, Weights
from samplers.grids import Grid, time_grid
from samplers.guidance import Schedule
from samplers.noise import Noise, start_noise

# The released configurations start VP at 0.4 and end at 0.001; other paths use the same noise levels.
DEFAULT_SPAN = log_snr(VariancePreserving(), torch.tensor([0.4, 0.001], dtype=torch.float64))


@dataclass(frozen=True)
class Prepared:
    """Coefficients on the device, for one prior, operator and noise level.

    `index` maps each spectral coordinate to its distinct singular value.
    """

    prior: Prior
    operator: Operator
    sigma_y: float
    like: tuple[torch.device, torch.dtype]
    start: tuple[float, float]
    lam: float
    steps: list[Step]
    network_times: Tensor
    index: Tensor

    def spread(self, values: Tensor) -> Tensor:
        """(D,) values per distinct singular value → one per spectral coordinate."""
        return values[self.index]


class Conjugate:
    """Restores by integrating the guided probability-flow ODE; see `samplers.REGISTRY` for presets.

    Not safe to share between threads: it keeps the coefficients of the last job.
    """

    def __init__(
        self,
        *,
        steps: int,
        w: float,
        lam: float,
        start: float | None,
        end: float | None,
        absorb: Absorb,
        schedule: Schedule,
        order: int,
        grid: Grid,
        jacobian: bool,
        path: Path | None = None,
    ):
        self.steps, self.w, self.lam = steps, w, lam
        self.start, self.end = start, end
        self.absorb, self.schedule = absorb, schedule
        self.order, self.grid, self.jacobian = order, grid, jacobian
        self.path = path
        self._prepared: Prepared | None = None

    @property
    def vjps(self) -> int:
        """Vector-Jacobian products per sample."""
        return self.steps if self.jacobian and self.w != 0 else 0

    def coefficients(self, prior: Prior, singular_values: Tensor, sigma_y: float) -> Coefficients:
        """The coefficients for distinct singular values (D,), float64, on the CPU."""
        path = self.path or prior.path
        default_start, default_end = path.time_of(DEFAULT_SPAN).tolist()
        start = default_start if self.start is None else self.start
        end = default_end if self.end is None else self.end
        low, high = sorted((path.noise_time, path.data_time))
        for name, time in (("start", start), ("end", end)):
            if not low <= time <= high:
                raise ValueError(f"{name}: {time} is outside the path's times, {low} to {high}")
        if (end - start) * (path.data_time - path.noise_time) <= 0:
            raise ValueError(f"start, end: {start} to {end} does not lead from noise to data")
        diverges = prior.parametrization == "x0" or (
            self.schedule == "constant" and self.absorb == "conditional"
        )
        if diverges and path.s(torch.tensor(end, dtype=torch.float64)) == 0:
            raise ValueError(f"end: the coefficients diverge at clean data ({end}); stop before it")
        return Coefficients(
            drift=Drift(path, prior.path, prior.parametrization),
            schedule=self.schedule,
            w=self.w,
            lam=self.lam / abs(path.noise_time - path.data_time),
            absorb=self.absorb,
            order=self.order,
            sigma_y=sigma_y,
            times=time_grid(path, self.grid, start, end, self.steps),
            singular_values=singular_values,
        )

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float, like: Tensor) -> Prepared:
        """Coefficients for a job, computed at the first batch and kept."""
        last = self._prepared
        target = (like.device, like.dtype)
        if (
            last is not None
            and last.prior is prior
            and last.operator is operator
            and (last.sigma_y, last.like) == (sigma_y, target)
        ):
            return last
        spectrum = operator.singular_values.detach().to("cpu", torch.float64)
        if sigma_y == 0:
            # Without noise only the range of Hᵀ matters; two coefficients instead of thousands.
            spectrum = (spectrum > 0).double()
        distinct, index = torch.unique(spectrum, return_inverse=True)
        coefficients = self.coefficients(prior, distinct, sigma_y)
        path, times = coefficients.drift.path, coefficients.times
        steps = [
            replace(
                step,
                g=step.g.to(like),
                advance=_to(step.advance, like),
                correct=step.correct and _to(step.correct, like),
            )
            for step in coefficients.steps
        ]
        self._prepared = Prepared(
            prior=prior,
            operator=operator,
            sigma_y=sigma_y,
            like=target,
            start=(path.a(times[0]).item(), path.s(times[0]).item()),
            lam=coefficients.lam,
            steps=steps,
            network_times=torch.tensor([step.network_time for step in steps], dtype=torch.float64).to(like),
            index=index.to(like.device),
        )
        return self._prepared

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        operator: Operator,
        y: Tensor,
        noise: Noise,
        *,
        sigma_y: float = 0.0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch; see `samplers.base.Sampler`. The precision is the operator's."""
        pseudo_inverse = operator.pinv(y)
        z = start_noise(noise, pseudo_inverse)
        job = self.prepare(prior, operator, sigma_y, z)
        a, s = job.start
        known = operator.to_spectral(pseudo_inverse)  # Vᵀ H⁺y
        # x = a G H⁺y + s z. Without noise G H⁺y is H⁺y; with it, directions in which H⁺ amplifies the
        # measurement noise beyond what the start's own noise hides are left to the prior.
        state = a * job.spread(job.steps[0].g) * known + s * operator.to_spectral(z)
        previous = state
        history: deque[Evaluation] = deque(maxlen=self.order)
        for k, step in enumerate(job.steps):
            x = operator.from_spectral(state)
            time = job.network_times[k].expand(len(x))
            with torch.set_grad_enabled(self.vjps > 0):
                leaf = x.detach().requires_grad_(self.vjps > 0)
                seen = leaf if step.network_scale == 1 else step.network_scale * leaf
                u = prior(seen, time)
            spectral_u = operator.to_spectral(u.detach())
            if self.w == 0:
                residual, pulled = None, None
            else:
                prediction = step.p * state + step.q * spectral_u
                residual = job.spread(step.g) * (known - prediction)
                pulled = None
                if self.jacobian:
                    (gradient,) = torch.autograd.grad(u, leaf, operator.from_spectral(residual))
                    pulled = operator.to_spectral(gradient)
            if callback is not None:
                callback(k, x, step.p * x + step.q * u.detach())
            history.appendleft(
                Evaluation(spectral_u, pulled, self.outside(job, step, state, residual, pulled))
            )
            if step.correct is not None:
                state = combine(job, step.correct, previous, known, history)
            previous = state
            state = combine(job, step.advance, state, known, history)
        return Restoration(operator.from_spectral(state), forwards=self.steps, vjps=self.vjps)

    def outside(
        self, job: Prepared, step: Step, state: Tensor, residual: Tensor | None, pulled: Tensor | None
    ) -> Tensor | None:
        """The drift terms that are not absorbed into A: λ x, and the guidance if unconditional."""
        total = job.lam * state if job.lam != 0 else None
        if self.absorb == "unconditional" and residual is not None:
            guidance = step.kappa * step.p * residual
            if pulled is not None:
                guidance += step.kappa * step.q * pulled
            total = guidance if total is None else total + guidance
        return total


@dataclass(frozen=True)
class Evaluation:
    """What one step leaves for the next ones, in spectral coordinates; None where a term is absent."""

    u: Tensor
    e: Tensor | None
    f: Tensor | None


def combine(
    job: Prepared, weights: Weights, state: Tensor, known: Tensor, history: deque[Evaluation]
) -> Tensor:
    """Apply the weights of one step."""
    total = job.spread(weights.x) * state + job.spread(weights.y) * known
    for j, (evaluation, *_) in enumerate(zip(history, weights.u, strict=False)):
        total.addcmul_(job.spread(weights.u[j]), evaluation.u)
        if evaluation.e is not None:
            total.addcmul_(job.spread(weights.e[j]), evaluation.e)
        if evaluation.f is not None:
            total.addcmul_(job.spread(weights.f[j]), evaluation.f)
    return total


def _to(weights: Weights, like: Tensor) -> Weights:
    return Weights(**{name: value.to(like) for name, value in vars(weights).items()})
