"""Operators whose forward is any differentiable torch module: H⁺ by conjugate gradients or Gauss–Newton.

    operator = operators.of_module(codec, (3, 64, 64))
    operator = operators.from_deepinv(physics, (1, 64, 64))

A plug-in's factory returns one of these; it is built in float64 on the CPU and converted by `.to`.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kintsugi.numerics import Map, conjugate_gradients, linearised, nth
from kintsugi.operators.base import Nonlinear, Operator
from kintsugi.operators.solved import Solved

POWER_ITERATIONS, MARGIN = 50, 1.1
"""Of the estimate of ‖H‖, and what it is multiplied by: power iteration approaches it from below."""
POINTS = 4
"""At which the gain of a non-linear operator is measured."""
SHARES = (1.0, 0.5, 0.25, 0.0625)
"""Of a Gauss–Newton step: the first that lessens the misfit is made."""


def of_module(
    forward: Callable[[Tensor], Tensor],
    image_shape: tuple[int, int, int],
    *,
    linear: bool = False,
    threshold: float = 3e-2,
    tolerance: float = 1e-6,
    steps: int = 4,
    iterations: int = 10,
) -> Operator:
    """y = H(x) of a module, or of another function that is differentiable twice, for each image by itself.

    H takes (B, C, H, W) in [-1, 1]. A measurement that is not (C, h, w) for an image is flattened to
    (1, 1, n), a complex one with real and imaginary parts last. Of a module a copy is taken, in evaluation
    mode, whose weights need no gradients.

    Args:
        linear: whether H is a matrix. Hᵀ is by automatic differentiation in any case.
        threshold: √λ as a share of ‖H‖, of Hᵀ (H Hᵀ + λ)⁻¹ and of the damping of Gauss–Newton's steps.
        tolerance: if linear: relative residual of a white measurement, to which H⁺ is solved for.
        steps, iterations: if not: Gauss–Newton steps, and conjugate gradients in each.

    Raises:
        ValueError: H has no gradient, is not linear though it is said to be, or cannot be solved for.
    """
    if isinstance(forward, nn.Module):
        forward = Precise(deepcopy(forward)).eval().requires_grad_(False).to("cpu", torch.float64)
    if linear:
        return LinearModule(forward, image_shape, threshold, tolerance)
    return Module(forward, image_shape, threshold, steps, iterations)


def from_deepinv(physics: Any, image_shape: tuple[int, int, int], **settings: Any) -> Operator:
    """The operator of a physics of deepinv, whose images are in [0, 1]; its noise is not part of it.

    H is A itself on [-1, 1] where A is linear: of deepinv's measurement y it is 2y − A(1). Where not, it is
    2 A((x + 1) / 2), less 1 where measurements are images. So noise has the same scale as elsewhere.

    Args:
        settings: of `of_module`.
    """
    from deepinv.physics import LinearPhysics, PhaseRetrieval  # an optional package

    linear = isinstance(physics, LinearPhysics)
    turned = isinstance(physics, PhaseRetrieval) and getattr(physics, "dtype", torch.float).is_complex
    return of_module(Physics(physics, linear, turned), image_shape, linear=linear, **settings)


class Precise(nn.Module):
    """A module whose complex weights change their precision, too, where torch would take their real parts."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """What the module makes of x."""
        return self.module(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Precise":
        def applied(tensor: Tensor) -> Tensor:
            if not tensor.is_complex():
                return fn(tensor)
            return torch.view_as_complex(fn(torch.view_as_real(tensor.resolve_conj())))

        super()._apply(applied, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        return self


class Physics(nn.Module):
    """deepinv's A for images in [-1, 1].

    Args:
        turned: whether A takes complex images alone.
    """

    def __init__(self, physics: Any, linear: bool, turned: bool):
        super().__init__()
        self.physics, self.linear, self.turned = physics, linear, turned

    def forward(self, x: Tensor) -> Tensor:
        """A x, or what is not linear on the scale of [-1, 1]."""
        if self.linear:
            return self.physics.A(x)
        image = torch.complex(x + 1, torch.zeros_like(x)) if self.turned else x + 1
        y: Tensor = 2 * self.physics.A(image / 2)
        return y - 1 if y.shape == x.shape else y


def measured(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function's value as measurements (B, C, h, w), real; those of another shape are (B, 1, 1, n).

    Raises:
        ValueError: it is no tensor with an entry for each image.
    """
    y = function(x)
    if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != len(x):
        found = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise ValueError(f"forward: gives {found}; expected (B, …) with B = {len(x)}")
    y = torch.view_as_real(y) if y.is_complex() else y
    return y if y.ndim == 4 else y.reshape(len(x), 1, 1, -1)


