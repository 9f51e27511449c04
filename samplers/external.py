"""A method of others: a command that makes of a folder of measurements a folder of restorations."""

import os
import shlex
import shutil
import signal
import subprocess
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import numpy as np
import pydantic.dataclasses
import torch
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.operators.arrays import content_of, read_array
from kintsugi.priors.base import Prior
from kintsugi.samplers.base import Callback, Restoration
from kintsugi.samplers.noise import Noise

CONSENT = "KINTSUGI_ALLOW_COMMANDS"
"""The variable that is 1 where commands of job files may be run."""
FOLDERS = ("{measurements}", "{restored}")
MODES = {1: "L", 3: "RGB"}
SAID = 5  # of the last lines of what a command says, that are told when it fails
BESIDE_VALUES = 4096  # bytes of a file of values; and of what a command says


def consent_given() -> dict[str, str]:
    """The variable, for the environment of other processes, where this one has it."""
    return {CONSENT: "1"} if os.environ.get(CONSENT) == "1" else {}


@pydantic.dataclasses.dataclass(kw_only=True, frozen=True)
class External:
    """A program of one's own: it is run for every batch, without a shell, and told two folders.

    It reads 0000.npy, 0001.npy, … in {measurements}, which stand for their paths in its words, and writes
    files of the same names into {restored}. No prior is asked, and what the program itself costs is not
    counted. It is run with consent only: --allow-commands. Source: the program itself.

    Args:
        command: its words, as a list or as a shell would divide them, with {measurements} and {restored}.
        format: npy: float32 on [-1, 1], (C, h, w) and (C, H, W). png: 8 bits, to which a measurement is
            clipped and rounded.
        timeout_s: after which it is ended, with all that it has started.
    """

    needs_mean: ClassVar[bool] = False
    command: str | list[str]
    format: Literal["npy", "png"] = "npy"
    timeout_s: float = Field(default=3600.0, gt=0)

    @field_validator("command")
    @classmethod
    def known(cls, command: str | list[str]) -> str | list[str]:
        """Raise a ValueError for words that do not name both folders."""
        words = shlex.split(command) if isinstance(command, str) else command
        for folder in FOLDERS:
            if not any(folder in word for word in words[1:]):
                raise ValueError(f"does not say where {folder} is, as in 'restore.py {' '.join(FOLDERS)}'")
        return command

    @property
    def words(self) -> list[str]:
        """The program and its arguments."""
        return shlex.split(self.command) if isinstance(self.command, str) else self.command

    def refuse_unasked(self) -> None:
        """Raise a ValueError unless whoever runs the job has said that its commands may be run."""
        if not consent_given():
            raise ValueError(
                f"command: {shlex.join(self.words)!r} is a program that the job would run; if you trust it, "
                f"say --allow-commands, or {CONSENT}=1 in the environment"
            )

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> None:
        """See `samplers.base.Sampler`; also refuses a program that is not on this machine."""
        self.refuse_unasked()
        if shutil.which(self.words[0]) is None:
            raise ValueError(f"command: there is no program {self.words[0]!r} on this machine")
        channels = {operator.image_shape[0], operator.measurement_shape[0]}
        if self.format == "png" and not (operator.pixels and channels <= MODES.keys()):
            raise ValueError("format: png holds images of 1 or 3 channels; use npy")

    def __call__(
        self,
        prior: Prior,
        operator: Operator,
        y: Tensor,
        noise: Noise,
        *,
        sigma_y: float | Tensor = 0.0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch; see `samplers.base.Sampler`.

        Raises:
            ValueError: the program fails, takes too long, or does not write a restoration.
        """
        self.prepare(prior, operator, sigma_y, y)
        with TemporaryDirectory(prefix="kintsugi-") as folder:
            places = [Path(folder, name.strip("{}")) for name in FOLDERS]
            for place in places:
                place.mkdir()
            names = [f"{number:04d}.{self.format}" for number in range(len(y))]
            for name, values in zip(names, y.float().cpu().numpy(), strict=True):
                write(places[0] / name, values)
            self.run(folder, places)
            images = [read(places[1] / name, operator.image_shape) for name in names]
        return Restoration(torch.from_numpy(np.stack(images)).to(y), forwards=0, vjps=0)

    def run(self, folder: str, places: list[Path]) -> None:
        """Run the program to its end, in a session of its own, so that Ctrl-C lets it finish a batch."""
        words = self.words
        for name, place in zip(FOLDERS, places, strict=True):
            words = [word.replace(name, str(place)) for word in words]
        with Path(folder, "said").open("w+b") as said:
            program = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )
            try:
                code = program.wait(self.timeout_s)
            except BaseException as error:
                os.killpg(program.pid, signal.SIGKILL)
                program.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise ValueError(f"the command took more than {self.timeout_s:g} s") from None
                raise
            if code:
                said.seek(max(0, said.seek(0, os.SEEK_END) - BESIDE_VALUES))
                lines = said.read().decode(errors="replace").replace(folder, "…").strip().splitlines()
                raise ValueError(f"the command ended with {code}: " + " / ".join(lines[-SAID:]))


def write(file: Path, values: np.ndarray) -> None:
    """An image (C, h, w) on [-1, 1] as a file of its suffix."""
    if file.suffix == ".npy":
        np.save(file, values)
        return
    levels = np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)).save(file)


def read(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The image that a program wrote, float32 (C, H, W) on [-1, 1].

    Raises:
        ValueError: there is none, or one of another shape, which is known before it is decoded.
    """

    def check(found: tuple[int, ...], kind: np.dtype) -> None:
        if found != shape or kind.kind != "f":
            raise ValueError(f"the command wrote {kind} of shape {found}, not floats of {shape}")

    try:
        content = content_of(str(file), 8 * int(np.prod(shape)) + BESIDE_VALUES)
    except FileNotFoundError:
        raise ValueError(f"the command wrote no {file.name}") from None
    if file.suffix == ".npy":
        return read_array(content, int(np.prod(shape)), check).astype(np.float32)
    with Image.open(BytesIO(content), formats=("PNG",)) as image:
        if image.size != shape[:0:-1]:
            found = f"{image.width}x{image.height}"
            raise ValueError(f"the command wrote {found} pixels, not {shape[2]}x{shape[1]}")
        levels = np.asarray(image.convert(MODES[shape[0]]), np.float32)
    return levels.reshape(*shape[1:], shape[0]).transpose(2, 0, 1) / 127.5 - 1
