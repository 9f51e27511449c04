"""What makes a prior's network faster or smaller without changing what it computes, but for rounding.

Each function changes `prior.network`, in place.
"""

import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kintsugi.cache import cache_folder
from kintsugi.numerics import filled
from kintsugi.priors.base import NetworkPrior, autoencoder_of

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
CAST = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""The layers that autocast runs in half precision."""
DIVISORS = ("output_scale_factor", "rescale_output_factor")
"""By what blocks of diffusers divide their outputs."""
TYPE = "narrow_type"
"""The attribute of a module in which `narrow` finds its type."""


class Nothing:
    """Takes the place of a divisor of 1: dividing a tensor by it is the tensor, and no work."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The dividend, whatever is done with it."""
        return args[0]


def drop_idle(network: nn.Module) -> None:
    """Leave out what changes nothing, in place: of the blocks of diffusers, all divisions by 1.

    Without a compiler each would read and write all activations, and again in the backward pass.
    """
    for module in network.modules():
        for name in DIVISORS:
            if getattr(module, name, None) == 1:
                setattr(module, name, Nothing())


@cache
def narrow(kind: Any) -> Any:
    """The kind of module, computing in the type at `TYPE` under autocast, too, which would take float32.

    A group norm has statistics of float32 within its kernel, and nearest neighbours are copies; what CUDA's
    autocast adds is only copies of all activations before and behind.
    """

    class Narrow(kind):
        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.to(getattr(self, TYPE)), *args, **kwargs)

    return Narrow


class HalfPrecision(nn.Module):
    """A network run under autocast, with float32 in and out.

    Its convolution and linear weights are kept in half precision. Autocast would round them anyway, at
    every call, since it caches the casts of trainable weights only. Group norms, and upsampling to nearest
    neighbours, are in half precision too (`narrow`).
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        from diffusers.models.upsampling import Upsample2D  # which takes a second

        super().__init__()
        for module in network.modules():
            kind: Any = type(module)
            if isinstance(module, CAST):
                module.to(dtype)
            elif kind in (nn.GroupNorm, Upsample2D):
                module.__class__ = narrow(kind)
                setattr(module, TYPE, dtype)
                module.to(dtype)
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs under autocast, in x's type."""
        with torch.autocast(x.device.type, self.dtype):
            output = self.network(x, *args, **kwargs)
        return output.to(x.dtype) if isinstance(output, Tensor) else tuple(o.to(x.dtype) for o in output)


class Compiled(nn.Module):
    """A network compiled for batches of one size. Smaller ones are filled up, larger ones run as they are.

    So what a sample becomes does not depend on how many others are in its batch, as the last of a unit.
    """

    def __init__(self, network: nn.Module, mode: CompileMode, batch: int):
        super().__init__()
        self.network, self.batch = network, batch
        self.run = torch.compile(network, dynamic=False, mode=mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """By the compiled network for batches of its size or less, by the plain one for larger ones."""
        count = len(x)
        if count > self.batch:
            return self.network(x, *args, **kwargs)
        if count < self.batch:
            x, args = filled(x, self.batch), tuple(of_whole_batch(a, count, self.batch) for a in args)
        # With CUDA graphs the next call overwrites the outputs and gradients of this one.
        if x.requires_grad:
            x = x.view_as(x)
            x.register_hook(torch.clone)  # type: ignore[no-untyped-call]  # torch does not annotate it
        output = self.run(x, *args, **kwargs)
        if isinstance(output, Tensor):
            return output[:count].clone()
        return tuple(o[:count].clone() for o in output)


def of_whole_batch(value: Any, count: int, batch: int) -> Any:
    """What has an entry for each of `count` samples, `filled` up to `batch`; else as it is."""
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != count:
        return value
    return filled(value, batch)


def half_precision(prior: NetworkPrior, dtype: torch.dtype) -> None:
    """Run the network of `prior` in bfloat16 or float16; the state outside stays in float32.

    Its autoencoder computes in the type of its weights: bfloat16, or still float32, since some leave the
    range of float16.
    """
    prior.network = HalfPrecision(prior.network, dtype)
    if dtype == torch.bfloat16 and isinstance(autoencoder := autoencoder_of(prior), nn.Module):
        autoencoder.to(dtype)


def channels_last(prior: NetworkPrior) -> None:
    """Store images with their channels together, as the tensor cores of a GPU want them.

    Not for a CPU, where it made the embedded prior 20 % slower.
    """
    prior.network.to(memory_format=torch.channels_last)


def compiled(prior: NetworkPrior, mode: CompileMode, batch: int, warm_up: Callable[[], object]) -> str | None:
    """Compile the network for batches of one size, with its vector-Jacobian product.

    Args:
        mode: torch.compile's; "reduce-overhead" uses CUDA graphs.
        warm_up: calls the prior as it will be called; run twice, since CUDA graphs are recorded at the
            second call.

    Returns:
        Why it could not be compiled, in which case the network runs as it was; None if it was.
    """
    keep_compiled()
    eager = prior.network
    prior.network = Compiled(eager, mode, batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on diffusers' code
            warm_up()
            warm_up()
    except Exception as error:  # the compiler's errors have no common base
        prior.network = eager
        return (
            f"torch.compile failed, running without it: {(str(error).strip() or repr(error)).splitlines()[0]}"
        )
    return None


def uncompiled(prior: NetworkPrior) -> bool:
    """Run the network of `prior` as it was before it was `compiled`; returns whether it was."""
    if not isinstance(network := getattr(prior, "network", None), Compiled):
        return False
    prior.network = network.network
    return True


def keep_compiled() -> None:
    """Have torch keep what it compiles in the cache folder: for all processes of a machine, and later runs.

    Where the user has said where, or the folder cannot be made, it stays where torch keeps it.
    """
    with suppress(OSError):
        folder = cache_folder() / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def checkpointed(prior: NetworkPrior) -> bool:
    """Recompute activations in the backward pass instead of keeping them: less memory, slower VJPs.

    Where diffusers' blocks can; the skip blocks of rectified flow cannot. Returns whether anything changed.
    """
    from diffusers import ModelMixin

    networks = [m for m in prior.network.modules() if isinstance(m, ModelMixin)]
    fresh = [network for network in networks if not network.is_gradient_checkpointing]
    for network in fresh:
        network.enable_gradient_checkpointing()
    return bool(fresh)
