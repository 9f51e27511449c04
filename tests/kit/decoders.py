"""Priors of latents whose decoder is linear, so that posteriors have closed forms."""

import torch

from kintsugi.numerics import cosines
from kintsugi.priors.analytic import StandardNormal


class LowPass:
    """D(z) = scale · gain · Ψᵀ (Ψ z, and zeros) of half-size latents z, and E with E(D(z)) = gain z."""

    factor, channels, enlarge = 2, 1, 1

    def __init__(self, size, scale=0.1, gain=1.0):
        self.scale, self.gain = scale, gain
        self.basis = cosines(size).T[:, : size // 2] @ cosines(size // 2)  # orthonormal columns

    def encode(self, x):
        """(B, 1, size, size) to (B, 1, size/2, size/2)."""
        basis = self.basis.to(x)
        return basis.T @ x @ basis / self.scale

    def decode(self, z):
        """And back."""
        basis = self.basis.to(z)
        return self.scale * self.gain * (basis @ z @ basis.T)

    def matrix(self):
        """D as a matrix of images by latents."""
        return self.scale * self.gain * torch.kron(self.basis, self.basis)


class Latents(StandardNormal):
    """z ~ N(0, I) before such a decoder."""

    def __init__(self, autoencoder, **options):
        super().__init__(**options)
        self.autoencoder = autoencoder


class Images(StandardNormal):
    """The same prior, of the images D(z)."""

    def __init__(self, autoencoder, **options):
        super().__init__(**options)
        self.coder = autoencoder

    def denoise(self, x, a, s):
        scale = self.coder.scale
        z = a * scale / (a**2 * scale**2 + s**2) * scale * self.coder.encode(x)
        return self.coder.decode(z)
