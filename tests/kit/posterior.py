"""How far samples are from the exact posterior of a Gaussian prior; see benchmarks/posterior_bias.py."""

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch
from kit.operators import dense
from torch import Tensor

from kintsugi import operators, samplers
from kintsugi.operators import Operator
from kintsugi.pipeline.metrics.calibration import calibration
from kintsugi.priors.analytic import Analytic, StandardNormal, StationaryGaussian, natural_spectrum
from kintsugi.samplers import KeyedNoise

Spec = dict[str, Any]
SHAPE = (1, 8, 8)
PIXELS = 64
MEASUREMENTS = 4
TASKS: dict[str, tuple[Spec, float]] = {
    "SR 2×": ({"name": "bicubic", "factor": 2}, 0.0),
    "SR 2×, σ 0.2": ({"name": "bicubic", "factor": 2}, 0.2),
    "inpainting": ({"name": "inpaint", "mask": "random", "keep": 0.3}, 0.0),
    "inpainting, σ 0.2": ({"name": "inpaint", "mask": "random", "keep": 0.3}, 0.2),
}
WHITE: Spec = {"name": "conjugate", "w": 1, "schedule": "constant", "start": 1.0}
SAMPLERS: dict[str, Spec] = {
    "conjugate, constant, w 1, order 3": {**WHITE, "steps": 200, "order": 3},
    "conjugate, constant, w 1, churn 20": {**WHITE, "steps": 800, "churn": 20},
    "C-ΠGDM, w 15": {"name": "conjugate", "w": 15, "steps": 200, "start": 1.0},
    "ΠGDM, w 4": {"name": "pigdm", "w": 4, "steps": 200, "start": 1.0},
    "ΠGDM, discrete": {"name": "pigdm_discrete", "steps": 200},
    "DPS": {"name": "dps", "steps": 1000},
    "MCG": {"name": "mcg", "steps": 1000},
    "DDRM": {"name": "ddrm", "steps": 200},
    "DDNM": {"name": "ddnm", "steps": 200, "eta": 0.85},
    "covariance": {"name": "covariance", "steps": 200, "start": 1.0, "init": "pinv", "eta": 0.85, "trust": 1},
    "DiffPIR": {"name": "diffpir", "steps": 200},
    "DAPS": {"name": "daps", "steps": 1000},
    "CDIM": {"name": "cdim", "steps": 100},
    "Flower": {"name": "flower", "steps": 200},
    "Flower, γ 1": {"name": "flower", "gamma": 1, "steps": 200},
    "SITCOM": {"name": "sitcom", "steps": 400},
    "MMPS": {"name": "mmps", "steps": 200},
}
"""Strengths as published where nothing is said."""


class Antithetic(KeyedNoise):
    """Noise for pairs of samples: z and −z."""

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {stream}".encode()))
        z = torch.randn(len(self.keys) // 2, *shape, generator=generator)
        return torch.stack([z, -z], dim=1).flatten(0, 1)


@dataclass(frozen=True)
class Posterior:
    """N(gain · y, covariance), and the projection onto what y says nothing of."""

    gain: Tensor
    covariance: Tensor
    silent: Tensor

    @classmethod
    def of(cls, covariance: Tensor, operator: Operator, sigma_y: float) -> "Posterior":
        h = dense(operator.forward, SHAPE)
        inner = h @ covariance @ h.T + sigma_y**2 * torch.eye(len(h), dtype=torch.float64)
        gain = covariance @ h.T @ torch.linalg.pinv(inner, rtol=1e-9, hermitian=True)
        silent = torch.eye(PIXELS, dtype=torch.float64) - dense(operator.project, SHAPE)
        return cls(gain, covariance - gain @ h @ covariance, silent)

    def uncertainty(self, samples: int) -> float:
        """Standard deviation of the ratio of variances that this many independent samples give."""
        values = torch.linalg.eigvalsh(self.covariance)
        return ((2 * values.square().sum() / samples).sqrt() / values.sum()).item()


@dataclass(frozen=True)
class Gaussian:
    """A prior N(0, covariance)."""

    prior: Analytic
    covariance: Tensor

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, *SHAPE) images, float64."""
        values, vectors = torch.linalg.eigh(self.covariance)
        white = torch.randn(count, PIXELS, generator=generator, dtype=torch.float64)
        return (white * values.clamp_min(0).sqrt() @ vectors.T).view(-1, *SHAPE)


def white_noise() -> Gaussian:
    return Gaussian(StandardNormal(), torch.eye(PIXELS, dtype=torch.float64))


def natural_texture() -> Gaussian:
    power = natural_spectrum(*SHAPE[1:])
    covariance = dense(lambda x: torch.fft.ifft2(power * torch.fft.fft2(x)).real, SHAPE)
    return Gaussian(StationaryGaussian(power), covariance)


@dataclass(frozen=True)
class Bias:
    """A cell of the table, and the Monte-Carlo error (one standard deviation) of the last ratio."""

    mean: float
    unseen: float
    total: float
    uncertainty: float


def bias(spec: Spec, gaussian: Gaussian, task: str, samples: int) -> Bias:
    """The figures of a sampler on a task, from `samples` samples for each of a few measurements."""
    degradation, sigma_y = TASKS[task]
    operator = operators.build(degradation, SHAPE, dtype=torch.float64)
    posterior = Posterior.of(gaussian.covariance, operator, sigma_y)
    generator = torch.Generator().manual_seed(0)
    y = operator.forward(gaussian.draw(MEASUREMENTS, generator))
    y = y + sigma_y * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    count = MEASUREMENTS * samples
    sampler, repeated = samplers.build(spec), y.repeat_interleave(samples, dim=0)
    noise = Antithetic(0, [""] * count)
    image = sampler(gaussian.prior, operator, repeated, noise, sigma_y=sigma_y).image
    drawn = image.view(MEASUREMENTS, samples, PIXELS)
    exact, mean = y.flatten(1) @ posterior.gain.T, drawn.mean(1)
    spread = (drawn - mean[:, None]).flatten(0, 1)
    unseen = (spread @ posterior.silent).square().sum() / count
    expected_unseen = (posterior.silent @ posterior.covariance @ posterior.silent).trace()
    return Bias(
        mean=((mean - exact).norm() / exact.norm()).item(),
        unseen=(unseen / expected_unseen).item(),
        total=(spread.square().sum() / count / posterior.covariance.trace()).item(),
        uncertainty=posterior.uncertainty(count // 2),
    )


def calibrated(
    spec: Spec, gaussian: Gaussian, task: str, images: int, samples: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """As the rows have it, by column (images,), of images of the prior with samples given y; and `spread`."""
    degradation, sigma_y = TASKS[task]
    operator = operators.build(degradation, SHAPE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    truth = gaussian.draw(images, generator)
    y = operator.forward(truth)
    y = y + sigma_y * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    noise = KeyedNoise(seed, [str(i) for i in range(images * samples)])
    repeated = y.repeat_interleave(samples, dim=0)
    drawn = samplers.build(spec)(gaussian.prior, operator, repeated, noise, sigma_y=sigma_y).image
    drawn = drawn.view(images, samples, *SHAPE)
    deviation = drawn.std(1)
    found = calibration(truth, drawn.mean(1), deviation, samples)
    found["spread"] = deviation.square().mean((1, 2, 3)).sqrt().tolist()
    return {name: np.array(values) for name, values in found.items()}
