"""What an operator is here: y = H(x), and for a linear one its singular value decomposition H = U S Vᵀ.

The samplers work in the coordinates c = Vᵀx, where everything they do to the measured part of an
image is a multiplication. V need not be square: its columns are orthonormal and span at least what H
measures, and a direction outside them is one that H does not see. An operator made of several for a
batch (`operators.stack`) has columns of zeros, where S is zero, too, for those of lower rank.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Operator(nn.Module, ABC):
    """A degradation of images x (B, C, H, W) with values in [-1, 1].

    Attributes:
        image_shape: (C, H, W) of the images.
        measurement_shape: (C, h, w) of the measurements y.
        singular_values: S, non-negative, broadcastable against `to_spectral(x)`.
        linear: whether H is a matrix; if not, the spectral form is that of the identity.
        decomposed: whether the spectral form is that of H.
        isotropic: whether H measures every direction alike: Hᵀ H is a multiple of the identity.
        border: rows and columns of an image that have no counterpart in a measurement: those of x are those
            of y times a ratio, and these.
        pixels: whether measurements are images with values in [-1, 1].
        per_sample: what may differ between the samples of a batch, for `operators.stack`: names of buffers
            and numbers, and the dimensions to which each is filled up before one for the batch is put in
            front, so that every method works with it; 0 for a tuple with an entry for each sample. None:
            nothing is known, and operators that differ are not stacked.
    """

    linear: ClassVar[bool]
    decomposed: ClassVar[bool]
    isotropic: ClassVar[bool] = False
    per_sample: ClassVar[Mapping[str, int] | None] = None
    pixels: bool = True
    border: tuple[int, int] = (0, 0)
    singular_values: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        measurement_shape: tuple[int, int, int],
        singular_values: Tensor,
    ):
        super().__init__()
        self.image_shape = image_shape
        self.measurement_shape = measurement_shape
        self.register_buffer("singular_values", singular_values)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """y = H(x), (B, C, H, W) → (B, *measurement_shape)."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """H⁺ y, the pseudo-inverse or its surrogate, (B, *measurement_shape) → (B, C, H, W)."""

    @abstractmethod
    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """(∂H/∂x)ᵀ v at x: the gradient of ⟨H(x), v⟩, (B, C, H, W)."""

    @abstractmethod
    def impose(self, x: Tensor, y: Tensor) -> Tensor:
        """The image that agrees with y where y says something, and with x elsewhere."""

    @abstractmethod
    def to_spectral(self, x: Tensor) -> Tensor:
        """c = Vᵀ x."""

    @abstractmethod
    def from_spectral(self, c: Tensor) -> Tensor:
        """V c, (B, C, H, W)."""

    def spectral_map(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """f(S) in the directions of V and f(0) in all others, applied to x (B, C, H, W)."""
        elsewhere = f(torch.zeros_like(self.singular_values[(0,) * self.singular_values.ndim]))
        inside = f(self.singular_values) - elsewhere
        return elsewhere * x + self.from_spectral(inside * self.to_spectral(x))

    def project(self, x: Tensor) -> Tensor:
        """H⁺H x: the part of x that the measurement determines."""
        return self.pinv(self.forward(x))


class Linear(Operator):
    """y = H x.

    One that is not `decomposed` has the spectral form of a similar operator, and says what its H⁺ is.
    """

    linear = decomposed = True

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Hᵀ y, (B, *measurement_shape) → (B, C, H, W)."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Hᵀ v, whatever x is."""
        return self.adjoint(v)

    def impose(self, x: Tensor, y: Tensor) -> Tensor:
        """x + H⁺(y − H x) = H⁺y + (1 − H⁺H) x."""
        return x + self.pinv(y - self.forward(x))


class Reading(NamedTuple):
    """What a measurement says of an image: forward(x) = target + independent errors, some of rounding.

    Attributes:
        forward: smooth where H need not be; (B, C, H, W) to the shape of target, four dimensions.
        variance: of errors that are not of rounding; broadcastable against target.
        cell: half the width of the interval around target that was rounded to it; 0 where nothing was.
    """

    forward: Callable[[Tensor], Tensor]
    target: Tensor
    variance: float | Tensor
    cell: float | Tensor = 0.0


