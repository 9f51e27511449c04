"""Restoring with an operator of which some numbers are unknown: they are estimated with every sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.operators.base import Linear
from kintsugi.operators.family import Family
from kintsugi.operators.jpeg import JPEG
from kintsugi.operators.stack import all_or_first, stack
from kintsugi.priors.base import Prior
from kintsugi.samplers.base import Callback, Restoration, Sampler, of_each
from kintsugi.samplers.evidence import Axes, axes_of, coarseness, dispersion, fit, transfer
from kintsugi.samplers.noise import KeyedNoise, Noise
from kintsugi.samplers.quality import LatticeLikelihood

COARSE = {1: 48, 2: 12, 3: 6}
"""Values along each axis of the first grid, by how many numbers are unknown."""
WHOLE = 128
"""The same of one whole number: all, usually."""
LINE, SWEEPS = 64, 2
"""Values along one axis, of several, through the best so far, and how often along each."""
MULTIPLES, BESIDE = (1 / 4, 1 / 3, 1 / 2, 1, 2, 3, 4), 3
"""Of a length, which are looked at too, and at how many half steps of the lines to each side of the angle."""
ROUNDS, RESOLVED = 8, 0.5
"""A grid is refined until the log-likelihood falls by less than this to the neighbours, so often at most."""

KEPT = 300
"""Values whose transfers are kept."""

Values = tuple[float, ...]


@dataclass(frozen=True)
class Estimate:
    """What measurements say of the numbers that are unknown.

    Attributes:
        values, deviations: (B, P), float64 on the CPU, in the order of `Family.unknown`.
    """

    values: Tensor
    deviations: Tensor


@dataclass(frozen=True)
class BlindRestoration(Restoration):
    """A restored batch, and with which operators: values and deviations (B,) by the unknowns' fields."""

    estimate: dict[str, Tensor] = field(default_factory=dict)
    deviation: dict[str, Tensor] = field(default_factory=dict)


def restore(
    sampler: Sampler,
    prior: Prior,
    family: Family,
    y: Tensor,
    noise: Noise,
    *,
    sigma_y: float | Tensor = 0.0,
    callback: Callback | None = None,
) -> BlindRestoration:
    """Restore a batch by a sampler, each sample with the operator of the family that its measurement names.

    Args:
        y: (B, *measurement_shape), images on the [-1, 1] scale. noise, sigma_y, callback: as
            `samplers.base.Sampler` has them.
    """
    found = estimate(family, y, sigma_y)
    operators = [family.operator(values) for values in found.values.tolist()]
    restoration = restored(sampler, prior, operators, y, noise, sigma_y, callback)
    return BlindRestoration(
        **vars(restoration),
        estimate=dict(zip(family.fields, found.values.T, strict=True)),
        deviation=dict(zip(family.fields, found.deviations.T, strict=True)),
    )


def restored(
    sampler: Sampler,
    prior: Prior,
    operators: Sequence[Operator],
    y: Tensor,
    noise: Noise,
    sigma_y: float | Tensor,
    callback: Callback | None,
) -> Restoration:
    """A batch whose samples have an operator each: at once as far as these can be stacked."""

    def restore_some(places: Sequence[int]) -> Restoration:
        some = slice(places[0], places[-1] + 1)
        level = sigma_y[some] if isinstance(sigma_y, Tensor) else sigma_y
        operator = stack(operators[some])
        return sampler(prior, operator, y[some], only(noise, some), sigma_y=level, callback=callback)

    parts: list[Restoration] = []
    while (done := sum(len(part.image) for part in parts)) < len(operators):
        parts.append(all_or_first(range(done, len(operators)), restore_some))
    forwards, vjps = (joined([getattr(part, of) for part in parts], parts) for of in ("forwards", "vjps"))
    image = torch.cat([part.image for part in parts])
    return replace(parts[0], image=image, forwards=forwards, vjps=vjps)


