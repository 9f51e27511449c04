"""How networks of diffusers were trained, by the configurations of their schedulers.

Diffusion networks are given as ε-prediction, whatever they predict: guidance is absorbed by the conjugate
integrator through p, which is 0 for x̂₀-prediction, and v and EDM's outputs become ε without a division.
Consistency functions are given as x̂₀, which is all they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from kintsugi.checkpoint import CheckpointError
from kintsugi.priors.base import Parametrization, Prediction
from kintsugi.priors.formats.diffusers_files import check_sizes, misfit
from kintsugi.priors.paths import DDPM, Path, RectifiedFlow, VarianceExploding, VariancePreserving

T = TypeVar("T")
MOST_LABELS = 100_000

Network = Callable[[Tensor, Tensor], Tensor]
"""The bare network: images (B, C, H, W) and the times (B,) it was trained with → (B, C, H, W)."""


@dataclass(frozen=True)
class Convention:
    """How a network was trained: its path, and the prior's u from the bare network at x, t."""

    path: Path
    parametrization: Parametrization
    output: Callable[[Network, Tensor, Tensor], Tensor]
    prediction: Prediction = "mean"


def labelled(scheduler: Any, device: str | torch.device) -> Convention:
    """Trained with DDPM's labels on any betas, to predict ε, x₀, or v = a ε − s x₀ (2202.00512).

    The conversions are those of DDIMScheduler.step; the schedulers that divide the state by a multiply it
    by a again before the network.
    """
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if scheduler.config.get("use_flow_sigmas") and prediction == "flow_prediction":
        return flow(scheduler, device)
    for setting, expected in (("use_flow_sigmas", False), ("timestep_type", "discrete")):
        if (value := scheduler.config.get(setting, expected)) != expected:
            raise misfit("scheduler_config.json", setting, value, f"with prediction_type {prediction!r}")
    betas = betas_of(scheduler)
    table = DDPM(betas=betas.to(device))

    def levels(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return column(table.a(t.double()), x), column(table.s(t.double()), x)

    def from_epsilon(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, t)

    def from_v(network: Network, x: Tensor, t: Tensor) -> Tensor:
        a, s = levels(x, t)
        return a * network(x, t) + s * x

    def from_sample(network: Network, x: Tensor, t: Tensor) -> Tensor:
        a, s = levels(x, t)
        return (x - a * network(x, t)) / s

    outputs = {"epsilon": from_epsilon, "v_prediction": from_v, "sample": from_sample}
    return Convention(DDPM(betas=betas), "eps", choose(outputs, prediction))


def betas_of(scheduler: Any) -> Tensor:
    """The betas of all labels but one that is pure noise; raises a CheckpointError if they are none."""
    # With rescale_betas_zero_snr the last label is pure noise, where no ε gives x̂₀.
    betas: Tensor = scheduler.betas[:-1] if (scheduler.betas[-1:] == 1).any() else scheduler.betas
    if len(betas) < 2:
        raise CheckpointError("path: scheduler_config.json has fewer than two betas (num_train_timesteps)")
    if not ((betas > 0) & (betas < 1)).all():
        raise CheckpointError("path: scheduler_config.json has betas outside 0 to 1 (trained_betas)")
    return betas


def latent_consistency(scheduler: Any, device: str | torch.device) -> Convention:
    """A consistency function on DDPM's labels: f(x, t) = c_skip x + c_out x̂₀, f(x, 0) = x (2310.04378).

    LCMScheduler; x̂₀ is that of the network's ε, v or x₀ on the betas.
    """
    trained = labelled(scheduler, device)
    table, data = DDPM(betas=betas_of(scheduler).to(device)), 0.5
    scaling = float(scheduler.config.timestep_scaling)

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        a, s = column(table.a(t.double()), x), column(table.s(t.double()), x)
        clean = (x - s * trained.output(network, x, t)) / a
        time = scaling * t
        norm = torch.sqrt(time**2 + data**2)
        return column(data**2 / norm**2, x) * x + column(time / norm, x) * clean

    return Convention(trained.path, "x0", output, "endpoint")


def score_vp(scheduler: Any, device: str | torch.device) -> Convention:
    """Continuous VP: the network predicts ε (ScoreSdeVpScheduler.step_pred) and sees 999 t.

    The factor is not in the scheduler; it is that of score_sde for continuous training (2011.13456).
    """
    config = scheduler.config

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return network(x, 999 * t)

    return Convention(VariancePreserving(config.beta_min, config.beta_max), "eps", output)


def score_ve(scheduler: Any, device: str | torch.device) -> Convention:
    """VE: the network gives the score and sees σ, for images in [0, 1] (ScoreSdeVePipeline).

    On [-1, 1] the noise is twice as strong; the conversion is that of KarrasVePipeline, 2206.00364,
    equation 213. Below sigma_min the network is asked for the score at sigma_min.
    """
    config = scheduler.config

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        sigma = t / 2
        return -column(sigma, x) * network((x + 1) / 2, sigma.clamp(min=config.sigma_min))

    return Convention(VarianceExploding(2 * config.sigma_max), "eps", output)


def edm(scheduler: Any, device: str | torch.device) -> Convention:
    """EDM's preconditioning: x̂₀ = c_skip x + c_out F(c_in x, log σ / 4) (EDMEulerScheduler; 2206.00364)."""
    config = scheduler.config
    data = config.sigma_data
    sign = choose({"epsilon": -1.0, "v_prediction": 1.0}, config.prediction_type)

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        norm = torch.sqrt(t**2 + data**2)
        inside = network(column(1 / norm, x) * x, t.log() / 4)
        return column(t / norm**2, x) * x + column(sign * data / norm, x) * inside

    return Convention(VarianceExploding(config.sigma_max), "eps", output)


def consistency(scheduler: Any, device: str | torch.device) -> Convention:
    """A consistency function f(x, σ) = c_skip x + c_out F(c_in x, 250 log σ), f(x, σ_min) = x (2303.01469).

    CMStochasticIterativeScheduler; whether it would clip f to [-1, 1] does not matter.
    """
    config = scheduler.config
    data, least = config.sigma_data, config.sigma_min

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        sigma = t.clamp(min=least)
        norm = torch.sqrt(sigma**2 + data**2)
        inside = network(column(1 / norm, x) * x, 250 * sigma.log())
        skip, out = data**2 / ((sigma - least) ** 2 + data**2), (sigma - least) * data / norm
        return column(skip, x) * x + column(out, x) * inside

    return Convention(VarianceExploding(config.sigma_max), "x0", output, "endpoint")


def flow(scheduler: Any, device: str | torch.device) -> Convention:
    """Flow matching: x = (1 − σ) x₀ + σ z, the network gives z − x₀ and sees σ times the number of steps.

    FlowMatchEulerDiscreteScheduler; shifts of its timesteps move where it samples, not what they mean.
    """
    if scheduler.config.get("invert_sigmas"):
        raise misfit("scheduler_config.json", "invert_sigmas", True, "only σ = 1 at noise is understood")
    steps = scheduler.config.num_train_timesteps

    def output(network: Network, x: Tensor, t: Tensor) -> Tensor:
        return -network(x, steps * (1 - t))

    return Convention(RectifiedFlow(), "v", output)


# fmt: off
LABELLED = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
    "SASolverScheduler", "UniPCMultistepScheduler",
)
# fmt: on
SCHEDULERS: Mapping[str, Callable[[Any, str | torch.device], Convention]] = {
    **dict.fromkeys(LABELLED, labelled),
    **dict.fromkeys(("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"), edm),
    **dict.fromkeys(("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"), flow),
    "CMStochasticIterativeScheduler": consistency,
    "LCMScheduler": latent_consistency,
    "ScoreSdeVeScheduler": score_ve,
    "ScoreSdeVpScheduler": score_vp,
}
"""What each scheduler's configuration says of the training."""


