"""One worker: takes a unit from its shard to its commit. Both executors run this and nothing else."""

import platform
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter

from kintsugi.errors import JobError, UnreadableImage, error_text
from kintsugi.pipeline.data.decode import Decoded, Images, Measurements
from kintsugi.pipeline.data.pictures import array_file, encode
from kintsugi.pipeline.data.read import read_unit, stays_inside
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.commit import ROWS, Commit, commit, read_commit, read_features, read_rows
from kintsugi.pipeline.execution.identity import of_weights, recorded, refuse_changed
from kintsugi.pipeline.execution.run import recorded_prior, refuse_damaged
from kintsugi.pipeline.execution.stage import BATCH_ON_CPU, Restored, Stage, eight_bits
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.metrics import ALL
from kintsugi.pipeline.metrics.features import arrays, table_of
from kintsugi.pipeline.storage import Location, publish, records

BROKEN_DEVICE = torch.AcceleratorError
LEFT_OUT = KeyError("not to be done now")  # a sample of the unit; no row ever says so
GALLERY = 16  # the first samples of a job keep all their pictures, for the report
LIBRARIES = ("kintsugi", "torch", "numpy", "torchmetrics", "diffusers", "webdataset", "pyarrow", "pillow")


class WorkerKilled(Exception):
    """A sample that ends the process which restores it."""


@dataclass(frozen=True)
class Task:
    """What is to be done of a unit.

    Attributes:
        attempt: 1, 2, …
        poison: samples that are known to kill their worker; they become failed rows.
        failed_only: keep the committed rows and do only the failed samples again.
    """

    unit: Unit
    attempt: int = 1
    poison: frozenset[str] = frozenset()
    failed_only: bool = False