def joined(counts: Sequence[int | Tensor], parts: Sequence[Restoration]) -> int | Tensor:
    """The counts of the parts of a batch: one number for all samples, or of each its own."""
    if not any(isinstance(count, Tensor) for count in counts):
        return counts[0]
    each = zip(counts, parts, strict=True)
    return torch.cat([torch.tensor(of_each(count, len(part.image))) for count, part in each])


def only(noise: Noise, some: slice) -> Noise:
    """The noise of some samples of a batch."""
    return KeyedNoise(noise.seed, noise.keys[some]) if isinstance(noise, KeyedNoise) else noise[some]


def at(sigma_y: float | Tensor, i: int) -> float:
    """The noise level of one sample of a batch."""
    return float(sigma_y[i]) if isinstance(sigma_y, Tensor) else sigma_y


def estimate(family: Family, y: Tensor, sigma_y: float | Tensor = 0.0) -> Estimate:
    """The numbers by which y (B, …) is likeliest, and their standard deviations; no network is asked.

    The operator is taken as it is, and without its threshold, whichever is likelier: what is below a
    threshold is lost in measurements that this program made, and is not in a photograph.
    """
    likelihood = likelihood_of(family, y.device)
    found = [search(family, likelihood.of(y[i], at(sigma_y, i))) for i in range(len(y))]
    values, deviations = zip(*found, strict=True)
    return Estimate(torch.tensor(values, dtype=torch.float64), torch.tensor(deviations, dtype=torch.float64))


@lru_cache(maxsize=4)
def likelihood_of(family: Family, device: torch.device) -> "SpectralLikelihood | LatticeLikelihood":
    """How likely a family's values are under a measurement: of JPEG by its lattice, of others by spectra."""
    middle = [one.value(sum(one.span) / 2) for one in family.unknown]
    if isinstance(family.operator(middle), JPEG):
        return LatticeLikelihood(family, device)
    return SpectralLikelihood(family, device)


class SpectralLikelihood:
    """The log-likelihood of a family's values, from transfers that are kept for all samples.

    Raises:
        ValueError: operators of the family are not linear, or their measurements differ in size.
    """

    def __init__(self, family: Family, device: torch.device):
        self.families = [each for each in (family, family.untruncated()) if each is not None]
        self.device = device
        self.transfers: dict[Values, list[Tensor]] = {}
        lowest, highest = ([getattr(one, end) for one in family.unknown] for end in ("low", "high"))
        ends = [family.operator(values) for values in (lowest, highest)]
        if any(not isinstance(one, Linear) for one in ends):
            name = family.spec["name"]
            raise ValueError(f"operator: {name!r} is not linear; its numbers cannot be estimated")
        if ends[0].measurement_shape != ends[1].measurement_shape:
            raise ValueError("operator: what is estimated must not change the size of the measurement")
        self.axes: Axes = axes_of(ends, device)

    def transfer(self, values: Values) -> list[Tensor]:
        """T (h, w) of these values, with and without the threshold."""
        if values in self.transfers:
            return self.transfers[values]
        operators = (each.operator(values, torch.float64) for each in self.families)
        found = [transfer(one, self.axes) for one in operators]
        if len(self.transfers) < KEPT:  # the first grid, which is that of every sample
            self.transfers[values] = found
        return found

    def of(self, y: Tensor, sigma_y: float) -> Callable[[Sequence[Values]], Tensor]:
        """The log-likelihoods (G,) of values under a measurement y (C, h, w), over its dispersion."""
        power, variance = self.axes.power(y.double().mean(0)), sigma_y**2 / len(y)
        power, variance = power + coarseness(y)[0], variance + coarseness(y)[1]
        scale: list[float] = []

        def log_likelihood(grid: Sequence[Values]) -> Tensor:
            kinds = torch.stack([torch.stack(self.transfer(values)) for values in grid])
            found = fit(power, kinds.flatten(0, 1), variance, self.axes)
            if not scale:
                best = int(found.log_likelihood.argmax())
                likeliest = kinds.flatten(0, 1)[best]
                scale.append(dispersion(power, likeliest, found, best, variance, self.axes))
            return found.log_likelihood.view(len(grid), -1).amax(1) / scale[0]

        return log_likelihood


