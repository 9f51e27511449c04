"""Operators one after another, as long as the decomposition of the whole can be written down."""

import math
from functools import cached_property
from typing import ClassVar, cast

from torch import Tensor, nn

from kintsugi.operators.base import Linear, Nonlinear, Operator, Reading, Separable
from kintsugi.operators.channels import Channels
from kintsugi.operators.convolution import Convolution, Mirrored
from kintsugi.operators.hadamard import Hadamard
from kintsugi.operators.pointwise import Mask
from kintsugi.operators.solved import Solved


class Kronecker(Linear):
    """Channels are mixed by M, and each degraded by K, for any number of them: they commute, H = M ⊗ K."""

    per_sample: ClassVar = {"singular_values": 3}

    def __init__(self, channels: Channels, spatial: Linear):
        super().__init__(
            (channels.image_shape[0], *spatial.image_shape[1:]),
            (channels.measurement_shape[0], *spatial.measurement_shape[1:]),
            channels.singular_values * spatial.singular_values,
        )
        self.channels, self.spatial = channels, spatial
        self.pixels = spatial.pixels

    def forward(self, x: Tensor) -> Tensor:
        """The channels mixed, then the spatial operator on what is left of them."""
        return self.spatial.forward(self.channels.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Both adjoints, the spatial one first."""
        return self.channels.adjoint(self.spatial.adjoint(y))

    def pinv(self, y: Tensor) -> Tensor:
        """Both pseudo-inverses, the spatial one first."""
        return self.channels.pinv(self.spatial.pinv(y))

    def to_spectral(self, x: Tensor) -> Tensor:
        """The coordinates of both factors, the channels' first."""
        return self.spatial.to_spectral(self.channels.to_spectral(x))

    def from_spectral(self, c: Tensor) -> Tensor:
        """Back from the coordinates of both factors, the spatial one's first."""
        return self.channels.from_spectral(self.spatial.from_spectral(c))


class Chain(Nonlinear):
    """y = Hₙ(… H₁(x)), some of them non-linear; H⁺ applies their pseudo-inverses in reverse."""

    per_sample: ClassVar = {"lipschitz": 3}

    def __init__(self, operators: list[Operator]):
        super().__init__(operators[0].image_shape, operators[-1].measurement_shape)
        self.registered = nn.ModuleList(operators)
        self.pixels = all(operator.pixels for operator in operators)

    @cached_property
    def lipschitz(self) -> float | Tensor:  # type: ignore[override]  # that of a network takes a while
        """The product of those of its operators."""
        return math.prod(map(lipschitz, self.operators))

    @property
    def operators(self) -> list[Operator]:
        """Those of the chain, from first to last."""
        return cast(list[Operator], list(self.registered))

    def forward(self, x: Tensor) -> Tensor:
        """The operators applied in order."""
        for operator in self.operators:
            x = operator.forward(x)
        return x

    def reading(self, y: Tensor, sigma_y: float | Tensor) -> Reading:
        """That of the last operator, of what those before make of the image."""
        *others, last = self.operators
        if not isinstance(last, Nonlinear):
            return super().reading(y, sigma_y)
        read = last.reading(y, sigma_y)

        def forward(x: Tensor) -> Tensor:
            for operator in others:
                x = operator.forward(x)
            return read.forward(x)

        return read._replace(forward=forward)

    def pinv(self, y: Tensor) -> Tensor:
        """The pseudo-inverses applied in the opposite order."""
        for operator in reversed(self.operators):
            y = operator.pinv(y)
        return y


def lipschitz(operator: Operator) -> float | Tensor:
    """A bound on ‖∂H/∂x‖; of an operator with a decomposition its largest singular value."""
    if isinstance(operator, Nonlinear | Solved):
        return operator.lipschitz
    return operator.singular_values.max().item()


def chain(operators: list[Operator], names: list[str]) -> Operator:
    """The operators applied in this order; `names` are for the error.

    Raises:
        ValueError: all are linear, and the decomposition of the whole cannot be computed.
    """
    linear = [operator for operator in operators if isinstance(operator, Linear)]
    if len(linear) < len(operators):
        return Chain(operators)
    first, *others = linear
    for count, operator in enumerate(others, start=2):
        whole = combine(first, operator)
        if whole is None:
            raise ValueError(
                f"operators: {' → '.join(names[:count])} has no singular value decomposition that can be "
                "computed; what composes are separable operators, circular convolutions and masks, each "
                "among themselves, any of these with a mixture of channels, and all with non-linear ones"
            )
        first = whole
    return first


def combine(first: Linear, second: Linear) -> Linear | None:
    """second ∘ first, if its decomposition can be written down."""
    if is_identity(first):
        return second
    if is_identity(second):
        return first
    match first, second:
        case Separable(), Separable():
            (rows, columns), (then_rows, then_columns) = first.matrices(), second.matrices()
            return Separable(first.image_shape[0], then_rows @ rows, then_columns @ columns)
        case Convolution(), Convolution():
            return Convolution(first.image_shape[0], second.forward(first.kernel))
        case Mask(), Mask():
            return Mask(first.singular_values * second.singular_values)
        case Channels(), Channels():
            return Channels(second.matrix @ first.matrix, *first.image_shape[1:])
        case Kronecker(), Channels():
            return Kronecker(
                Channels(second.matrix @ first.channels.matrix, *first.image_shape[1:]), first.spatial
            )
        case Kronecker(), _:
            spatial = combine(first.spatial, second)
            return spatial and combine(first.channels, spatial)
        case (Channels() as channels, spatial) | (spatial, Channels() as channels):
            alike = on_one_channel(spatial)
            return alike and Kronecker(channels, alike)
    return None


def is_identity(operator: Linear) -> bool:
    """Whether an operator is a mask that keeps every pixel."""
    return isinstance(operator, Mask) and bool(operator.singular_values.all())


def on_one_channel(operator: Linear) -> Linear | None:
    """The operator for any number of channels, if it treats them all alike."""
    match operator:
        case Separable() | Convolution() | Mirrored() | Hadamard():
            return operator
        case Mask(singular_values=known) if (known == known[:1]).all():
            return Mask(known[:1])
    return None
