"""What a sampler is, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Protocol, TypeVar

from pydantic import Field
from torch import Tensor

from kintsugi.operators import Operator
from kintsugi.priors.base import Described, Prior, autoencoder_of, prediction_of
from kintsugi.samplers.noise import Noise

Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Callback = Callable[[int, Tensor, Tensor], None]
"""Called after every network evaluation with (step, x, x̂₀)."""


OF_AUTOENCODER = ("decodes", "encodes", "autoencoder_vjps")
COUNTS = ("forwards", "vjps", *OF_AUTOENCODER)
"""What a `Restoration` counts, of the network and of the autoencoder of a prior of latents."""


@dataclass(frozen=True)
class Restoration:
    """A batch of restored images and what each of them cost.

    Attributes:
        image: (B, C, H, W) in [-1, 1], not clipped.
        forwards, vjps: network evaluations and vector-Jacobian products per sample: a number, or (B,) int64
            where samples need more or fewer. A batch is evaluated as long as one of its samples needs it.
        decodes, encodes, autoencoder_vjps: of each sample by the autoencoder of a prior of latents, and
            products with its Jacobians; 0 of a prior of pixels.
    """

    image: Tensor
    forwards: int | Tensor
    vjps: int | Tensor
    decodes: int = 0
    encodes: int = 0
    autoencoder_vjps: int = 0


def of_each(count: int | Tensor, samples: int) -> list[int]:
    """A count of `Restoration` for each of its samples."""
    return count.tolist() if isinstance(count, Tensor) else [count] * samples


def check_prediction(prior: Prior | Described, who: str) -> None:
    """Raise a ValueError that begins with `who`, which needs E[x₀ | x], if the prior does not give that."""
    if prediction_of(prior) != "mean":
        raise ValueError(
            f"{who} needs E[x₀ | x], and the prior is a consistency function, which gives the end of the "
            "ODE's trajectory from x; docs/samplers.md says which samplers take one"
        )


def check_fit(sampler: object, prior: Prior | Described) -> None:
    """Raise a ValueError if the prior, or its x̂₀, is not what the sampler takes it for."""
    who, latents = f"name: {type(sampler).__name__}", autoencoder_of(prior) is not None
    if latents and not getattr(sampler, "takes_latents", False):
        raise ValueError(f"{who} works on pixels, and the prior on latents; {LATENT}")
    if not latents and getattr(sampler, "needs_latents", False):
        raise ValueError(f"{who} is for a prior of latents, and this one is of pixels; {PIXELS}")
    if getattr(sampler, "needs_mean", True):
        check_prediction(prior, who)


LATENT = "latino, flowdps, psld, dps and covariance take it"
PIXELS = "covariance is the same without an encoder"
T = TypeVar("T")


class KeptForOneJob:
    """Keeps what was computed last, of each kind. Not safe to share between threads."""

    def remembered(
        self, kind: str, parts: tuple[object, ...], settings: tuple[object, ...], compute: Callable[[], T]
    ) -> T:
        """What `compute` gave for these very parts and equal settings; computed anew for others."""
        kept = vars(self).setdefault("_kept", {})  # samplers are frozen
        last = kept.get(kind)
        if (
            last is None
            or any(a is not b for a, b in zip(last[0], parts, strict=True))
            or last[1] != settings
        ):
            last = kept[kind] = (parts, settings, compute())
        found: T = last[2]
        return found


class Sampler(Protocol):
    """Restores measurements y = H x₀ + σ_y n.

    One that takes x̂₀ for an image of the prior and not for E[x₀ | x] says so by `needs_mean`, False; one that
    works with a prior of latents by `takes_latents`, and one that needs such a prior by `needs_latents`, too.
    """

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float | Tensor, like: Tensor) -> object:
        """Compute and keep what depends on the job alone, for states of the type and device of `like`.

        Calling the sampler does it too; a job does it first, to find settings that do not fit.

        Raises:
            ValueError: the settings do not fit the prior; the message begins with the field.
        """
        ...

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
        """Restore a batch.

        Args:
            y: (B, *operator.measurement_shape), images on the [-1, 1] scale.
            noise: (B, C, H, W) standard normal start noise, or a keyed source of noise.
            sigma_y: standard deviation of the measurement noise on the [-1, 1] scale, or one for each sample,
                (B, 1, 1, 1), all of them positive.

        Raises:
            ValueError: of noise levels of samples one is not positive: those without noise are to be
                restored by themselves; or the settings do not fit.
        """
        ...
