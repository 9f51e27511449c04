"""What a linear operator is here: y = H x with the singular value decomposition H = U S Vᵀ.

The samplers work in the coordinates Vᵀx, where everything they do is a multiplication; so an
operator says how to go there and back, and what its singular values are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Operator(nn.Module, ABC):
    """A linear operator on images x (B, C, H, W) with values in [-1, 1].

    Attributes:
        image_shape: (C, H, W) of the images.
        measurement_shape: (C, h, w) of the measurements y.
        singular_values: S, non-negative, broadcastable against `to_spectral(x)`; 0 on the null space.
    """

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
        """y = H x, (B, C, H, W) → (B, *measurement_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Hᵀ y, (B, *measurement_shape) → (B, C, H, W)."""

    @abstractmethod
    def pinv(self, y: Tensor) -> Tensor:
        """H⁺ y, the Moore–Penrose pseudo-inverse, (B, *measurement_shape) → (B, C, H, W)."""

    @abstractmethod
    def to_spectral(self, x: Tensor) -> Tensor:
        """Vᵀ x: an orthogonal change of coordinates, in which HᵀH is diag(singular_values²)."""

    @abstractmethod
    def from_spectral(self, c: Tensor) -> Tensor:
        """V c, the inverse of `to_spectral`."""

    def spectral_map(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """V f(S) Vᵀ x, with f from singular values to multipliers; f(0) acts on the null space."""
        return self.from_spectral(f(self.singular_values) * self.to_spectral(x))

    def project(self, x: Tensor) -> Tensor:
        """H⁺H x: the part of x that the measurement determines."""
        return self.spectral_map(lambda s: (s > 0).to(s.dtype), x)


class Separable(Operator):
    """y = R_h x R_wᵀ for every image and channel: one matrix for the rows, one for the columns.

    Resizing and separable blurs are of this kind. The decomposition is that of the two small
    matrices: singular values are products of theirs, singular vectors outer products.

    Args:
        rows: R_h (h, H); columns: R_w (w, W); float64.
        threshold: singular values of R_h and R_w below it are set to zero, in every method alike, so
            that H⁺ does not amplify what the measurement hardly contains. H is then exactly U S Vᵀ.
    """

    rows_forward: Tensor
    rows_pinv: Tensor
    rows_vectors: Tensor
    columns_forward: Tensor
    columns_pinv: Tensor
    columns_vectors: Tensor

    def __init__(self, channels: int, rows: Tensor, columns: Tensor, *, threshold: float = 0.0):
        row_factors, column_factors = (truncated_svd(matrix, threshold) for matrix in (rows, columns))
        super().__init__(
            (channels, rows.shape[1], columns.shape[1]),
            (channels, rows.shape[0], columns.shape[0]),
            torch.outer(row_factors[1], column_factors[1]),
        )
        for axis, (u, s, v) in (("rows", row_factors), ("columns", column_factors)):
            # Only as many left vectors as measurements; the right ones span the null space as well.
            k = u.shape[1]
            inverse = torch.where(s > 0, 1 / s, 0)
            self.register_buffer(f"{axis}_forward", (u * s[:k]) @ v[:, :k].T)
            self.register_buffer(f"{axis}_pinv", (v[:, :k] * inverse[:k]) @ u.T)
            self.register_buffer(f"{axis}_vectors", v)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows_forward @ x @ self.columns_forward.T

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows_forward.T @ y @ self.columns_forward

    def pinv(self, y: Tensor) -> Tensor:
        return self.rows_pinv @ y @ self.columns_pinv.T

    def to_spectral(self, x: Tensor) -> Tensor:
        return self.rows_vectors.T @ x @ self.columns_vectors

    def from_spectral(self, c: Tensor) -> Tensor:
        return self.rows_vectors @ c @ self.columns_vectors.T


def truncated_svd(matrix: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """U (m, k), S (n,), V (n, n) of an (m, n) matrix, k = min(m, n): S padded with zeros to n."""
    u, s, vt = torch.linalg.svd(matrix, full_matrices=True)
    k = s.shape[0]
    # Rounding leaves 1e-16 where the rank is smaller than k; that is zero.
    floor = max(threshold, s.max().item() * 1e-12)
    padded = torch.zeros(matrix.shape[1], dtype=s.dtype)
    padded[:k] = torch.where(s >= floor, s, 0)
    return u[:, :k], padded, vt.T
