"""What a sampler is, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from operators import Operator
from priors.base import Prior
from samplers.noise import Noise

Callback = Callable[[int, Tensor, Tensor], None]
"""Called after every network evaluation with (step, x, x̂₀)."""


@dataclass(frozen=True)
class Restoration:
    """A batch of restored images and what each of them cost.

    Attributes:
        image: (B, C, H, W) in [-1, 1], not clipped.
        forwards, vjps: network evaluations and vector-Jacobian products per sample.
    """

    image: Tensor
    forwards: int
    vjps: int


class Sampler(Protocol):
    """Restores measurements y = H x₀ + σ_y n."""

    def prepare(self, prior: Prior, operator: Operator, sigma_y: float, like: Tensor) -> object:
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
        sigma_y: float = 0.0,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore a batch.

        Args:
            y: (B, *operator.measurement_shape), images on the [-1, 1] scale.
            noise: (B, C, H, W) standard normal start noise, or a keyed source of noise.
            sigma_y: standard deviation of the measurement noise on the [-1, 1] scale.
        """
        ...
