"""ΠGDM guidance: how strongly, and along which singular directions, the measurement pulls."""

from typing import Literal

import torch
from torch import Tensor

from kintsugi.priors.paths import Path, log_snr

Schedule = Literal["constant", "pigdm", "conjugate"]


def guidance_strength(path: Path, schedule: Schedule, w: float, t: Tensor) -> Tensor:
    """κ(t) = −½γ² w_t / r², with ½γ² = s (ṡ − ȧ s/a) and r² = s²/(a² + s²).

    w_t is w (constant: exact for an N(0, I) prior at w = 1), w r² (pigdm: the released ΠGDM), or
    w r² a² (conjugate: C-ΠGDM and C-ΠGFM, 2405.17673).
    """
    a, s = path.a(t), path.s(t)
    half_gamma_a = s * (path.ds(t) * a - path.da(t) * s)  # ½γ² a, finite where a = 0
    if schedule == "constant":
        return -half_gamma_a * w * (a**2 + s**2) / (s**2 * a)
    if schedule == "pigdm":
        return -half_gamma_a * w / a
    return -half_gamma_a * w * a


def guidance_factor(path: Path, singular_values: Tensor, sigma_y: float, t: Tensor) -> Tensor:
    """g(t, sᵢ) = sᵢ² r² / (sᵢ² r² + σ_y²), shape (T, D) for times (T,) and singular values (D,).

    Exact for every noise level; with σ_y = 0 it is the indicator of the range of Hᵀ.
    """
    if sigma_y == 0:
        return (singular_values > 0).to(t).expand(len(t), -1)
    a, s = path.a(t), path.s(t)
    signal = singular_values**2 * (s**2 / (a**2 + s**2))[:, None]
    return signal / (signal + sigma_y**2)


def match_time(path: Path, target: Path, t: Tensor) -> tuple[Tensor, Tensor]:
    """The time on `target` with the log-SNR that `path` has at t, and the ratio a_target / a_path.

    Multiplying x by the ratio moves it from one path to the other, so a network trained on
    `target` serves a sampler on `path`.

    Raises:
        ValueError: `target` does not reach that log-SNR.
    """
    if path == target:
        return t, torch.ones_like(t)
    level = log_snr(path, t)
    time = target.time_of(level)
    reached = log_snr(target, time)
    if not torch.allclose(reached, level, rtol=1e-6, atol=1e-6):
        worst = t[(reached - level).abs().nan_to_num(nan=torch.inf).argmax()].item()
        raise ValueError(f"start, end: the prior's path does not reach the noise level of time {worst:.4g}")
    return time, target.a(time) / path.a(t)
