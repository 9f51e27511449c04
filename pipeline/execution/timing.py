"""How long parts of a batch take; forwards and vector-Jacobian products without waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kintsugi.priors.base import Parametrization, Prior
from kintsugi.priors.paths import Path


class Metered:
    """A prior that notes when its forwards and vector-Jacobian products begin and end.

    A product begins when autograd reaches the prior's output and ends when it has the gradient of its input,
    whoever asks for it. On a GPU the moments are events in the stream: nothing waits for them.
    """

    def __init__(self, prior: Prior, device: torch.device):
        self.prior, self.device = prior, device
        self.path: Path = prior.path
        self.parametrization: Parametrization = prior.parametrization
        self.sha256: str | None = getattr(prior, "sha256", None)
        self.spans: list[tuple[str, Any, Any]] = []  # "forward" or "vjp", its begin and end

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        begin = self.now()
        u = self.prior(x, t)
        self.spans.append(("forward", begin, self.now()))
        if u.requires_grad and x.requires_grad:
            begun: list[Any] = []
            hook: Any = Tensor.register_hook
            hook(u, lambda gradient: begun.append(self.now()))
            hook(x, lambda gradient: self.spans.append(("vjp", begun[-1], self.now())))
        return u

    def now(self) -> Any:
        """The present: of the device's stream, or seconds."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event: Any = torch.Event(self.device, enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def begin(self) -> None:
        """Forget what was noted."""
        self.spans = []

    def seconds(self) -> dict[str, float]:
        """Seconds of all forwards and of all products since `begin`; the device must have done them."""
        total = {"forward": 0.0, "vjp": 0.0}
        for part, begin, end in self.spans:
            on_gpu = self.device.type == "cuda"
            total[part] += begin.elapsed_time(end) / 1000 if on_gpu else end - begin
        return total


@contextmanager
def timed(seconds: dict[str, float], part: str, device: torch.device) -> Iterator[None]:
    """Add to `seconds` what a part of a batch takes until the device has done it."""
    started = time.perf_counter()
    yield
    if device.type == "cuda":
        # Once per part of a batch, not per step; another thread's stream is not waited for.
        torch.cuda.current_stream(device).synchronize()
    seconds[part] += time.perf_counter() - started
