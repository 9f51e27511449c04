"""PSLD: DPS on latents, with a pull towards latents that the autoencoder gives back as they are."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Strength
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import Denoiser, Level, ancestral, noise_in, renoise
from kintsugi.samplers.dps import DPS, unit
from kintsugi.samplers.problem import Problem


@dataclass(kw_only=True, frozen=True)
class PSLD(DPS):
    """Posterior sampling with latent diffusion (Rout et al., NeurIPS 2023, 2307.00619, algorithm 2).

    DPS's step by the gradient of ζ ‖y − H D(ẑ₀)‖ + γ ‖ẑ₀ − E(D(ẑ₀) + H⁺(y − H D(ẑ₀)))‖, norms per sample: the
    second term glues what y says of the image to the prediction of the rest. Products with the Jacobians of
    network, decoder and encoder.
    """

    needs_latents: ClassVar[bool] = True
    gamma: Strength = 0.1

    def step(
        self, problem: Problem, denoise: Denoiser, x: Tensor, now: Level, later: Level
    ) -> tuple[Tensor, Tensor]:
        """An ancestral step less the gradient of both misfits."""
        prediction, pullback = denoise.with_pullback(x, now)
        gradient = pullback(self.pull(problem, prediction))
        moved = renoise(
            problem, prediction, noise_in(x, prediction, now), later, ancestral(now, later, self.eta)
        )
        return moved - gradient, prediction - gradient / later.a

    def pull(self, problem: Problem, prediction: Tensor) -> Tensor:
        """The gradient of both terms in ẑ₀, (B, c, h, w); H⁺ of a non-linear operator counts as 0."""
        seen, y = problem.operator, problem.y
        assert isinstance(seen, Decoded)
        operator = seen.operator
        with torch.enable_grad():
            leaf = prediction.detach().requires_grad_()
            large = seen.decode(leaf)
            image = seen.reduced(large)
            around = large.detach().requires_grad_()
            imposed = operator.impose(image.detach(), y).requires_grad_()
            glued = seen.encode(seen.enlarged(imposed, around))
        pull = self.gamma * unit(leaf - glued)
        to_imposed, to_around = torch.autograd.grad(glued, (imposed, around), -pull, allow_unused=True)
        if operator.linear:  # of 1 − H⁺H, which is symmetric
            to_imposed = to_imposed - operator.project(to_imposed)
        missed = operator.forward(image.detach()) - y
        cotangents = [(image, to_imposed + self.zeta * operator.vjp(image.detach(), unit(missed)))]
        cotangents += [] if to_around is None else [(large, to_around)]
        (found,) = torch.autograd.grad([to for to, _ in cotangents], leaf, [of for _, of in cotangents])
        return found + pull
