"""What every sampler is tried with."""

import torch


class Counting:
    """A prior that counts its evaluations and the vector-Jacobian products through it, per sample."""

    def __init__(self, prior):
        self.prior, self.path, self.parametrization = prior, prior.path, prior.parametrization
        self.forwards = self.vjps = 0
        self.recorded = []

    def __call__(self, x, t):
        assert t.shape == (len(x),)
        self.forwards += len(x)
        self.recorded.append(torch.is_grad_enabled())
        u = self.prior(x, t)
        if u.requires_grad:
            u.register_hook(self.count_vjp)
        return u

    def count_vjp(self, cotangent):
        self.vjps += len(cotangent)


REQUIRED = {
    "inpaint": {"mask": "random"},
    "compose": {"operators": [{"name": "bicubic", "factor": 2}, {"name": "denoise"}]},
}
