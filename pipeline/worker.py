"""One worker: takes a unit from its shard to its commit. Both executors run this and nothing else."""

import json
import platform
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.commit import PICTURES, ROWS, Commit, commit, error_text, publish
from pipeline.job import Job, JobError, config_hash
from pipeline.plan import Unit, read_keys
from pipeline.read import Decoded, read_unit
from pipeline.restore import BATCH_ON_CPU, Restored, Stage
from pipeline.run import recorded_prior

BROKEN_DEVICE = torch.AcceleratorError
GALLERY = 16  # the first samples of a job keep all their pictures, for the report
LIBRARIES = ("kintsugi", "torch", "numpy", "torchmetrics", "diffusers", "webdataset", "pyarrow", "pillow")


class Worker:
    """Holds the prior on its device and restores units one after another.

    Args:
        on_batch: called after every batch.

    Attributes:
        in_hand: samples finished in the unit that is not committed yet. busy: seconds spent in the
            sampler. Both may be read from another thread, for the display.
    """

    def __init__(self, job: Job, run: Path, device: str, on_batch: Callable[[], None] = lambda: None):
        # The number of threads decides the order of sums: it belongs to the job, not to the machine.
        torch.set_num_threads(job.compute.cpus_per_actor)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = job.compute.precision != "float32"
        self.job, self.run = job, run
        self.config_hash = config_hash(job)
        self.stage = Stage(job, device)
        if self.stage.prior.sha256 != (begun_with := recorded_prior(run).sha256):
            raise JobError(
                f"prior: the file changed while the run went on: SHA-256 {self.stage.prior.sha256}, "
                f"begun with {begun_with}"
            )
        if job.compute.batch_size == "auto":
            self.stage.batch_size = remembered_batch_size(run, self.stage, job.compute.unit_size)
        # Fixed, also when memory runs out later: batch k is always the same samples.
        self.batch_size = self.stage.batch_size
        self.stage.compile()
        self.made_by = provenance(self.stage.device)
        self.in_hand = 0
        self.on_batch = on_batch

    @property
    def busy(self) -> float:
        return self.stage.seconds["sample"]

    def process_unit(self, unit: Unit, attempt: int) -> Commit:
        """Read, degrade, sample, score and write one unit, and commit it."""
        started = time.perf_counter()
        before = dict(self.stage.seconds)
        reading = encoding = 0.0
        data = self.job.data
        keys = read_keys(self.run / "plan.parquet", unit.unit)
        batches = read_unit(unit, keys, data.size, data.fit, self.batch_size)
        written: list[Future[list[dict[str, Any]]]] = []
        sample_seconds: list[float] = []
        with ThreadPoolExecutor(1) as writer:  # pictures are encoded while the next batch is restored
            while True:
                mark = time.perf_counter()
                batch = next(batches, None)
                reading += time.perf_counter() - mark
                if batch is None:
                    break
                results = self.restore(batch)
                written.append(writer.submit(self.rows, unit, batch, results))
                sample_seconds += [r.seconds if isinstance(r, Restored) else 0.0 for r in results]
                self.in_hand += len(batch)
                self.on_batch()
            mark = time.perf_counter()
            rows = [row for future in written for row in future.result()]
            encoding = time.perf_counter() - mark
        spent = {part: total - before[part] for part, total in self.stage.seconds.items()}
        self.in_hand = 0
        notes, self.stage.notes = tuple(self.stage.notes), []
        return commit(
            self.run,
            unit.unit,
            rows,
            started,
            config_hash=self.config_hash,
            prior_sha256=self.stage.prior.sha256,
            attempt=attempt,
            seconds={"read": reading, **spent, "encode": encoding},
            sample_seconds=sample_seconds,
            made_by=self.made_by,
            notes=notes,
        )

    def restore(self, batch: list[Decoded]) -> list[Restored | str]:
        """A result or an error for each sample of a batch.

        A batch that raises is done again one by one, so that a bad sample fails alone; but after an
        error of the device every sample would fail, so that ends the worker's attempt at the unit.
        """
        good = [sample for sample in batch if sample.image is not None]
        outcomes: dict[str, Restored | str] = {s.key: s.error or "" for s in batch if s.image is None}
        if good:
            try:
                outcomes |= self.run_stage(good)
            except BROKEN_DEVICE:
                raise
            except Exception:
                for sample in good:
                    try:
                        outcomes |= self.run_stage([sample])
                    except BROKEN_DEVICE:
                        raise
                    except Exception as error:
                        outcomes[sample.key] = error_text(error)
        return [outcomes[sample.key] for sample in batch]

    def run_stage(self, samples: list[Decoded]) -> dict[str, Restored]:
        keys = [sample.key for sample in samples]
        images = np.stack([sample.image for sample in samples if sample.image is not None])
        labels = [sample.label for sample in samples]
        return dict(zip(keys, self.stage.run(keys, images, labels), strict=True))

    def rows(self, unit: Unit, batch: list[Decoded], results: list[Restored | str]) -> list[dict[str, Any]]:
        return [self.row(unit, sample, result) for sample, result in zip(batch, results, strict=True)]

    def row(self, unit: Unit, sample: Decoded, result: Restored | str) -> dict[str, Any]:
        row = failed_row(unit, sample.key, sample.index, self.job.seed, "") | {
            "label": sample.label,
            "source": sample.source,
        }
        if isinstance(result, str):
            return row | {"error": result}
        row |= {
            "forwards": result.forwards,
            "vjps": result.vjps,
            "batch_size": result.batch_size,
        }
        if result.error is not None:
            return row | {"error": result.error}
        gallery = unit.first + sample.index - unit.start < GALLERY
        kept = PICTURES if gallery or self.job.images == "all" else PICTURES[: self.job.images == "restored"]
        pictures = {"restored": result.restored, "measurement": result.measurement, "truth": sample.image}
        return (
            row
            | result.metrics
            | {"status": "ok", "error": None, "residual": result.residual}
            | {name: png(pictures[name]) for name in kept}
        )


