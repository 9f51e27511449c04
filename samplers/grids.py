"""Time grids: `steps` intervals from `start` to `end` in a path's native time, float64."""

from typing import Literal

import pydantic.dataclasses
import torch
from pydantic import FiniteFloat, PositiveInt
from torch import Tensor

from kintsugi.priors.base import Prior
from kintsugi.priors.paths import Path, RectifiedFlow, VariancePreserving, log_snr

Grid = Literal["uniform", "logsnr", "karras"]
KARRAS_RHO = 7.0
PathName = Literal["prior", "vp", "flow"]
PATHS: dict[PathName, Path | None] = {"prior": None, "vp": VariancePreserving(), "flow": RectifiedFlow()}
# The released configurations start VP at 0.4 and end at 0.001; other paths use the same noise levels.
DEFAULT_SPAN = log_snr(VariancePreserving(), torch.tensor([0.4, 0.001], dtype=torch.float64))


@pydantic.dataclasses.dataclass(kw_only=True, frozen=True)
class Span:
    """The times that a sampler steps through, from noise to data; the fields are those of `conjugate`."""

    steps: PositiveInt = 5
    start: FiniteFloat | None = None
    end: FiniteFloat | None = None
    grid: Grid = "uniform"
    path: PathName = "prior"

    def times(self, prior: Prior) -> tuple[Path, Tensor]:
        """The path for a prior, and its times (steps + 1,); raises a ValueError for times that do not fit."""
        path = PATHS[self.path] or prior.path
        default_start, default_end = path.time_of(DEFAULT_SPAN).tolist()
        start = default_start if self.start is None else self.start
        end = default_end if self.end is None else self.end
        low, high = sorted((path.noise_time, path.data_time))
        for name, time in (("start", start), ("end", end)):
            if not low <= time <= high:
                raise ValueError(f"{name}: {time} is outside the path's times, {low} to {high}")
        if (end - start) * (path.data_time - path.noise_time) <= 0:
            raise ValueError(f"start, end: {start} to {end} does not lead from noise to data")
        return path, time_grid(path, self.grid, start, end, self.steps)

    def start_level(self) -> float | None:
        """Noise over signal, s/a, at the start; None where only the prior knows the path of that time."""
        if self.start is None:
            return float(torch.exp(-DEFAULT_SPAN[0]))
        if (path := PATHS[self.path]) is None:
            return None
        return float(torch.exp(-log_snr(path, torch.tensor(self.start, dtype=torch.float64))))


def time_grid(path: Path, grid: Grid, start: float, end: float, steps: int) -> Tensor:
    """(steps + 1,) times, `start` and `end` exactly included.

    uniform: equal steps of time. logsnr: equal steps of log(a/s). karras: equal steps of
    (s/a)^(1/7), Karras et al. 2022 (2206.00364, equation 5).
    """
    if grid == "uniform":
        return torch.linspace(start, end, steps + 1, dtype=torch.float64)
    ends = torch.tensor([start, end], dtype=torch.float64)
    first, last = log_snr(path, ends)
    if not torch.isfinite(torch.stack([first, last])).all():
        raise ValueError(f'grid: {grid!r} needs a start and end with finite log-SNR; use "uniform"')
    fraction = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if grid == "logsnr":
        levels = first + fraction * (last - first)
    else:
        noise_first, noise_last = torch.exp(-first / KARRAS_RHO), torch.exp(-last / KARRAS_RHO)
        levels = -KARRAS_RHO * torch.log(noise_first + fraction * (noise_last - noise_first))
    times = path.time_of(levels)
    times[0], times[-1] = ends
    return times
