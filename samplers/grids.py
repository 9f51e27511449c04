"""Time grids: `steps` intervals from `start` to `end` in a path's native time, float64."""

from typing import Literal

import torch
from torch import Tensor

from kintsugi.priors.paths import Path, log_snr

Grid = Literal["uniform", "logsnr", "karras"]
KARRAS_RHO = 7.0


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
