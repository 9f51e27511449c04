"""One worker: takes a unit from its shard to its commit. Both executors run this and nothing else."""

import platform
import socket
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol

import torch

from kintsugi.device import name_of
from kintsugi.errors import JobError, UnreadableImage, error_text
from kintsugi.pipeline.data.decode import Convert, Decoded
from kintsugi.pipeline.data.read import read_unit
from kintsugi.pipeline.data.shards import stays_inside
from kintsugi.pipeline.data.units import Unit, read_members
from kintsugi.pipeline.execution.commit import Commit, commit, read_commit, schema_of
from kintsugi.pipeline.execution.directory import PLAN
from kintsugi.pipeline.execution.identity import of_plugins, of_weights, recorded, refuse_changed
from kintsugi.pipeline.execution.ledger import Task
from kintsugi.pipeline.execution.memory import lacks_memory, remembered_batch_size
from kintsugi.pipeline.execution.rows import Done, Result, done, failed_row, kept_of
from kintsugi.pipeline.execution.run import recorded_prior, refuse_damaged
from kintsugi.pipeline.execution.scoring_stage import ScoringStage
from kintsugi.pipeline.execution.stage import Loaded, Scored, Stage, compile_network
from kintsugi.pipeline.execution.timing import timed
from kintsugi.pipeline.job import Job, config_hash
from kintsugi.pipeline.metrics import REGISTRY
from kintsugi.pipeline.metrics.features import table_of
from kintsugi.pipeline.storage.location import Location

BROKEN_DEVICE = torch.AcceleratorError
LIBRARIES = ("kintsugi", "torch", "numpy", "torchmetrics", "diffusers", "webdataset", "pyarrow", "pillow")


class WorkerKilled(Exception):
    """A sample that ends the process which restores it."""


class UnitStage(Protocol):
    """What a worker needs of a stage, which knows the job and makes the results of samples.

    Attributes:
        batch_size: samples that are read, and given to `run`, at once.
        convert: makes a sample of the contents of its files, in threads that read ahead.
        prior_sha256: for the records of commits; None where there is no prior.
        seconds: spent by part since the start, for these records.
        notes: what the user should know; the worker takes them away.
    """

    device: torch.device
    batch_size: int
    convert: Convert
    prior_sha256: str | None
    seconds: dict[str, float]
    notes: list[str]

    def begin(self, samples: Sequence[Decoded]) -> Callable[[], Sequence[Scored]]:
        """Restore samples, which have images; returns what scores them, in another thread.

        Raises:
            Exception: as `run`, here or there; `run` is to do the samples again.
        """
        ...

    def run(self, samples: Sequence[Decoded]) -> Sequence[Scored]:
        """A result for each sample, which has an image.

        Raises:
            Exception: a batch that raises is done again one by one, and what a sample raises alone is its
                error; but torch.AcceleratorError ends the attempt at the unit, and JobError the job.
        """
        ...


def stage_of(job: Job, folder: Location, device: str, loaded: Loaded | None = None) -> UnitStage:
    """The stage for a run's job, with the prior, files and batch size of the run.

    Args:
        loaded: its prior, where it is loaded, and compiled, already.

    Raises:
        JobError: a file is not the one with which the run was begun, or as `Stage`.
    """
    files = recorded(folder)
    if job.is_score:
        refuse_changed(files, of_weights(job) | of_plugins(job))
        return ScoringStage(job, device)
    stage = Stage(job, device, files, loaded)
    refuse_changed(files, of_weights(job) | of_plugins(job))
    if stage.prior_sha256 != (begun_with := recorded_prior(folder).sha256):
        raise JobError(
            f"prior: the file changed while the run went on: SHA-256 {stage.prior_sha256}, "
            f"begun with {begun_with}"
        )
    if job.compute.batch_size == "auto":
        stage.batch_size = remembered_batch_size(folder, stage.device, stage.largest_batch)
    if loaded is None:
        compile_network(stage)
    return stage