def search(family: Family, log_likelihood: Callable[[Sequence[Values]], Tensor]) -> tuple[Values, Values]:
    """The likeliest values, and their standard deviations, by a grid that is refined around the best."""
    count = COARSE[len(family.unknown)]
    if [one.stride is not None for one in family.unknown] == [True]:
        count = WHOLE
    axes = [one.between(*one.span, count) for one in family.unknown]
    steps = [
        (one.span[1] - one.span[0]) / (len(axis) - 1) for one, axis in zip(family.unknown, axes, strict=True)
    ]
    grid: list[Values] = list(product(*axes))
    seen = dict(zip(grid, log_likelihood(grid).tolist(), strict=True))
    if len(axes) > 1:
        # The lengths of a motion have narrow peaks, at whole fractions too, at angles that are nearly right.
        for looked_at in (*range(len(axes)), None) * SWEEPS:
            best = max(seen, key=lambda values: seen[values])
            places = multiples(family, best) if looked_at is None else line(family, best, looked_at)
            new = [values for values in places if values not in seen]
            if new:
                seen |= dict(zip(new, log_likelihood(new).tolist(), strict=True))
    for _ in range(ROUNDS):
        best = max(seen, key=lambda values: seen[values])
        steps = [step / 2 for step in steps]
        around = [
            sorted({one.value(one.coordinate(value) + side * step) for side in (-1, 0, 1)})
            for one, value, step in zip(family.unknown, best, steps, strict=True)
        ]
        new = [values for values in product(*around) if values not in seen]
        if not new:
            break
        seen |= dict(zip(new, log_likelihood(new).tolist(), strict=True))
        if seen[best] - min(seen[values] for values in new) < RESOLVED and seen[best] == max(seen.values()):
            break
    return summary(family, seen)


def line(family: Family, best: Values, position: int) -> list[Values]:
    """The values along one axis through the best."""
    one = family.unknown[position]
    return [(*best[:position], value, *best[position + 1 :]) for value in one.between(*one.span, LINE)]


def multiples(family: Family, best: Values) -> list[Values]:
    """Multiples of the best's length, if there is one, at values beside the best of what else is unknown."""
    if all(one.place[-1] != "length" for one in family.unknown):
        return []
    axes = []
    for one, value in zip(family.unknown, best, strict=True):
        low, high = one.span
        step = (high - low) / (LINE - 1) / 2
        if one.place[-1] == "length":
            axis = [value * share for share in MULTIPLES if one.low <= value * share <= one.high]
        else:
            axis = [one.value(one.coordinate(value) + k * step) for k in range(-BESIDE, BESIDE + 1)]
        axes.append(axis)
    return list(dict.fromkeys(product(*axes)))


def summary(family: Family, seen: dict[Values, float]) -> tuple[Values, Values]:
    """The best of the values that were looked at, and deviations by the profile along each axis."""
    best = max(seen, key=lambda values: seen[values])
    deviations = []
    for position in range(len(family.unknown)):
        profile: dict[float, float] = {}
        for values, height in seen.items():
            profile[values[position]] = max(profile.get(values[position], -torch.inf), height)
        places = sorted(profile)
        edges = [places[0], *((a + b) / 2 for a, b in pairwise(places)), places[-1]]
        widths = torch.tensor([b - a for a, b in pairwise(edges)], dtype=torch.float64)
        heights = torch.tensor([profile[place] for place in places], dtype=torch.float64)
        weights = widths * (heights - heights.max()).exp()
        off = torch.tensor(places, dtype=torch.float64) - best[position]
        deviations.append(float((weights @ off**2 / weights.sum()).sqrt()))
    return best, tuple(deviations)