def remembered_batch_size(run: Path, stage: Stage, limit: int) -> int:
    """The batch size of a run that leaves it open: found by its first worker, the same for all."""
    file = run / "batch_size.json"
    if not file.exists():
        found = stage.largest_batch(limit) if stage.device.type == "cuda" else min(limit, BATCH_ON_CPU)
        with publish(file, first=True) as temporary:
            found_on = provenance(stage.device)["device"]
            temporary.write_text(json.dumps({"batch_size": found, "device": found_on}))
    size: int = json.loads(file.read_text())["batch_size"]
    return size


def failed_row(unit: Unit, key: str, index: int, seed: int, error: str) -> dict[str, Any]:
    """The row of a sample that could not be restored."""
    nothing = dict.fromkeys(ROWS.names)
    return nothing | {
        "key": key,
        "shard": unit.shard,
        "index": index,
        "status": "failed",
        "error": error,
        "seed": seed,
    }


def give_up(job: Job, run: Path, unit: Unit, attempt: int, error: str) -> Commit:
    """Commit a unit whose workers died: every sample a failed row."""
    keys = read_keys(run / "plan.parquet", unit.unit)
    rows = [failed_row(unit, key, unit.start + i, job.seed, error) for i, key in enumerate(keys)]
    return commit(
        run,
        unit.unit,
        rows,
        time.perf_counter(),
        config_hash=config_hash(job),
        prior_sha256=None,
        attempt=attempt,
        seconds={},
        sample_seconds=[0.0] * len(rows),
        made_by=provenance(torch.device("cpu")),
    )


def provenance(device: torch.device) -> dict[str, str]:
    """What the commit record says of the place where a unit was made."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "device": f"{device.type} ({name})",
        **{library: version(library) for library in LIBRARIES},
    }


def png(picture: np.ndarray | None) -> bytes | None:
    """PNG at the lowest compression level: twice as fast as the default, 5 % larger."""
    if picture is None:
        return None
    buffer = BytesIO()
    array = picture[..., 0] if picture.shape[-1] == 1 else picture
    Image.fromarray(array).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
