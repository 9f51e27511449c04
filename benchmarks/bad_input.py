"""What a user sees for each kind of bad input: a table.

    python benchmarks/bad_input.py

Every kind is a shard with the bad sample between two good ones, run as a job of its own.
"""

import io
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.aggregate import committed
from pipeline.executors import Live, in_process
from pipeline.job import Job, JobError
from pipeline.run import open_or_plan

SIZE = 64
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8))
GREY16 = (np.asarray(PICTURE.convert("L")).astype(np.uint16) + 1) * 255


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = saved(PICTURE)
SHARD = tar_of([("a.png", GOOD), ("b.png", GOOD), ("c.png", GOOD)])
BOUNDARY = 512 + -(-len(GOOD) // 512) * 512  # where the second sample begins
SAMPLES = {
    "not an image": b"hello",
    "truncated JPEG": saved(PICTURE, "JPEG")[:-300],
    "greyscale": saved(PICTURE.convert("L")),
    "RGBA": saved(PICTURE.convert("RGBA")),
    "palette": saved(PICTURE.quantize(64)),
    "16-bit": saved(Image.fromarray(GREY16)),
    "wrong size": saved(PICTURE.resize((80, 60))),
}
SHARDS = {
    "tar cut between members": SHARD[:BOUNDARY],
    "tar cut inside a header": SHARD[: BOUNDARY + 100],
    "tar cut inside an image": SHARD[: BOUNDARY + 1000],
    "duplicate keys": tar_of([("a.png", GOOD), ("b.png", GOOD), ("a.png", GOOD)]),
    "empty shard": tar_of([]),
}


def outcome(content: bytes, salvage: bool) -> str:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bad.tar").write_bytes(content)
        (folder / "good.tar").write_bytes(tar_of([("z.png", GOOD)]))
        job = Job.model_validate(
            {
                "data": {
                    "shards": [str(folder / "bad.tar"), str(folder / "good.tar")],
                    "size": SIZE,
                    "damaged": "salvage" if salvage else "refuse",
                },
                "degradation": {"operator": {"name": "bicubic"}},
                "sampler": {"name": "conjugate", "steps": 1},
                "metrics": ["psnr"],
                "output": str(folder / "run"),
            }
        )
        try:
            run = open_or_plan(job)
        except JobError as error:
            return "refused: " + " ".join(str(error).replace(str(folder) + "/", "").split())
        list(in_process(job, run.folder, run.outstanding(), Live()))
        rows = [row for table, _ in committed(run, ["key", "status", "error"]) for row in table.to_pylist()]
        said = [f"{row['key']}: {row['error'] or 'ok'}" for row in rows]
        return "; ".join(said) + (
            f" (named: empty {Path(run.summary.empty[0]).name})" if run.summary.empty else ""
        )


def main() -> None:
    print("| input | rows, or what planning says |\n|---|---|")
    for kind, content in SAMPLES.items():
        shard = tar_of([("a.png", GOOD), ("b.png", content), ("c.png", GOOD)])
        print(f"| {kind} (b) | {outcome(shard, False)} |", flush=True)
    for kind, shard in SHARDS.items():
        print(f"| {kind} | {outcome(shard, False)} |", flush=True)
        if kind.startswith("tar cut"):
            print(f"| {kind}, data.damaged=salvage | {outcome(shard, True)} |", flush=True)


if __name__ == "__main__":
    main()
