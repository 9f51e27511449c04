"""Layouts of U-Nets: what their parameters are called in a published file and in diffusers' `UNet2DModel`."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kintsugi.checkpoint import State

Shape = tuple[int, ...]


class Entry(NamedTuple):
    """A parameter: its name in the file, its name in the network, and its shape in the file."""

    file: str
    network: str
    shape: Shape


def affine(file: str, network: str, *shape: int) -> Iterator[Entry]:
    """The weight, of the given shape, and the bias of a convolution, linear map or normalisation."""
    yield Entry(f"{file}.weight", f"{network}.weight", shape)
    yield Entry(f"{file}.bias", f"{network}.bias", shape[:1])


def module_names(state: Mapping[str, Tensor]) -> set[str]:
    """The names of the modules that have parameters, and of those around them."""
    return {
        ".".join(parts[:depth])
        for parts in (key.split(".") for key in state)
        for depth in range(1, len(parts))
    }


def in_file(entries: Iterable[Entry]) -> State:
    """The state dict of a file with these parameters, without memory for them."""
    return {entry.file: torch.empty(entry.shape, device="meta") for entry in entries}


class UNetLayout:
    """What the layouts of U-Nets in one file have in common: a base for their dataclasses.

    Attributes:
        widths: channels of each level, the finest first; each level halves the resolution.
        file: the checkpoint.
    """

    widths: tuple[int, ...]
    file: Path

    @property
    def multiple(self) -> int:
        """2 for each level below the finest."""
        return 2 ** (len(self.widths) - 1)

    @property
    def files(self) -> tuple[Path]:
        """The checkpoint alone."""
        return (self.file,)
