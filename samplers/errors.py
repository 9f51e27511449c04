"""How far a denoiser's predictions are from the truth: the variance of x₀ − x̂₀ for each DCT coefficient."""

import math
from bisect import bisect_right
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from kintsugi.priors.base import Prior
from kintsugi.priors.natural import FOLDER
from kintsugi.priors.natural_latent import FOLDER as OF_LATENTS
from kintsugi.samplers.lmmse import spectrum

NATURAL = (FOLDER / "errors.json", OF_LATENTS / "errors.json")
"""Of the embedded priors."""
MOST = 1 << 20
"""Bytes of a table."""
POWER = float(spectrum(256, 256)[1, 0]) / 512**2
"""Of natural images at |f| = 1, in the 1/f² spectrum of 256 × 256 pixels."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ErrorVariances(Protocol):
    """c(σ, |f|): of x₀ − x̂₀ at noise level σ = s/a."""

    def __call__(self, sigma: float, frequencies: Tensor) -> Tensor:
        """Positive, for frequencies in cycles per pixel, float64."""
        ...


def wiener(sigma: float, frequencies: Tensor) -> Tensor:
    """Of the best linear denoiser of images with a 1/f² spectrum P: P σ² / (P + σ²)."""
    power = POWER / frequencies**2
    return power * sigma**2 / (power + sigma**2)


def white(sigma: float, frequencies: Tensor) -> Tensor:
    """Of the best linear denoiser of independent values of variance 1: σ² / (1 + σ²), ΠGDM's r²."""
    return torch.full_like(frequencies, sigma**2 / (1 + sigma**2))


FORMULAS: dict[str, ErrorVariances] = {"wiener": wiener, "white": white}


class Table(BaseModel):
    """Variances measured on images, on rings of equal frequency |f|; `kintsugi calibrate` makes them.

    Between rings and levels log c is linear in log |f| and log σ; outside of them it is that at the border.
    |f| is in cycles per pixel, so that a table serves images of other sizes.

    Attributes:
        prior: SHA-256 of the weights. size, precision, images: of what was calibrated on; for the record.
        sigmas: increasing. frequencies: increasing; the first is the constant, as half the lowest other.
        variances: c for each of the sigmas, at each of the frequencies, on the [-1, 1] scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prior: str
    size: int
    precision: str
    images: int
    sigmas: list[Positive] = Field(min_length=1)
    frequencies: list[Positive] = Field(min_length=2)
    variances: list[list[Positive]]

    @model_validator(mode="after")
    def check(self) -> "Table":
        """Raise a ValueError for lists that do not fit together."""
        for name, values in (("sigmas", self.sigmas), ("frequencies", self.frequencies)):
            if any(later <= before for before, later in pairwise(values)):
                raise ValueError(f"{name}: are to increase")
        shape = [len(row) for row in self.variances]
        if shape != [len(self.frequencies)] * len(self.sigmas):
            raise ValueError("variances: are to be a row for each of the sigmas, of one for each frequency")
        return self

    def __call__(self, sigma: float, frequencies: Tensor) -> Tensor:
        """See `ErrorVariances`."""
        level, share = place(self.sigmas, sigma)
        of_rings = torch.tensor(self.variances, dtype=torch.float64).log()
        row = of_rings[level] if share == 0 else torch.lerp(of_rings[level], of_rings[level + 1], share)
        knots = torch.tensor(self.frequencies, dtype=torch.float64).log()
        at = frequencies.to(knots).log().clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
        fraction = (at - knots[right - 1]) / (knots[right] - knots[right - 1])
        return torch.lerp(row[right - 1], row[right], fraction).exp()


def place(knots: list[float], value: float) -> tuple[int, float]:
    """The knot below a value, and the share in logarithms of the way to the next one; 0 at the borders."""
    below = bisect_right(knots, value) - 1
    if below < 0 or below == len(knots) - 1:
        return max(below, 0), 0.0
    return below, math.log(value / knots[below]) / math.log(knots[below + 1] / knots[below])


def frequencies_of(height: int, width: int) -> Tensor:
    """|f| (H, W) of the DCT's coefficients, in cycles per pixel; the constant has half the lowest other."""
    rows = torch.arange(height, dtype=torch.float64)[:, None] / (2 * height)
    found = torch.hypot(rows, torch.arange(width, dtype=torch.float64) / (2 * width))
    found[0, 0] = 0.25 / max(height, width)
    return found


def check_covariance(which: str) -> None:
    """Raise a ValueError for what is no name of a covariance and no file of one."""
    if which not in (*FORMULAS, "natural") and not which.lower().endswith(".json"):
        raise ValueError(f"covariance: {which!r} is not {', '.join(FORMULAS)}, natural, or a .json file")


def errors_of(which: str, prior: Prior) -> ErrorVariances:
    """What `covariance` names: `wiener`, `white`, `natural`, or a file with a table of this prior.

    Raises:
        ValueError: there is none, or of another prior; the message begins with the field.
    """
    if which in FORMULAS:
        return FORMULAS[which]
    own: str = getattr(prior, "sha256", None) or ""  # a prior without weights is calibrated as ""
    tables = [read_table(file) for file in (NATURAL if which == "natural" else [Path(which)])]
    table = next((table for table in tables if table.prior == own), tables[0])
    if own != table.prior:
        names = [sha256[:12] or "one without weights" for sha256 in (table.prior, own)]
        raise ValueError(
            f"covariance: {which} is of the prior {names[0]}, and this is {names[1]}; make a table for it by "
            "`kintsugi calibrate`, or use wiener, which needs none"
        )
    return table


def read_table(path: Path) -> Table:
    """The table in a file.

    Raises:
        ValueError: it is none; the message begins with "covariance".
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise ValueError(f"more than {MOST} bytes")
        return Table.model_validate_json(content)
    except OSError as error:
        raise ValueError(f"covariance: {path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"covariance: {path} is no table of errors: {where} {first['msg']}") from error