class Worker:
    """Holds the prior on its device and restores units one after another.

    Args:
        on_batch: called after every batch.

    Attributes:
        in_hand: samples finished in the unit that is not committed yet. busy: seconds spent in the
            sampler. Both may be read from another thread, for the display.
    """

    def __init__(self, job: Job, run: Location, device: str, on_batch: Callable[[], None] = lambda: None):
        # The number of threads decides the order of sums: it belongs to the job, not to the machine.
        torch.set_num_threads(job.compute.cpus_per_actor)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = job.compute.precision != "float32"
        self.job, self.run = job, run
        self.config_hash = config_hash(job)
        refuse_damaged(run)  # once: afterwards the plan's pages have checksums of their own
        files = recorded(run)
        self.stage = Stage(job, device, files)
        refuse_changed(files, of_weights(job))
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
        data = job.data
        self.convert = (
            Measurements(
                self.stage.measured_channels, data.range, job.degradation.sigma_y, self.stage.measures_pixels
            )
            if job.from_measurements
            else Images(data.size, data.fit, data.range)
        )
        self.made_by = provenance(self.stage.device) | weights_of(job)
        self.in_hand = 0
        self.on_batch = on_batch

    @property
    def busy(self) -> float:
        return self.stage.seconds["sample"]

    def process(self, task: Task) -> Commit:
        """Read, degrade, sample, score and write one unit, and commit it.

        A unit that somebody else has committed in the meantime is left as it is.

        Raises:
            OSError: the storage fails. torch.AcceleratorError: the device fails.
        """
        started = time.perf_counter()
        before = dict(self.stage.seconds)
        reading = {"read": 0.0, "fetch": 0.0, "decode": 0.0}
        self.in_hand = 0
        unit = task.unit
        kept: dict[str, tuple[dict[str, Any], float]] = {}  # row and seconds by key
        features: dict[str, dict[str, np.ndarray]] = {}  # by key
        earlier, made_by = None, self.made_by
        committed = read_commit(self.run, unit.unit, self.config_hash)
        if committed is not None:
            if not task.failed_only:
                return committed
            old = read_rows(self.run, committed, ROWS.names).to_pylist()
            done = zip(old, committed.sample_seconds, strict=True)
            kept = {row["key"]: (row, seconds) for row, seconds in done if row["status"] == "ok"}
            if (stored := read_features(self.run, committed)) is not None:
                columns = arrays(stored)
                features = {
                    key: {name: values[i] for name, values in columns.items()}
                    for i, key in enumerate(stored["key"].to_pylist())
                }
            earlier, made_by = committed.seconds, both(committed.made_by, self.made_by)

        def skip(key: str) -> Exception | None:
            if key in task.poison:
                return WorkerKilled("restoring this sample ended the process, each time it was tried")
            if self.job.from_measurements and not stays_inside(key):
                return UnreadableImage(
                    "its name is not that of one file in the folder it would be written to"
                )
            return LEFT_OUT if key in kept else None

        members = read_members(self.run / "plan.parquet", unit)
        batches = read_unit(unit, members, self.convert, self.batch_size, skip)
        written: list[Future[list[dict[str, Any]]]] = []
        sample_seconds: list[float] = []
        with ThreadPoolExecutor(1) as writer:  # pictures are encoded while the next batch is restored
            while True:
                mark = time.perf_counter()
                batch = next(batches, None)
                reading["read"] += time.perf_counter() - mark
                if batch is None:
                    break
                reading["fetch"] += sum(sample.fetching for sample in batch)
                reading["decode"] += sum(sample.decoding for sample in batch)
                results = self.restore(batch)
                written.append(writer.submit(self.rows, unit, batch, results))
                features |= {
                    sample.key: result.features
                    for sample, result in zip(batch, results, strict=True)
                    if isinstance(result, Restored) and result.features
                }
                sample_seconds += [
                    kept[sample.key][1] if sample.key in kept else seconds_of(result)
                    for sample, result in zip(batch, results, strict=True)
                ]
                self.in_hand += len(batch)
                self.on_batch()
            mark = time.perf_counter()
            made = (row for future in written for row in future.result())
            rows = [kept[row["key"]][0] if row["key"] in kept else row for row in made]
            encoding = time.perf_counter() - mark
        spent = {part: total - before[part] for part, total in self.stage.seconds.items()}
        self.in_hand = 0
        notes, self.stage.notes = tuple(self.stage.notes), []
        if not task.failed_only and (other := read_commit(self.run, unit.unit, self.config_hash)) is not None:
            return other
        return commit(
            self.run,
            unit.unit,
            rows,
            started,
            config_hash=self.config_hash,
            prior_sha256=self.stage.prior.sha256,
            attempt=task.attempt,
            seconds={**reading, **spent, "encode": encoding},
            earlier=earlier,
            features=table_of({row["key"]: features[row["key"]] for row in rows if row["key"] in features}),
            sample_seconds=sample_seconds,
            made_by=made_by,
            notes=notes,
        )

    def probe(self, unit: Unit, first: int, last: int) -> None:
        """Restore samples first … last − 1 of a unit and forget the result: does it kill the worker?"""
        members = read_members(self.run / "plan.parquet", unit)
        probed = set(members.keys[first:last])

        def skip(key: str) -> Exception | None:
            return None if key in probed else LEFT_OUT

        for batch in read_unit(unit, members, self.convert, self.batch_size, skip):
            self.rows(unit, batch, self.restore(batch))

    def restore(self, batch: list[Decoded]) -> list[Restored | str]:
        """A result or an error for each sample of a batch.

        A batch that raises is done again one by one, so that a bad sample fails alone; but after an
        error of the device every sample would fail, so that ends the worker's attempt at the unit, and a
        file that changed ends the job.
        """
        good = [sample for sample in batch if sample.image is not None]
        outcomes: dict[str, Restored | str] = {s.key: s.error or "" for s in batch if s.image is None}
        if good:
            try:
                outcomes |= self.run_stage(good)
            except (BROKEN_DEVICE, JobError):
                raise
            except Exception:
                for sample in good:
                    try:
                        outcomes |= self.run_stage([sample])
                    except (BROKEN_DEVICE, JobError):
                        raise
                    except Exception as error:
                        outcomes[sample.key] = error_text(error)
        return [outcomes[sample.key] for sample in batch]

    def run_stage(self, samples: list[Decoded]) -> dict[str, Restored]:
        keys = [sample.key for sample in samples]
        images = [sample.image for sample in samples if sample.image is not None]
        labels = [sample.label for sample in samples]
        return dict(zip(keys, self.stage.run(keys, images, labels), strict=True))

    def rows(self, unit: Unit, batch: list[Decoded], results: list[Restored | str]) -> list[dict[str, Any]]:
        return [self.row(unit, sample, result) for sample, result in zip(batch, results, strict=True)]

    def row(self, unit: Unit, sample: Decoded, result: Restored | str) -> dict[str, Any]:
        error = result if isinstance(result, str) else result.error
        row = failed_row(unit, sample, self.job.seed, error or "")
        if isinstance(result, str) or sample.image is None:
            return row
        row |= {
            "forwards": result.forwards,
            "vjps": result.vjps,
            "batch_size": result.batch_size,
        }
        if result.error is not None:
            return row
        return (
            row
            | result.metrics
            | {"status": "ok", "error": None, "residual": result.residual, "spread": result.spread}
            | self.pictures(result, sample.image, unit.first + sample.index - unit.start < GALLERY)
        )

    def pictures(self, result: Restored, sample: np.ndarray, shown: bool) -> dict[str, Any]:
        """The pictures of a row that are kept; `shown`: in the report."""
        if self.job.from_measurements:
            form = self.job.restoration.format
            return {
                "restored": encode(result.restored, form),
                "measurement": encode(result.measurement) if shown else None,
                "deviation": None if result.deviation is None else array_file(result.deviation),
                "samples": [encode(one, form) for one in result.samples] or None,
            }
        everything = shown or self.job.images == "all"
        return {
            "restored": None if self.job.images == "none" and not shown else encode(result.restored),
            "measurement": encode(result.measurement) if everything else None,
            "truth": encode(eight_bits(sample)) if everything else None,
        }