def network_of(job: Job) -> Any:
    """What jobs whose prior is loaded and compiled in the same way have in common."""
    compute = job.compute
    # It is compiled for batches of one size; that of `auto` is the run's.
    batch = job.output if compute.batch_size == "auto" else compute.batch_size
    return job.prior, compute.precision, compute.compile and (compute.compile, batch, job.image_shape)


class Observer:
    """Is told what a worker does; this one does nothing about it."""

    def on_batch(self, results: Sequence[Result], seconds: Mapping[str, float]) -> None:
        """A batch was done, for a commit or to find what kills.

        Args:
            results: of its samples but those that were skipped. seconds: that the stage spent, by part.
        """

    def on_unit(self, seconds: float) -> None:
        """A unit was in hand so long, whatever came of it."""


class Worker:
    """Holds the stage on its device and does units one after another.

    Args:
        observers: are told of every batch and unit. loaded: as of `stage_of`.

    Attributes:
        in_hand: samples finished in the unit that is not committed yet. May be read from another thread,
            as `busy`, for the display.
        told: seconds of the stage when the observers were last told of a batch.
    """

    def __init__(
        self,
        job: Job,
        folder: Location,
        device: str,
        observers: Sequence[Observer] = (),
        loaded: Loaded | None = None,
    ):
        # The number of threads decides the order of sums: it belongs to the job, not to the machine.
        torch.set_num_threads(job.compute.cpus_per_actor)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = job.compute.precision != "float32"
        self.job, self.folder, self.observers = job, folder, observers
        self.config_hash = config_hash(job)
        refuse_damaged(folder)  # once: afterwards the plan's pages have checksums of their own
        self.stage = stage_of(job, folder, device, loaded)
        # Fixed, also when memory runs out later: batch k is always the same samples.
        self.batch_size = self.stage.batch_size
        plugins = {f"plug-in of {field}": name for field, name in of_plugins(job).items()}
        self.made_by = provenance(self.stage.device) | weights_of(job) | plugins
        self.in_hand = 0
        self.told = dict(self.stage.seconds)

    @property
    def busy(self) -> float:
        """Seconds spent in the sampler, or, where nothing is restored, with scoring."""
        seconds = self.stage.seconds
        return seconds.get("sample", seconds.get("scoring", 0.0))

    def process(self, task: Task) -> Commit:
        """Read, degrade, sample, score and write one unit, and commit it.

        A unit that somebody else has committed in the meantime is left as it is.

        Raises:
            OSError: the storage fails. torch.AcceleratorError: the device fails.
        """
        started = time.perf_counter()
        self.in_hand = 0
        try:
            committed = read_commit(self.folder, task.unit.unit, self.config_hash)
            if committed is not None and not task.failed_only:
                return committed
            return self.do(task, committed, started)
        finally:
            for observer in self.observers:
                observer.on_unit(time.perf_counter() - started)

    def do(self, task: Task, committed: Commit | None, started: float) -> Commit:
        """Do a unit, of a committed one only what failed, and commit it; raises as `process`."""
        unit, before = task.unit, dict(self.stage.seconds)
        kept = kept_of(self.job, self.folder, committed)
        reading = dict.fromkeys(("read", "fetch", "decode"), 0.0)
        written: list[Future[list[Done]]] = []
        # While a batch is restored the one before is scored, and pictures of those before that are encoded.
        # A thread's Fourier transforms have as many threads as the machine unless it is told, and other sums.
        told = partial(torch.set_num_threads, self.job.compute.cpus_per_actor)
        with ThreadPoolExecutor(1, initializer=told) as scorer, ThreadPoolExecutor(1) as writer:
            batches = waited_for(self.batches(unit, kept, task.poison), reading)
            for batch, results in self.restored(batches, scorer):
                written.append(writer.submit(self.encoded, unit, batch, results, kept))
                self.in_hand += len(batch)
                self.tell(batch, results)
            mark = time.perf_counter()
            done = [sample for future in written for sample in future.result()]
            encoding = time.perf_counter() - mark
        spent = {part: total - before[part] for part, total in self.stage.seconds.items()}
        self.in_hand = 0
        notes = tuple(self.stage.notes)
        self.stage.notes.clear()
        if not task.failed_only and (other := read_commit(self.folder, unit.unit, self.config_hash)):
            return other
        return commit(
            self.folder,
            unit.unit,
            [sample.row for sample in done],
            started,
            config_hash=self.config_hash,
            prior_sha256=self.stage.prior_sha256,
            attempt=task.attempt,
            seconds={**reading, **spent, "encode": encoding},
            earlier=committed.seconds if committed else None,
            features=table_of({sample.row["key"]: sample.features for sample in done if sample.features}),
            sample_seconds=[sample.seconds for sample in done],
            schema=schema_of(self.job, any(sample.row.get("decodes") for sample in done)),
            made_by=both(committed.made_by if committed else {}, self.made_by),
            notes=notes,
        )

    def batches(
        self, unit: Unit, skip: Container[str], poison: Container[str] = ()
    ) -> Iterator[list[Decoded]]:
        """The samples of a unit, some of which are not to be done now."""

        def refuse(key: str) -> Exception | None:
            if key in poison:
                return WorkerKilled("restoring this sample ended the process, each time it was tried")
            if self.job.from_measurements and not stays_inside(key):
                return UnreadableImage(
                    "its name is not that of one file in the folder it would be written to"
                )
            return None

        members = read_members(self.folder / PLAN, unit)
        convert, wanted = self.stage.convert, self.job.wanted
        return read_unit(unit, members, convert, self.batch_size, skip, refuse, wanted)

    def probe(self, unit: Unit, first: int, last: int) -> None:
        """Restore samples first … last − 1 of a unit and forget the result: does it kill the worker?"""
        keys = read_members(self.folder / PLAN, unit).keys
        for batch in self.batches(unit, skip={*keys[:first], *keys[last:]}):
            results = self.restore(batch)
            self.encoded(unit, batch, results, {})
            self.tell(batch, results)

    def restored(
        self, batches: Iterable[list[Decoded]], scorer: Executor
    ) -> Iterator[tuple[list[Decoded], list[Result]]]:
        """Batches with the results of their samples; each is scored while the next one is restored."""
        before: tuple[list[Decoded], Future[Sequence[Scored]]] | None = None
        for batch in batches:
            scoring = self.begun(batch, scorer)
            if before is not None:
                yield before[0], self.restore(before[0], partial(awaited, before[1], self.stage.seconds))
            before = batch, scoring
        if before is not None:
            yield before[0], self.restore(before[0], partial(awaited, before[1], self.stage.seconds))

    def begun(self, batch: list[Decoded], scorer: Executor) -> Future[Sequence[Scored]]:
        """The results of the images of a batch, or why there are none; raises as `restore`."""
        try:
            return scorer.submit(self.stage.begin([sample for sample in batch if sample.image is not None]))
        except (BROKEN_DEVICE, JobError):
            raise
        except Exception as error:
            failed = Future[Sequence[Scored]]()
            failed.set_exception(error)
            return failed

    def restore(
        self, batch: list[Decoded], results: Callable[[], Sequence[Scored]] | None = None
    ) -> list[Result]:
        """A result for each sample of a batch, of those skipped an empty error.

        A batch that raises is done again one by one, so that a bad sample fails alone; but after an
        error of the device every sample would fail, so that ends the worker's attempt at the unit, and a
        file that changed ends the job.

        Args:
            results: what gives or raises those of the images. None: the stage, from the beginning.
        """
        good = [sample for sample in batch if sample.image is not None]
        found: dict[str, Result] = {s.key: s.error or "" for s in batch if s.image is None}
        try:
            found |= keyed(good, results() if results else self.stage.run(good))
        except (BROKEN_DEVICE, JobError):
            raise
        except Exception as error:
            if results and lacks_memory(error):  # beside the next batch; the stage knows how to do with less
                return self.restore(batch)
            for sample in good:
                try:
                    found |= keyed([sample], self.stage.run([sample]))
                except (BROKEN_DEVICE, JobError):
                    raise
                except Exception as error:
                    found[sample.key] = error_text(error)
        return [found[sample.key] for sample in batch]

    def tell(self, batch: list[Decoded], results: list[Result]) -> None:
        """Tell the observers of a batch."""
        spent = {part: now - self.told[part] for part, now in self.stage.seconds.items()}
        self.told = dict(self.stage.seconds)
        done = [result for sample, result in zip(batch, results, strict=True) if not sample.skipped]
        for observer in self.observers:
            observer.on_batch(done, spent)

    def encoded(
        self, unit: Unit, batch: list[Decoded], results: list[Result], kept: Mapping[str, Done]
    ) -> list[Done]:
        """A batch with its pictures as files, those that are kept among them."""
        return [
            kept.get(sample.key) or done(self.job, unit, sample, result)
            for sample, result in zip(batch, results, strict=True)
        ]