def scheduler_of(config: dict[str, Any], name: str) -> Any:
    """The scheduler of diffusers, one of SCHEDULERS, with a configuration that may be anybody's.

    Raises:
        CheckpointError: it would be built for ever, or does not say how the network was trained.
    """
    check_sizes("scheduler_config.json", config, {"num_train_timesteps": MOST_LABELS})
    if config.get("predict_epsilon") is False:  # diffusers before 0.9
        config = {"prediction_type": "sample"} | config
    try:
        scheduler = scheduler_class(name).from_config(config)
    except Exception as error:  # whatever a scheduler makes of its settings
        raise CheckpointError(f"path: scheduler_config.json does not make a {name} ({error})") from error
    try:
        SCHEDULERS[name](scheduler, "cpu")
    except CheckpointError:
        raise
    except Exception as error:  # whatever settings of other types lead to
        raise CheckpointError(
            f"path: scheduler_config.json does not say how the network was trained ({error})"
        ) from error
    return scheduler


def scheduler_class(name: str) -> Any:
    """The class of diffusers with this name."""
    if name == "ScoreSdeVpScheduler":
        # Elsewhere diffusers offers it only where transformers is installed.
        from diffusers.schedulers.deprecated.scheduling_sde_vp import ScoreSdeVpScheduler

        return ScoreSdeVpScheduler
    import diffusers.schedulers

    return getattr(diffusers.schedulers, name)


def convention_of(scheduler: Any, device: str | torch.device) -> Convention:
    """How a network was trained, with tables on `device`, by its scheduler, one of SCHEDULERS."""
    return SCHEDULERS[type(scheduler).__name__](scheduler, device)


def column(values: Tensor, x: Tensor) -> Tensor:
    """(B,) per image → (B, 1, 1, 1), of the type of x."""
    return values.to(x.dtype).view(-1, 1, 1, 1)


def choose(outputs: Mapping[str, T], prediction: str) -> T:
    """What stands for a kind of prediction; raises a CheckpointError that lists them if nothing does."""
    if prediction not in outputs:
        fitting = ", ".join(outputs)
        raise misfit("scheduler_config.json", "prediction_type", prediction, f"{fitting} are understood")
    return outputs[prediction]
