"""Which operations a network asks of a device, one by one; also of a GPU that is not there."""

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Done(NamedTuple):
    """An operation, as "div.Tensor", its operands, tensors or not, and its results."""

    name: str
    operands: list
    results: list

    @property
    def bytes(self):
        """Read and written."""
        return sum(
            x.numel() * x.element_size() for x in self.operands + self.results if isinstance(x, Tensor)
        )


class Operations(TorchDispatchMode):
    """Those while it is entered, but for views, which do no work."""

    def __init__(self):
        super().__init__()
        self.done = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        if function.namespace == "aten" and not function.is_view:
            name = str(function).removeprefix("aten.")
            self.done.append(Done(name, tree_leaves((args, kwargs)), tree_leaves(results)))
        return results

    def named(self, name):
        """Those whose names begin so."""
        return [each for each in self.done if each.name.startswith(name)]


def by_one(operations, kind):
    """Divisions ("div") or multiplications ("mul") of activations by the number 1."""
    return [
        each
        for each in operations.named(kind)
        if each.results[0].ndim > 2 and isinstance(each.operands[1], int | float) and each.operands[1] == 1
    ]


def casts(operations, before, after):
    """How many activations (B, C, …) are copied from one type to another."""
    return sum(
        each.operands[0].dtype == before and each.results[0].dtype == after and each.results[0].ndim > 2
        for each in operations.named("_to_copy")
    )


@contextmanager
def pretended_gpu(network: nn.Module, attention=lambda q, *_, **__: torch.empty_like(q)):
    """Within, a network's weights are on a GPU that computes nothing, and knows shapes and types alone.

    Attention is one operation, as on a GPU, and not the parts that a CPU makes of it.
    """
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(nn.functional, "scaled_dot_product_attention", attention)
        for module in network.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    there = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                    module._parameters[name] = nn.Parameter(there, requires_grad=False)
        yield
