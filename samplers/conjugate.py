"""The conjugate integrator: C-ΠGDM and C-ΠGFM, and with other settings ΠGDM, ΠGFM and DDIM.

One integrator for diffusion and flow, noiseless and noisy operators, and its own baseline; see
`samplers.coefficients` for the equations. Source: Pandey, Yang, Mandt, NeurIPS 2024 (2405.17673).
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pydantic.dataclasses
import torch
from pydantic import Field, FiniteFloat, NonNegativeInt
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.priors.base import Prior, evaluations_of
from kintsugi.samplers.base import Callback, KeptForOneJob, Restoration, Strength, check_fit
from kintsugi.samplers.coefficients import Absorb, Coefficients, Drift, Step, Weights
from kintsugi.samplers.grids import Span
from kintsugi.samplers.guidance import Schedule
from kintsugi.samplers.lattice import distinct, lattice
from kintsugi.samplers.noise import Noise, is_noisy
from kintsugi.samplers.problem import Init, Problem, check_project


@dataclass(frozen=True)
class Prepared:
    """Coefficients on the device, for a job.

    Weights hold a value per distinct ratio S/σ_y, that of the directions which the operator does not see
    first; `index` maps each spectral coordinate to its own. noise: of each step that needs it, the factors
    of x and of the network's output in ε.
    """

    start: tuple[float, float]
    end_scale: float
    lam: float
    steps: list[Step]
    noise: dict[int, tuple[float, float]]
    network_times: Tensor
    index: Tensor

    def per_coordinate(self, values: Tensor) -> Tensor:
        """(D,) values per distinct ratio → one per spectral coordinate."""
        return values[self.index]


@dataclass(frozen=True)
class Split:
    """An image, and its spectral coordinates Vᵀ image."""

    image: Tensor
    coordinates: Tensor


@pydantic.dataclasses.dataclass(kw_only=True, frozen=True)
class Conjugate(Span, KeptForOneJob):
    """C-ΠGDM on diffusion paths, C-ΠGFM on flows (Pandey et al., NeurIPS 2024, 2405.17673).

    start and end are native times of the path (VP: 0.4 and 0.001 unless given; other paths: the times
    of the same noise levels). What is returned is the state at the end divided by a(end), 0.99995 on VP
    and 0.99 on flows, where the published code returns the state. lam is per unit of the path's whole span
    of time. path: the prior's own, or another one by matching the log-SNR. init: start from H⁺y or from
    the linear MMSE estimate. project: impose a noiseless measurement on the result. churn: noise added
    before each step but the first, as S_churn of Karras et al. 2022 (order 1). vjp_steps: the network's
    derivative is in the guidance of the first so many steps (None: of all), and left out of the others, whose
    guidance is that of an ε-network whatever the prior predicts. jacobian: false is vjp_steps: 0.
    """

    needs_mean: ClassVar[bool] = True
    w: Strength = 15.0
    lam: FiniteFloat = 0.0
    absorb: Absorb = "conditional"
    schedule: Schedule = "conjugate"
    order: Annotated[int, Field(ge=1, le=3)] = 1
    jacobian: bool = True
    vjp_steps: NonNegativeInt | None = None
    init: Init = "pinv"
    project: bool = False
    churn: Strength = 0.0

    def __post_init__(self) -> None:
        if self.churn > 0 and self.order > 1:
            raise ValueError("churn: fresh noise between steps leaves nothing to extrapolate; use order: 1")
        if self.vjp_steps and not self.jacobian:
            raise ValueError(f"vjp_steps: jacobian: false means 0, not {self.vjp_steps}; leave one out")

    @property
    def vjps(self) -> int:
        """Vector-Jacobian products per sample."""
        return self.noise_from if self.w != 0 else 0

    @property
    def differentiates(self) -> bool:
        """Whether there are any."""
        return self.vjps > 0

    @property
    def noise_from(self) -> int:
        """The step from which on outputs are made ε before they are used.

        Without the Jacobian κ p G (H⁺y − x̂₀) is left of the guidance, and p is another one for everything
        that a network can predict: 1/a for ε, and 0 for x̂₀.
        """
        if not self.jacobian and self.w != 0:
            return 0
        return self.steps if self.vjp_steps is None or self.w == 0 else min(self.vjp_steps, self.steps)

    def coefficients(self, prior: Prior, singular_values: Tensor, sigma_y: float) -> Coefficients:
        """The coefficients for distinct singular values (D,), float64, on the CPU."""
        path, times = self.times(prior)
        predicts_clean = prior.parametrization == "x0" and self.noise_from == self.steps
        diverges = predicts_clean or (self.schedule == "constant" and self.absorb == "conditional")
        if diverges and path.s(end := times[-1]) == 0:
            raise ValueError(f"end: the coefficients diverge at clean data ({end.item()}); stop before it")
        return Coefficients(
            drift=Drift(path, prior.path, prior.parametrization),
            schedule=self.schedule,
            w=self.w,
            lam=self.lam / abs(path.noise_time - path.data_time),
            absorb=self.absorb,
            order=self.order,
            sigma_y=sigma_y,
            times=times,
            singular_values=singular_values,
            noise_from=self.noise_from,
            churn=self.churn,
        )

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> Prepared:
        """Coefficients for a job; see `samplers.base.Sampler`."""
        check_fit(self, prior)
        check_project(self.project, sigma_y)
        if self.order > 1 and not operator.decomposed:
            kind = "measurement without a decomposition" if operator.linear else "non-linear measurement"
            raise ValueError(f"order: what a {kind} says changes with x; use order: 1")
        levels, level = (sigma_y, None) if isinstance(sigma_y, Tensor) else (None, sigma_y)
        return self.remembered(
            "job",
            (prior, operator, levels),
            (level, like.device, like.dtype),
            lambda: self.compute(prior, operator, sigma_y, like),
        )

    def compute(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> Prepared:
        """Coefficients for an operator and noise, as tensors like `like`; those on the lattice are kept."""
        spectrum, noisy = operator.singular_values.detach().to("cpu", torch.float64), is_noisy(sigma_y)
        seen = torch.tensor([0.0, 1.0], dtype=torch.float64)
        coefficients = self.remembered(
            "coefficients",
            (prior,),
            (noisy,),
            lambda: self.coefficients(prior, lattice() if noisy else seen, float(noisy)),
        )
        if noisy:
            ratios = spectrum / torch.as_tensor(sigma_y, dtype=spectrum.dtype, device="cpu")
            index, interpolate = distinct(ratios)
            steps = [step.mapped(lambda values: interpolate(values).to(like)) for step in coefficients.steps]
        else:
            index = (spectrum > 0).long()  # only the range of Hᵀ matters
            steps = [step.mapped(lambda values: values.to(like)) for step in coefficients.steps]
        path, times = coefficients.drift.path, coefficients.times
        noise: dict[int, tuple[float, float]] = {}
        if prior.parametrization != "eps":
            factors = torch.stack(coefficients.drift.noise(coefficients.starts[self.noise_from :]), dim=1)
            noise = dict(enumerate(map(tuple, factors.tolist()), self.noise_from))
        return Prepared(
            start=(path.a(times[0]).item(), path.s(times[0]).item()),
            end_scale=path.a(times[-1]).item(),
            lam=coefficients.lam,
            steps=steps,
            noise=noise,
            network_times=torch.tensor([step.network_time for step in steps], dtype=torch.float64).to(like),
            # At least one-dimensional: an index of no dimension is read on the host.
            index=index.view(index.shape or (1,)).to(like.device),
        )

    @torch.no_grad()
    def __call__(
        self,
        prior: Prior,
        operator: Operator,
        y: Tensor,
        noise: Noise,
        *,
        sigma_y: float | Tensor = 0.0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch; see `samplers.base.Sampler`. The precision is the operator's."""
        problem = Problem(operator, y, noise, sigma_y)
        job = self.prepare(prior, operator, sigma_y, problem.pinv)
        image, known = problem.start(self.init, *job.start), problem.known
        state = Split(image, operator.to_spectral(image))
        previous = state
        history: deque[Evaluation] = deque(maxlen=self.order)
        for k, step in enumerate(job.steps):
            if step.raised is not None:
                scale, deviation = step.raised
                image = scale * state.image + deviation * problem.draw()
                state = Split(image, operator.to_spectral(image))
            x, time = state.image, job.network_times[k].expand(len(y))
            pulls = k < self.vjps
            with torch.set_grad_enabled(pulls):
                leaf = x.detach().requires_grad_(pulls)
                seen = leaf if step.network_scale == 1 else step.network_scale * leaf
                output = prior(seen, time)
            if k in job.noise:
                of_state, of_output = job.noise[k]
                output = of_state * x + of_output * output
            u = Split(output.detach(), operator.to_spectral(output.detach()))
            if callback is not None:
                callback(k, x, step.p * x + step.q * u.image)
            residual, pulled = None, None
            if self.w != 0:
                # Without a decomposition: what y says of this prediction, frozen over the step.
                known = problem.known_given(step.p * x + step.q * u.image, step.variance)
                prediction = step.p * state.coordinates + step.q * u.coordinates
                inside = job.per_coordinate(step.g) * (known - prediction)
                residual = Split(operator.from_spectral(inside), inside)
                if pulls:
                    (gradient,) = torch.autograd.grad(output, leaf, residual.image)
                    pulled = Split(gradient, operator.to_spectral(gradient))
            history.appendleft(Evaluation(u, pulled, self.outside(job, step, state, residual, pulled)))
            if step.correct is not None:
                state = combine(job, step.correct, operator, previous, known, history)
            previous = state
            state = combine(job, step.advance, operator, state, known, history)
        image = state.image / job.end_scale
        if self.project:
            image = operator.impose(image, y)
        each = evaluations_of(prior)
        return Restoration(image, forwards=each * self.steps, vjps=each * self.vjps)

    def outside(
        self, job: Prepared, step: Step, state: Split, residual: Split | None, pulled: Split | None
    ) -> Split | None:
        """The drift terms that are not absorbed into A: λ x, and the guidance if unconditional."""
        terms = [] if job.lam == 0 else [(job.lam, state)]
        if self.absorb == "unconditional" and residual is not None:
            terms.append((step.kappa * step.p, residual))
            if pulled is not None:
                terms.append((step.kappa * step.q, pulled))
        if not terms:
            return None
        return Split(
            sum_of((scale, split.image) for scale, split in terms),
            sum_of((scale, split.coordinates) for scale, split in terms),
        )


