"""What every sampler is tried with."""

REQUIRED = {
    "inpaint": {"mask": "random"},
    "compose": {"operators": [{"name": "bicubic", "factor": 2}, {"name": "denoise"}]},
}
