"""Where to compute."""

import platform
import re
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch


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


@cache
def processor() -> str:
    """Of which kind this machine's CPU is, as far as that decides the bits of results; else which machine."""
    found = None
    with suppress(OSError):
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{found[1] if found else socket.gethostname()}, {torch.backends.cpu.get_cpu_capability()}"
