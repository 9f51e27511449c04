"""Compare two samplers on the same images: python examples/compare_samplers.py."""

import numpy as np

import kintsugi

job = {
    "data": {"shards": "builtin:scikit-image", "size": 64},
    "degradation": {"operator": {"name": "gaussian_blur", "sigma": 1.5}, "sigma": 0.02},
    "sampler": {"name": "conjugate"},
    "metrics": ["psnr"],
    "output": "runs/samplers",
}
values = {}
for name in ("conjugate", "ddnm"):
    sets = {"sampler": {"name": name, "steps": 4, "start": 0.4}, "output": f"runs/{name}"}
    table = kintsugi.run(job, sets=sets, limit=4).rows()
    values[name] = dict(zip(table["key"].to_pylist(), table["psnr"].to_pylist(), strict=True))
differences = np.array([values["conjugate"][key] - values["ddnm"][key] for key in values["ddnm"]])
print(f"conjugate − ddnm: {differences.mean():+.2f} dB, better on {np.mean(differences > 0):.0%}")
print("the page, with intervals: kintsugi compare runs/conjugate runs/ddnm")
