"""What a class-conditional network is told of every image's class, and classifier-free guidance by it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kintsugi.errors import SpecError


@dataclass(frozen=True)
class Conditioning:
    """The fields of a spec that are about classes.

    Attributes:
        label: the class of all images; None where each has its own.
        cfg: the scale w of classifier-free guidance, u = u_∅ + w (u_c − u_∅) (2207.12598); 1 is none.
        null_label: the class ∅ that stands for none.
        none: whether the network was trained without a class, too, for which there is then no number; None
            of formats in which a class stands for that.
    """

    label: int | None = None
    cfg: float = 1.0
    null_label: int | None = None
    none: bool | None = None

    @property
    def guided(self) -> bool:
        """Whether the network is asked twice, with the class and with none."""
        return self.cfg != 1

    def check(self, classes: int | None) -> None:
        """Raise a SpecError that names the field of what a network with so many classes does not have."""
        for field, of in (("label", self.label), ("null_label", self.null_label)):
            if of is not None and classes is None:
                raise SpecError(f"{field}: the network knows no classes; leave the field out")
            if of is not None and classes is not None and not 0 <= of < classes:
                raise SpecError(f"{field}: must be from 0 to {classes - 1} (got {of})")
        if self.guided and classes is None:
            raise SpecError("cfg: the network knows no classes; leave the field out")
        if self.guided and self.none is False:
            raise SpecError(
                "cfg: the network was trained with every image's class (label_dropout 0), so what it says "
                "without one is no guide; leave the field out"
            )
        if self.guided and self.none is None and self.null_label is None:
            raise SpecError(
                "cfg: guidance needs null_label, the class that stands for none, often the last; no file "
                "tells which that is, and a network that was trained with every image's class has none"
            )
        if self.null_label is not None and not self.guided:
            raise SpecError("null_label: is for guidance; give cfg, or leave the field out")

    @property
    def said(self) -> str:
        """The guidance in words; nothing of none."""
        return f"guidance {self.cfg:g}, two evaluations for one" if self.guided else ""


class Conditional:
    """What priors with class-conditional networks have in common, and unconditional ones of their formats.

    Attributes:
        classes: number of classes, None where the network has none.
        evaluations: of the network, for one of the prior.
    """

    def __init__(self, classes: int | None, conditioning: Conditioning):
        self.classes, self.conditioning = classes, conditioning
        self.label = conditioning.label
        self.evaluations = 2 if conditioning.guided else 1
        self._labels: Tensor | None = None

    @property
    def labels(self) -> Tensor | None:
        """The class of each image, (B,) int64, or None; setting what does not fit raises a SpecError."""
        return self._labels

    @labels.setter
    def labels(self, labels: Tensor | None) -> None:
        """Checked, then used by the calls that follow."""
        if labels is not None:
            if self.classes is None:
                raise SpecError("labels: the network knows no classes")
            if labels.dtype != torch.int64 or labels.ndim != 1:
                raise SpecError(f"labels: must be (B,) int64 (got {tuple(labels.shape)} {labels.dtype})")
            if ((labels < 0) | (labels >= self.classes)).any():
                raise SpecError(f"labels: must be from 0 to {self.classes - 1} (got {labels.tolist()})")
        self._labels = labels

    def classes_of(self, x: Tensor) -> Tensor | None:
        """The classes (B,) of the images x; raises a SpecError if they are missing, or not as many."""
        if self.classes is None:
            return None
        if self.label is not None:
            return torch.full((len(x),), self.label, device=x.device)
        if self.labels is None:
            raise SpecError(
                "label: the network is class-conditional: give the class of every image (data with "
                "labels), or one for all (prior.label)"
            )
        if len(self.labels) != len(x):
            raise SpecError(f"labels: {len(self.labels)} given for {len(x)} images")
        return self.labels.to(x.device)

    def conditioned(self, network: Callable[[Tensor | None], Tensor], x: Tensor) -> Tensor:
        """The network's output, a function of the classes (B,) of the images x, guided.

        Twice the batch in one call would not be what the network was compiled for.
        """
        classes, null = self.classes_of(x), self.conditioning.null_label
        output = network(classes)
        if classes is None or self.classes is None or not self.conditioning.guided:
            return output
        null = self.classes if null is None else null  # behind the last, where no class stands for none
        without = network(torch.full_like(classes, null))
        return guided(output, without, self.conditioning.cfg)


def guided(output: Tensor, without: Tensor, cfg: float) -> Tensor:
    """Classifier-free guidance of a network's outputs, with the condition and without."""
    return without + cfg * (output - without)
