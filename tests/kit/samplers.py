"""What every sampler is tried with."""

from kit.operators import blur_file

from kintsugi import samplers

BY_NETWORK = [name for name in samplers.REGISTRY if name != "external"]

OF_LATENTS = [name for name in BY_NETWORK if getattr(samplers.BUILTIN[name], "needs_latents", False)]

FEW = {
    "cdim": {"projections": 2},
    "daps": {"ode_steps": 2, "langevin_steps": 10},
    "dmplug": {"ode_steps": 2},
    "pnp_flow": {"draws": 2},
    "sitcom": {"adam_steps": 2},
}
"""What a sampler needs to run in two or four steps."""

REQUIRED = {
    "blur": {
        "kernel": [[0.0, 1.0, 0.0, 2.0], [3.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.5, 0.0]],
        "boundary": "valid",
    },
    "inpaint": {"mask": "random"},
    "nonlinear_blur": {"weights": blur_file()},
    "compose": {"operators": [{"name": "bicubic", "factor": 2}, {"name": "denoise"}]},
}


def relative_error(image, reference):
    return ((image - reference).norm() / reference.norm()).item()