def weights_of(job: Job) -> dict[str, str]:
    """Which files of weights the job's metrics use."""
    needed = ((name, ALL[name].weights) for name in job.metrics)
    return {f"weights of {name}": weights.describe() for name, weights in needed if weights is not None}


def both(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """The provenance of a unit of which some rows were made before, perhaps elsewhere."""
    return {
        name: value if value in before.get(name, value).split(", ") else f"{before[name]}, {value}"
        for name, value in now.items()
    }


def seconds_of(result: Restored | str) -> float:
    return result.seconds if isinstance(result, Restored) else 0.0


@dataclass(frozen=True)
class BatchSize:
    """What `batch_size.json` holds: the batch size of a run, and the device on which it was found."""

    batch_size: Annotated[int, Field(gt=0, lt=2**31)]
    device: str


BATCH_SIZE = TypeAdapter(BatchSize)


def remembered_batch_size(run: Location, stage: Stage, limit: int) -> int:
    """The batch size of a run that leaves it open: found by its first worker, the same for all."""
    file = run / "batch_size.json"
    if not file.exists():
        found = stage.largest_batch(limit) if stage.device.type == "cuda" else min(limit, BATCH_ON_CPU)
        with publish(file, first=True) as temporary:
            found_on = provenance(stage.device)["device"]
            temporary.write_bytes(records.sealed(asdict(BatchSize(found, found_on))))
    try:
        return records.typed(BATCH_SIZE, records.read(file), file).batch_size
    except JobError as error:
        raise JobError(
            f'{error}; write {{"batch_size": N, "device": ""}} there, N being the largest batch_size of its '
            "rows, or remove it if there are none yet"
        ) from error


def failed_row(unit: Unit, sample: Decoded, seed: int, error: str) -> dict[str, Any]:
    """The row of a sample that could not be restored."""
    return dict.fromkeys(ROWS.names) | {
        "key": sample.key,
        "shard": unit.shard,
        "index": sample.index,
        "label": sample.label,
        "source": sample.source,
        "status": "failed",
        "error": error,
        "seed": seed,
        "file": sample.file,
    }


def give_up(job: Job, run: Location, task: Task, error: str) -> Commit:
    """Commit a unit whose workers die though none of its samples alone is to blame: all failed rows.

    One that was committed before, of which the failed samples were tried again, stays as it is.
    """
    unit = task.unit
    if (before := read_commit(run, unit.unit, config_hash(job))) is not None:
        return before
    keys = read_members(run / "plan.parquet", unit).keys
    samples = [Decoded(key, unit.start + place) for place, key in enumerate(keys)]
    rows = [failed_row(unit, sample, job.seed, error) for sample in samples]
    return commit(
        run,
        unit.unit,
        rows,
        time.perf_counter(),
        config_hash=config_hash(job),
        prior_sha256=None,
        attempt=task.attempt,
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
