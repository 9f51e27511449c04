"""Samples with parameters of their own: the operator of each, estimates of what is unknown, and the batch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kintsugi import operators
from kintsugi.operators import Operator
from kintsugi.operators.family import Family
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.parameters import Parameter, Value, with_values
from kintsugi.pipeline.parts import Degradation
from kintsugi.samplers.blind import estimate
from kintsugi.samplers.noise_level import noise_level


@dataclass(frozen=True)
class Own:
    """A sample whose degradation has parameters of its own.

    Attributes:
        operator: for it alone. values: of its parameters, as far as they are known.
        estimates: of those that the sampler is not told, and their standard deviations.
    """

    operator: Operator
    degradation: Degradation
    values: Mapping[Parameter, Value]
    estimates: Mapping[Parameter, tuple[float, float]] = field(default_factory=dict)


def own_of(job: Job, sample: Decoded, shape: tuple[int, int, int], device: torch.device) -> Own:
    """A sample's degradation, its image of `shape` (C, H, W); in place of what is unknown what is typical.

    Raises:
        ValueError: a parameter is none, or the operator does not fit the image.
    """
    values: dict[Parameter, Value] = {}
    typical: dict[Parameter, Value] = {}
    for parameter in job.degradation.parameters:
        if parameter.has_source:
            values[parameter] = parameter.of_sample(job.seed, sample.key, sample.beside, shape[1:])
        else:
            typical[parameter] = parameter.typical(shape[1:])
    degradation = job.degradation.with_values(values | typical)
    return Own(operators.build(degradation.operator, shape, device=device), degradation, values)


def family_of(spec: dict[str, Any], shape: tuple[int, int, int], device: torch.device) -> Family:
    """The operators of a spec with ranges; of the same spec the same, which remember what they compute."""
    try:
        return remembered_family(json.dumps(spec), shape, device)
    except TypeError:  # a mask or kernel of the sample's own, in whose family there is no other sample
        return Family(spec, shape, device=device)


@lru_cache(maxsize=8)
def remembered_family(spec: str, shape: tuple[int, int, int], device: torch.device) -> Family:
    """As `family_of`, of the spec's JSON."""
    return Family(json.loads(spec), shape, device=device)


def as_told(job: Job, one: Own, y: Tensor) -> Own:
    """A sample as the sampler is told of it: in place of true values what the measurement says of them.

    Args:
        y: (1, *measurement_shape) on [-1, 1].

    Raises:
        ValueError: the measurement does not say it.
    """
    unknown = {each: each.range for each in job.degradation.parameters if each.range is not None}
    shape, device = one.operator.image_shape, one.operator.singular_values.device
    # Nothing of the true values: what is not estimated yet is in the middle of its range.
    told = one.degradation.with_values({each: (low + high) / 2 for each, (low, high) in unknown.items()})
    estimates: dict[Parameter, tuple[float, float]] = {}
    for parameter in [each for each in unknown if each.path == ("sigma",)]:
        level = noise_level(operators.build(told.operator, shape, device=device), y)
        low, high = unknown[parameter]
        value, deviation = level.sigma.item() / told.scale, level.deviation.item() / told.scale
        estimates[parameter] = min(max(value, low), high), deviation
        told = told.with_values({parameter: estimates[parameter][0]})
    inside = {each.path[1:]: each for each in unknown if each not in estimates}
    if inside:
        ranges = {each: {"estimate": each.range} for each in inside.values()}
        asked = with_values({"operator": told.operator, "sigma": 0.0}, ranges)["operator"]
        family = family_of(asked, shape, device)
        found = estimate(family, y, told.sigma_y)
        pairs = torch.stack([found.values[0], found.deviations[0]]).T.tolist()
        for each, (value, deviation) in zip(family.unknown, pairs, strict=True):
            estimates[inside[each.place]] = value, deviation
        told = told.with_values({each: estimates[each][0] for each in inside.values()})
    return Own(operators.build(told.operator, shape, device=device), told, one.values, estimates)