def keyed(samples: Sequence[Decoded], results: Sequence[Scored]) -> dict[str, Scored]:
    """Results by key."""
    return {sample.key: result for sample, result in zip(samples, results, strict=True)}


def awaited(scoring: Future[Sequence[Scored]], seconds: dict[str, float]) -> Sequence[Scored]:
    """The results that another thread makes, and the time until they are there; raises what it raised."""
    with timed(seconds, "score", torch.device("cpu")):  # which waits for no device
        return scoring.result()


def waited_for(batches: Iterator[list[Decoded]], seconds: dict[str, float]) -> Iterator[list[Decoded]]:
    """The batches; adds how long was waited for them, and what other threads took to fetch and decode."""
    mark = time.perf_counter()
    for batch in batches:
        seconds["read"] += time.perf_counter() - mark
        seconds["fetch"] += sum(sample.fetching for sample in batch)
        seconds["decode"] += sum(sample.decoding for sample in batch)
        yield batch
        mark = time.perf_counter()
    seconds["read"] += time.perf_counter() - mark


def weights_of(job: Job) -> dict[str, str]:
    """Which files of weights the job's metrics use, and which packages that do not come with Kintsugi."""
    needed = [(name, REGISTRY[name]) for name in job.metrics]
    files = {f"weights of {name}": of.weights.describe() for name, of in needed if of.weights is not None}
    return files | {of.extra.package: of.extra.find() for _, of in needed if of.extra is not None}


