"""Where to compute."""

import platform
import re
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from torch import Tensor


def default_device() -> str:
    """A GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_bf16(device: str) -> bool:
    """Whether a device computes in bfloat16 faster than in float32: GPUs do that have units for it."""
    return device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def name_of(device: torch.device) -> str:
    """What a device is: cuda (NVIDIA H200), or cpu (x86_64)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name})"


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on a device. From the host to a GPU it goes out of pinned memory, in the order of the GPU's stream.

    So this thread waits neither for the copy nor for what the stream has to do before, as it does where
    memory is not pinned. torch keeps the pinned memory until the copy is done, and for the next one.
    """
    if (x.device.type, device.type) != ("cpu", "cuda"):
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


@cache
def processor() -> str:
    """Of which kind this machine's CPU is, as far as that decides the bits of results; else which machine."""
    found = None
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else socket.gethostname()}, {torch.backends.cpu.get_cpu_capability()}"
