"""Of operators for one sample each, one for their batch."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kintsugi.operators.base import Operator

T = TypeVar("T")
R = TypeVar("R")


class NotStackable(ValueError):
    """Operators that differ in more than numbers: their samples are to be restored each by itself."""


def stack(operators: Sequence[Operator]) -> Operator:
    """The operator that does to the i-th sample of a batch what the i-th of `operators` does to it.

    What differs of the buffers and `singular_values` has a batch dimension in front, and a number that
    differs, as `lipschitz`, is a tensor (B, 1, 1, 1) on their device. Singular vectors of a lower rank are
    filled up with zeros: coordinates whose singular value is zero, to which no image contributes. One
    operator many times is that operator.

    Args:
        operators: of equal shapes, device and precision, at least one.

    Raises:
        NotStackable: they are of several kinds, or differ in what a batch can only have once.
    """
    first, *others = operators
    if all(other is first for other in others):
        return first
    for name in ("image_shape", "measurement_shape"):
        if len({getattr(operator, name) for operator in operators}) > 1:
            raise NotStackable(f"operators whose {name} differs make no batch")
    whole = deepcopy(first)
    modules = [list(operator.modules()) for operator in (whole, *operators)]
    if len(set(map(len, modules))) > 1:
        raise NotStackable("operators of different parts make no batch")
    for joined, *parts in zip(*modules, strict=True):
        if len(set(map(type, parts))) > 1:
            kinds = ", ".join(sorted({type(part).__name__ for part in parts}))
            raise NotStackable(f"operators of several kinds ({kinds}) make no batch")
        if isinstance(joined, Operator):
            join(joined, parts)
    return whole


def all_or_first(samples: Sequence[T], work: Callable[[Sequence[T]], R]) -> R:
    """What `work` makes of the samples, or, where it finds them `NotStackable`, of the first alone."""
    try:
        return work(samples)
    except NotStackable:
        return work(samples[:1])


def join(whole: Operator, parts: Sequence[nn.Module]) -> None:
    """Give a copy of the first of these operators of one class what each of them has.

    Raises:
        NotStackable: the class does not say what of it may differ, or something else does.
    """
    kind = type(whole).__name__
    if whole.per_sample is None:
        raise NotStackable(f"{kind} does not say by `per_sample` how it is made one for a batch")
    public = [name for name in vars(whole) if not name.startswith("_") and name != "training"]
    for name in [*public, *dict(whole.named_buffers(recurse=False))]:
        values = [getattr(part, name) for part in parts]
        if all(same(values[0], value) for value in values[1:]):
            continue
        if name not in whole.per_sample:
            raise NotStackable(f"{kind} operators whose {name} differs make no batch")
        setattr(whole, name, batched(values, whole.per_sample[name], whole.singular_values))


def same(one: Any, other: Any) -> bool:
    """Whether two values, perhaps tensors, are equal."""
    if isinstance(one, Tensor):
        return one is other or torch.equal(one, other)
    return bool(one == other)


def batched(values: Sequence[Any], dimensions: int, like: Tensor) -> Any:
    """Tensors of at most so many `dimensions`, or numbers, behind a batch dimension; tuples, as one.

    Args:
        like: a tensor of the type and on the device that numbers get.
    """
    if isinstance(values[0], tuple):
        return sum(values, ())
    tensors = [value if isinstance(value, Tensor) else torch.tensor(value).to(like) for value in values]
    lifted = [tensor[(None,) * (dimensions - tensor.ndim)] for tensor in tensors]
    sides = [max(lengths) for lengths in zip(*(tensor.shape for tensor in lifted), strict=True)]
    return torch.stack([filled(tensor, sides) for tensor in lifted])


def filled(tensor: Tensor, sides: Sequence[int]) -> Tensor:
    """The tensor with zeros after its values, so that it has these sides."""
    missing = [(0, side - length) for side, length in zip(sides, tensor.shape, strict=True)]
    return pad(tensor, [n for both in reversed(missing) for n in both])