def both(before: dict[str, str], now: dict[str, str]) -> dict[str, str]:
    """The provenance of a unit of which some rows were made before, perhaps elsewhere."""
    return {
        name: value if name not in before or value in before[name].split(", ") else f"{before[name]}, {value}"
        for name, value in now.items()
    }


def give_up(job: Job, folder: Location, task: Task, error: str) -> Commit:
    """Commit a unit whose workers die though none of its samples alone is to blame: all failed rows.

    One that was committed before, of which the failed samples were tried again, stays as it is.
    """
    unit = task.unit
    if (before := read_commit(folder, unit.unit, config_hash(job))) is not None:
        return before
    keys = read_members(folder / PLAN, unit).keys
    rows = [failed_row(job, unit, Decoded(k, unit.start + i), error) for i, k in enumerate(keys)]
    return commit(
        folder,
        unit.unit,
        rows,
        time.perf_counter(),
        config_hash=config_hash(job),
        prior_sha256=None,
        attempt=task.attempt,
        seconds={},
        sample_seconds=[0.0] * len(rows),
        schema=schema_of(job),
        made_by=provenance(torch.device("cpu")),
    )


def provenance(device: torch.device) -> dict[str, str]:
    """What the commit record says of the place where a unit was made."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "device": name_of(device),
        **{library: version(library) for library in LIBRARIES},
    }
