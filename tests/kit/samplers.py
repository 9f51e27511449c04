"""What every sampler is tried with."""

REQUIRED = {
    "inpaint": {"mask": "random"},
    "compose": {"operators": [{"name": "bicubic", "factor": 2}, {"name": "denoise"}]},
}


def relative_error(image, reference):
    return ((image - reference).norm() / reference.norm()).item()