def examined(function: Callable[[Tensor], Tensor], image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The shape of a measurement; raises a ValueError if there is none, or no gradient, or less precision."""
    x = torch.zeros(2, *image_shape, dtype=torch.float64, requires_grad=True)
    try:
        with torch.enable_grad():
            y = measured(function, x)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:  # the code of others
        raise ValueError(
            f"forward: of images {tuple(x.shape)} it raises {type(error).__name__}: {error}"
        ) from error
    if not y.requires_grad:
        raise ValueError("forward: its result has no gradient by the image; is it detached, or rounded?")
    if y.dtype != torch.float64:
        raise ValueError(f"forward: gives {y.dtype} of float64 images; it must keep their precision")
    _, channels, height, width = y.shape
    return channels, height, width


def points_in(image_shape: tuple[int, int, int]) -> Tensor:
    """Where the gain of a non-linear operator is measured: mid-grey and random images, (POINTS, C, H, W)."""
    points = torch.rand(POINTS, *image_shape, generator=torch.Generator().manual_seed(2)).double() * 2 - 1
    points[0] = 0
    return points


def directions(count: int, image_shape: tuple[int, int, int]) -> Tensor:
    """From which power iteration begins, (count, C, H, W) float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, *image_shape, generator=generator, dtype=torch.float64)


def largest_gain(square: Map, points: int, image_shape: tuple[int, int, int]) -> float:
    """The largest of the `gains` at several points, from random v in float64.

    Raises:
        ValueError: it is zero, or not finite.
    """
    gain = gains(square, directions(points, image_shape)).max().item()
    if not 0 < gain < float("inf"):
        raise ValueError(f"forward: its derivative has the norm {gain:g}; nothing would be measured")
    return gain


def gains(square: Map, v: Tensor, iterations: int = POWER_ITERATIONS) -> Tensor:
    """‖J‖ at several points, (points,), by power iteration of v ↦ JᵀJ v, v (points, C, H, W), and a margin.

    Args:
        v: where it begins.
    """
    energy = v.new_zeros(len(v))
    for _ in range(iterations):
        v = v / v.flatten(1).norm(dim=1).clamp_min(torch.finfo(v.dtype).tiny).view(-1, 1, 1, 1)
        image = square(v)
        energy, v = (v * image).flatten(1).sum(1), image
    return MARGIN * energy.clamp_min(0).sqrt()


