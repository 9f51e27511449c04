"""PSLD: DPS on latents, with a pull towards latents that the autoencoder gives back as they are."""

from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kintsugi.samplers.base import Strength
from kintsugi.samplers.decoded import Decoded
from kintsugi.samplers.descent import Denoiser, Level, ancestral, noise_in, renoise
from kintsugi.samplers.dps import DPS
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
        """The gradient of both terms in ẑ₀, (B, c, h, w)."""
        seen = problem.operator
        assert isinstance(seen, Decoded)
        with torch.enable_grad():
            leaf = prediction.detach().requires_grad_()
            large = seen.decode(leaf)
            image = seen.reduced(large)
            missed = seen.operator.forward(image) - problem.y
            glued = seen.encode(seen.enlarged(seen.operator.impose(image, problem.y), large))
            terms = self.zeta * lengths(missed) + self.gamma * lengths(leaf - glued)
            (found,) = torch.autograd.grad(terms.sum(), leaf)
        return found


def lengths(v: Tensor) -> Tensor:
    """‖v‖ of each sample, (B,); the gradient is 0 where it is."""
    return v.flatten(1).norm(dim=1)
