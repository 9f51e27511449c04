"""Samples with parameters of their own: the operator of each, estimates of what is unknown, and the batch."""

import json
from collections.abc import Mapping, Sequence
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

MOST_TEXT = 10_000
"""Bytes of a prompt; no text encoder reads as many."""


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


def own_of(job: Job, sample: Decoded, typical: Operator) -> Own:
    """A sample's degradation; in place of what is unknown what is typical.

    Args:
        typical: the operator with typical values, for the sample's image; its own where no value is known
            that makes it another.

    Raises:
        ValueError: a parameter is none, or the operator does not fit the image.
    """
    size, parameters = typical.image_shape[1:], job.degradation.parameters
    values = {
        each: each.of_sample(job.seed, sample.key, sample.beside, size)
        for each in parameters
        if each.has_source
    }
    others: dict[Parameter, Value] = {each: each.typical(size) for each in parameters if each not in values}
    degradation = job.degradation.with_values(values | others)
    operator = built_like(typical, degradation) if any(each.of_operator for each in values) else typical
    return Own(operator, degradation, values)


def prompts_of(job: Job, samples: Sequence[Decoded]) -> list[str]:
    """The prompts of samples; raises as `prompt_of`."""
    return [prompt_of(job, sample) for sample in samples]


def prompt_of(job: Job, sample: Decoded) -> str:
    """The prompt in the file beside a sample, "" in a job where samples have none.

    Raises:
        ValueError: there is no such file, or it is no text.
    """
    if job.prompts is None:
        return ""
    name = f"{sample.key}.{job.prompts}"
    if job.prompts not in sample.beside:
        raise ValueError(f"prior.prompt: there is no file {name}")
    content = sample.beside[job.prompts]
    if len(content) > MOST_TEXT:
        raise ValueError(f"prior.prompt: {name} has {len(content)} bytes, more than {MOST_TEXT:,}")
    try:
        return content.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"prior.prompt: {name} is no text in UTF-8") from error


def built_like(operator: Operator, degradation: Degradation) -> Operator:
    """The operator of a degradation, for images of the shape and on the device of another's."""
    device = operator.singular_values.device
    return operators.build(degradation.operator, operator.image_shape, device=device)


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
    inside = {each.path[1:]: each for each in unknown if each.of_operator}
    # Nothing of the true values: what is not estimated yet is in the middle of its range.
    told = one.degradation.with_values({each: (low + high) / 2 for each, (low, high) in unknown.items()})
    operator, estimates = one.operator, dict[Parameter, tuple[float, float]]()
    for parameter in [each for each in unknown if not each.of_operator]:
        middle = built_like(operator, told) if any(each.has_source for each in inside.values()) else operator
        level = noise_level(middle, y)
        low, high = unknown[parameter]
        value, deviation = level.sigma.item() / told.scale, level.deviation.item() / told.scale
        estimates[parameter] = min(max(value, low), high), deviation
        told = told.with_values({parameter: estimates[parameter][0]})
    if inside:
        ranges = {each: {"estimate": each.range} for each in inside.values()}
        asked = with_values({"operator": told.operator, "sigma": 0.0}, ranges)["operator"]
        family = family_of(asked, operator.image_shape, operator.singular_values.device)
        found = estimate(family, y, told.sigma_y)
        pairs = torch.stack([found.values[0], found.deviations[0]]).T.tolist()
        for each, (value, deviation) in zip(family.unknown, pairs, strict=True):
            estimates[inside[each.place]] = value, deviation
        told = told.with_values({each: estimates[each][0] for each in inside.values()})
        operator = built_like(operator, told)
    return Own(operator, told, one.values, estimates)