class LinearModule(Solved):
    """y = H x of a module, with Hᵀ by automatic differentiation.

    The spectral form is that of ‖H‖ times the identity, as nothing is known of V.

    Args:
        threshold, tolerance: see `of_module`.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        image_shape: tuple[int, int, int],
        threshold: float,
        tolerance: float,
    ):
        super().__init__(image_shape, examined(function, image_shape), torch.ones((), dtype=torch.float64))
        self.function = function
        self.pixels = self.measurement_shape == image_shape
        self.check()
        self.lipschitz = largest_gain(lambda v: self.adjoint(self.forward(v)), 1, image_shape)
        self.singular_values *= self.lipschitz
        self.ridge = (threshold * self.lipschitz) ** 2
        if (count := self.count(self.measurement_shape, tolerance)) is None:
            raise ValueError(f"threshold: at {threshold:g} conjugate gradients do not solve for H⁺; raise it")
        self.iterations = (count,)

    def check(self) -> None:
        """Raise a ValueError if H is not linear, or its gradient is not that of H."""
        generator = torch.Generator().manual_seed(1)
        x, z = torch.randn(2, 1, *self.image_shape, generator=generator, dtype=torch.float64)
        (hx, hz), scale = map(self.forward, (x, z)), self.forward(x).norm() + self.forward(z).norm()
        if (self.forward(x - 2 * z) - hx + 2 * hz).norm() > 1e-6 * scale:
            raise ValueError("linear: H(x − 2z) is not H(x) − 2 H(z); leave it out")
        if ((hx * hz).sum() - (x * self.adjoint(hz)).sum()).abs() > 1e-6 * scale**2:
            raise ValueError("forward: the gradient that its module defines is not that of its values")

    def forward(self, x: Tensor) -> Tensor:
        """H x."""
        return measured(self.function, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Hᵀ y, the gradient of ⟨H x, y⟩."""
        with torch.enable_grad():
            leaf = y.new_zeros(len(y), *self.image_shape).requires_grad_()
            (gradient,) = torch.autograd.grad(self.forward(leaf), leaf, y)
        return gradient

    def preconditioner(self, ridge: float | Tensor, density: Map) -> Map:
        """None: the identity."""
        return lambda r: r

    def to_spectral(self, x: Tensor) -> Tensor:
        """x itself: the pixels are the coordinates."""
        return x

    def from_spectral(self, c: Tensor) -> Tensor:
        """c itself."""
        return c


class Module(Nonlinear):
    """y = H(x) of a module; H⁺ by damped Gauss–Newton steps (Levenberg 1944).

    Every sample makes as large a share of a step as lessens its misfit, or none, and the numbers of steps and
    of conjugate gradients in each are fixed: none depends on its batch.

    Args:
        threshold, steps, iterations: see `of_module`.

    Attributes:
        lipschitz: ‖∂H/∂x‖, by power iteration at a few images, with a margin of a tenth.
    """

    per_sample: ClassVar = None

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        image_shape: tuple[int, int, int],
        threshold: float,
        steps: int,
        iterations: int,
    ):
        super().__init__(image_shape, examined(function, image_shape))
        self.function, self.steps, self.iterations = function, steps, iterations
        self.pixels = self.measurement_shape == image_shape
        _, push, pull = linearised(self.forward, points_in(image_shape))
        self.lipschitz = largest_gain(lambda v: pull(push(v)), POINTS, image_shape)
        self.ridge = (threshold * self.lipschitz) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """H(x)."""
        return measured(self.function, x)

    def pinv(self, y: Tensor) -> Tensor:
        """An image with this measurement, near mid-grey, or near y where that is an image."""
        return self.impose(y if self.pixels else y.new_zeros(len(y), *self.image_shape), y)

    def impose(self, x: Tensor, y: Tensor) -> Tensor:
        """Gauss–Newton from x towards H(x) = y: x + Jᵀ (J Jᵀ + λ)⁻¹ (y − H(x)), `steps` times."""

        def misfit(found: Tensor) -> Tensor:
            return (y - found).square().sum((1, 2, 3), keepdim=True)

        for _ in range(self.steps):
            now, push, pull = linearised(self.forward, x)
            iterates = conjugate_gradients(partial(self.normal, push, pull), lambda r: r, y - now)
            z = nth(iterates, self.iterations)
            step, before, moved = pull(z), misfit(now), x
            for share in reversed(SHARES):
                trial = x + share * step
                moved = torch.where(misfit(self.forward(trial)) < before, trial, moved)
            x = moved
        return x

    def normal(self, push: Map, pull: Map, z: Tensor) -> Tensor:
        """(J Jᵀ + λ) z."""
        return push(pull(z)) + self.ridge * z
