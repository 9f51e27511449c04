"""What makes a prior's network faster or smaller without changing what it computes, but for rounding.

Each function changes `prior.network`, in place.
"""

import logging
import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn

from priors.base import NetworkPrior

logger = logging.getLogger(__name__)

CompileMode = Literal["default", "reduce-overhead", "max-autotune"]
CAST = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""The layers that autocast runs in half precision; norms, embeddings and the rest stay in float32."""


class HalfPrecision(nn.Module):
    """A network run under autocast, with float32 in and out.

    Its convolution and linear weights are kept in half precision. Autocast would round them anyway, at
    every call, since it caches the casts of trainable weights only; the results are the same.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype):
        super().__init__()
        for module in network.modules():
            if isinstance(module, CAST):
                module.to(dtype)
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(x.device.type, self.dtype):
            output = self.network(x, *args, **kwargs)
        return output.to(x.dtype) if isinstance(output, Tensor) else tuple(o.to(x.dtype) for o in output)


class Compiled(nn.Module):
    """A network compiled for inputs of one shape; inputs of others run as they are."""

    def __init__(self, network: nn.Module, mode: CompileMode, shape: torch.Size):
        super().__init__()
        self.network, self.shape = network, shape
        self.run = torch.compile(network, dynamic=False, mode=mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.shape != self.shape:
            return self.network(x, *args, **kwargs)
        output = self.run(x, *args, **kwargs)
        # With CUDA graphs the next call overwrites the outputs of this one.
        return output.clone() if isinstance(output, Tensor) else tuple(o.clone() for o in output)


def half_precision(prior: NetworkPrior, dtype: torch.dtype) -> None:
    """Run the network of `prior` in bfloat16 or float16; the state outside stays in float32."""
    prior.network = HalfPrecision(prior.network, dtype)


def channels_last(prior: NetworkPrior) -> None:
    """Store images with their channels together, as the tensor cores of a GPU want them.

    Not for a CPU, where it made the embedded prior 20 % slower.
    """
    prior.network.to(memory_format=torch.channels_last)


def compiled(prior: NetworkPrior, mode: CompileMode, like: Tensor) -> bool:
    """Compile the network for inputs like `like` (B, C, H, W), with its vector-Jacobian product.

    mode: torch.compile's; "reduce-overhead" uses CUDA graphs.

    Returns:
        Whether it could be compiled; if not, a warning says why, and the network runs as it was.
    """
    eager = prior.network
    prior.network = Compiled(eager, mode, like.shape)
    time = torch.full((len(like),), (prior.path.noise_time + prior.path.data_time) / 2, device=like.device)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's remarks on diffusers' code
            x = torch.zeros_like(like).requires_grad_()
            torch.autograd.grad(prior(x, time.to(like)), x, torch.zeros_like(like))
    except Exception as error:  # the compiler's errors have no common base
        prior.network = eager
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logger.warning("torch.compile failed, running without it: %s", reason)
        return False
    return True


def checkpointed(prior: NetworkPrior) -> bool:
    """Recompute activations in the backward pass instead of keeping them: less memory, slower VJPs.

    Where diffusers' blocks can; the skip blocks of rectified flow cannot.

    Returns:
        Whether that changed anything.
    """
    from diffusers import ModelMixin

    networks = [m for m in prior.network.modules() if isinstance(m, ModelMixin)]
    fresh = [network for network in networks if not network.is_gradient_checkpointing]
    for network in fresh:
        network.enable_gradient_checkpointing()
    return bool(fresh)