@dataclass(frozen=True)
class Evaluation:
    """What one step leaves for the next ones; None where a term is absent."""

    u: Split
    e: Split | None
    f: Split | None


def combine(
    job: Prepared,
    weights: Weights,
    operator: Operator,
    state: Split,
    known: Tensor,
    history: deque[Evaluation],
) -> Split:
    """Apply the weights of one step: their values for S = 0 in image space, the rest in coordinates."""
    terms = [(weights.x, state)]
    for j, evaluation in enumerate(history):
        present = ((weights.u, evaluation.u), (weights.e, evaluation.e), (weights.f, evaluation.f))
        # An interpolating step uses fewer evaluations than there are.
        terms += [(w[j], split) for w, split in present if split is not None and j < len(w)]
    # H⁺y is orthogonal to the directions that H does not see.
    inside = job.per_coordinate(weights.y) * known
    seen = sum_of(((job.per_coordinate(w), split.coordinates) for w, split in terms), inside)
    unseen = sum_of((w[0], split.image) for w, split in terms)
    shadow = sum_of((w[0], split.coordinates) for w, split in terms)
    return Split(unseen + operator.from_spectral(seen - shadow), seen)


def sum_of(terms: Iterable[tuple[Tensor | float, Tensor]], start: Tensor | None = None) -> Tensor:
    """Σ scale · tensor."""
    total = start
    for scale, tensor in terms:
        total = scale * tensor if total is None else total + scale * tensor
    assert total is not None
    return total