class Nonlinear(Operator):
    """y = H(x) with a surrogate pseudo-inverse H⁺, as ΠGDM (Song et al., ICLR 2023) uses it."""

    linear = decomposed = False
    lipschitz: float | Tensor = 1.0  # a bound on ‖∂H/∂x‖; of a stacked operator (B, 1, 1, 1)

    def __init__(self, image_shape: tuple[int, int, int], measurement_shape: tuple[int, int, int]):
        super().__init__(image_shape, measurement_shape, torch.ones((), dtype=torch.float64))

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """By automatic differentiation of `forward` at x."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.forward(leaf), leaf, v)
        return gradient

    def reading(self, y: Tensor, sigma_y: float | Tensor) -> Reading:
        """What y of noise level σ_y says of the image: H(x) = y ± σ_y, unless an operator knows better."""
        return Reading(self.forward, y, sigma_y**2)

    def impose(self, x: Tensor, y: Tensor) -> Tensor:
        """x + H⁺(y) − H⁺(H(x))."""
        return x + self.pinv(y) - self.pinv(self.forward(x))

    def to_spectral(self, x: Tensor) -> Tensor:
        """x itself: the pixels are the coordinates."""
        return x

    def from_spectral(self, c: Tensor) -> Tensor:
        """c itself."""
        return c


class Factored(Linear):
    """y = U_h (S ⊙ (V_hᵀ x V_w)) U_wᵀ for every image and channel: singular vectors are outer products.

    Args:
        rows: U_h (h, r), V_h (H, r); columns: U_w (w, q), V_w (W, q), each with orthonormal columns.
        singular_values: S, (r, q) or (C, r, q).
    """

    per_sample = dict.fromkeys(
        ("singular_values", "rows_left", "rows_right", "columns_left", "columns_right"), 3
    )
    rows_left: Tensor
    rows_right: Tensor
    columns_left: Tensor
    columns_right: Tensor

    def __init__(
        self,
        channels: int,
        rows: tuple[Tensor, Tensor],
        columns: tuple[Tensor, Tensor],
        singular_values: Tensor,
    ):
        (h, height), (w, width) = ((u.shape[0], v.shape[0]) for u, v in (rows, columns))
        super().__init__((channels, height, width), (channels, h, w), singular_values)
        for axis, (u, v) in (("rows", rows), ("columns", columns)):
            self.register_buffer(f"{axis}_left", u)
            self.register_buffer(f"{axis}_right", v)

    # Through the coordinates, not through the two matrices: a blur's rank is a third of its size.

    def forward(self, x: Tensor) -> Tensor:
        """Right factors, singular values and left factors in turn, of rows and columns."""
        return self.rows_left @ (self.singular_values * self.to_spectral(x)) @ self.columns_left.mT

    def adjoint(self, y: Tensor) -> Tensor:
        """The transposed factors in the opposite order."""
        return self.from_spectral(self.singular_values * (self.rows_left.mT @ y @ self.columns_left))

    def pinv(self, y: Tensor) -> Tensor:
        """As `adjoint`, with 1/s for s; zero where s is zero."""
        inverse = reciprocal(self.singular_values)
        return self.from_spectral(inverse * (self.rows_left.mT @ y @ self.columns_left))

    def to_spectral(self, x: Tensor) -> Tensor:
        """Vᵀx: along rows and columns, each by its right factor."""
        return self.rows_right.mT @ x @ self.columns_right

    def from_spectral(self, c: Tensor) -> Tensor:
        """V c: back by the right factors."""
        return self.rows_right @ c @ self.columns_right.mT


class Separable(Factored):
    """y = R_h x R_wᵀ for every image and channel: one matrix for the rows, one for the columns.

    Resizing and separable blurs are of this kind. The decomposition is that of the two small
    matrices: singular values are products of theirs, singular vectors outer products.

    Args:
        rows: R_h (h, H); columns: R_w (w, W); float64.
        threshold: singular values of R_h and R_w below it are set to zero, in every method alike, so
            that H⁺ does not amplify what the measurement hardly contains. H is then exactly U S Vᵀ.
    """

    def __init__(self, channels: int, rows: Tensor, columns: Tensor, *, threshold: float = 0.0):
        (u_h, s_h, v_h), (u_w, s_w, v_w) = (truncated_svd(matrix, threshold) for matrix in (rows, columns))
        super().__init__(channels, (u_h, v_h), (u_w, v_w), torch.outer(s_h, s_w))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """R_h and R_w without what the threshold removed, up to a factor between the two."""
        s = self.singular_values
        rows = self.rows_left * s[:, 0] @ self.rows_right.T
        return rows, self.columns_left * (s[0] / s[0, 0]) @ self.columns_right.T


def truncated_svd(matrix: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, r), S (r,), V (n, r) of an (m, n) matrix: the part with singular values of at least `threshold`.

    Raises:
        ValueError: nothing is left.
    """
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    # Rounding leaves 1e-16 where the rank is smaller than min(m, n); that is zero.
    kept = s >= max(threshold, s.max().item() * 1e-12)
    if not kept.any():
        raise ValueError(f"threshold: {threshold} is above every singular value, nothing would be measured")
    return u[:, kept], s[kept], vt.T[:, kept]


def reciprocal(values: Tensor) -> Tensor:
    """1 / values, and 0 for 0."""
    return torch.where(values == 0, 0, 1 / values)
