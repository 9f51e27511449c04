"""Run a job from Python and read its rows: python examples/run_job.py. Run again, it does what is left."""

import kintsugi

job = {
    "data": {"shards": "builtin:scikit-image", "size": 64},
    "degradation": {"operator": {"name": "bicubic", "factor": 2}, "sigma": 0.02},
    "sampler": {"name": "conjugate", "steps": 2},
    "metrics": ["psnr", "ssim"],
    "output": "runs/from-python",
}
run = kintsugi.run(job, limit=3)
for row in sorted(run.rows().to_pylist(), key=lambda row: -row["psnr"]):
    print(f"{row['key']:12} {row['status']} {row['psnr']:.2f} dB, {row['forwards']} evaluations")
run.picture(row["key"]).save("worst.png")
print("report:", run.report)
