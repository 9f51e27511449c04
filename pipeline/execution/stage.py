"""The stage: degrade a batch of images, restore it, score it. Knows nothing of shards and rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from kintsugi import priors
from kintsugi.device import sent
from kintsugi.errors import JobError
from kintsugi.operators import SpecError
from kintsugi.operators.stack import all_or_first
from kintsugi.pipeline.data.convert import Images, Measurements
from kintsugi.pipeline.data.decode import Convert, Decoded
from kintsugi.pipeline.data.pictures import BITS
from kintsugi.pipeline.execution.checkpoints import on_this_node
from kintsugi.pipeline.execution.degrade import baselines, degrade, eight_bits, levels
from kintsugi.pipeline.execution.memory import Memory, largest_batch
from kintsugi.pipeline.execution.own import Own, prompts_of
from kintsugi.pipeline.execution.problems import Prepared, Problems
from kintsugi.pipeline.execution.rehearsal import rehearse
from kintsugi.pipeline.execution.round_trip import round_trip
from kintsugi.pipeline.execution.samples import Samples, Several
from kintsugi.pipeline.execution.timing import timed
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import SETS
from kintsugi.pipeline.metrics.features import Extractor
from kintsugi.pipeline.metrics.registry import TRUTH, baseline_column
from kintsugi.pipeline.metrics.scoring import Scorer, residual
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.priors import speed
from kintsugi.priors.base import Described, NetworkPrior, channels_of
from kintsugi.priors.grouped import grouped, said
from kintsugi.samplers.inversion import there_and_back

BATCH_ON_CPU = 16  # `auto` where memory does not tell: larger batches are no faster there
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

T = TypeVar("T")
Form = tuple[tuple[tuple[int, ...], np.dtype], tuple[tuple[int, ...], np.dtype] | None]
"""Shape and type of a sample, and of its truth if that lies beside it."""

Work = Callable[[Prepared, Sequence[Decoded], np.ndarray], list[T]]
"""Of a problem, a batch of samples, and their arrays stacked, makes a result for each.

It is called again with fewer when memory runs out.
"""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What came of one sample, restored here or given.

    Attributes:
        metrics: of the restored picture, by name.
        features: of it, and of the truth under "SPACE_truth", where set metrics ask for them.
        seconds: of the sampler. error: why it failed all the same.
    """

    metrics: dict[str, float]
    features: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Restored(Scored):
    """One restored sample.

    Pictures are (H, W, C) of uint8, or of uint16 if the job wants 16 bits; `measurement` is uint8 with the
    measurement's size and channels, or is its pseudo-inverse where it is no image. `seconds` is the
    sampler's time for the batch divided by its size. `own`: where it has parameters of its own.
    `of_autoencoder`: what a prior of latents was asked for, by column.
    """

    residual: float
    forwards: int
    vjps: int
    batch_size: int
    restored: np.ndarray
    measurement: np.ndarray
    of_autoencoder: Mapping[str, int] = field(default_factory=dict)
    several: Several | None = None
    own: Own | None = None


class Loaded(NamedTuple):
    """A prior in a job's precision, and what is known of it."""

    prior: NetworkPrior
    described: Described


class Stage:
    """Everything a worker keeps between batches.

    Args:
        files: what the files of the operator must be, by field; nothing is asked of others.
        loaded: of a stage whose prior this job has, too; else it is loaded.

    Attributes:
        loaded: the prior, and what is known of it.
        seconds: time spent by part (degrade, sample, score) since the start; forward and vjp are the
            network's within sample, scoring is another thread's beside all of it.
        notes: what the user should know.

    Raises:
        JobError: the prior cannot be loaded, or the sampler does not fit it; weights of a metric are missing,
            or a file is not what it must be.
    """

    def __init__(
        self,
        job: Job,
        device: str | torch.device,
        files: Mapping[str, str] | None = None,
        loaded: Loaded | None = None,
    ):
        self.job, self.device = job, torch.device(device)
        self.scorer, self.extractor = measuring(job, self.device)
        prior, described = self.loaded = loaded or prior_of(job, self.device)
        try:
            seen = grouped(prior, channels_of(described), job.data.channels)
            self.problems = Problems(job, seen, self.device, described.multiple, files or {})
        except ValueError as error:
            raise JobError(f"sampler.{error}") from error
        data = job.data
        self.convert: Convert = Images(data.size, data.fit, data.range, data.channels)
        if job.from_measurements:
            channels, pixels = self.problems.measured
            self.convert = Measurements(channels, data.range, job.degradation.most_noise, pixels)
        self.prior_sha256: str | None = prior.sha256
        self.notes: list[str] = [note] if (note := said(channels_of(described), job.data.channels)) else []
        batch_size = BATCH_ON_CPU if job.compute.batch_size == "auto" else job.compute.batch_size
        self.memory = Memory(self.problems, prior, batch_size, self.notes)
        self.seconds = dict.fromkeys(("degrade", "sample", "forward", "vjp", "score", "scoring"), 0.0)

    @property
    def batch_size(self) -> int:
        """Samples, or tiles, restored at once; halved when memory runs out."""
        return self.memory.batch_size

    @batch_size.setter
    def batch_size(self, count: int) -> None:
        """From the next batch on."""
        self.memory.batch_size = count

    def largest_batch(self) -> int:
        """The largest batch of a unit's samples that fits into a GPU's memory; on a CPU `BATCH_ON_CPU`."""
        compute = self.job.compute
        if self.device.type != "cuda":
            return min(compute.unit_size, BATCH_ON_CPU)
        return largest_batch(self.rehearse, compute.unit_size, self.device, compute.gpus_per_actor)

    def rehearse(self, count: int) -> None:
        """What needs the memory of a whole batch, and little time; raises as `rehearsal.rehearse`."""
        self.batch_size = count
        rehearse(self.problems, self.device, count, self.score)

    def run(self, samples: Sequence[Decoded]) -> list[Restored]:
        """Restore and score samples: those of one shape and type together, in less memory when it runs out.

        Raises:
            Exception: what the operator, prior, sampler or a metric raised.
        """
        return self.in_batches(samples, lambda *batch: self.results(self.sampled(*batch), "score"))

    def begin(self, samples: Sequence[Decoded]) -> Callable[[], list[Restored]]:
        """Restore samples; returns what scores them, in another thread while the next are restored.

        Raises:
            Exception: what the operator, prior or sampler raised. The score raises what a metric raised, or
                that memory ran out: `run` is to do the samples again, in less.
        """
        if self.scorer.needs_prior:  # which is of this thread
            return partial(list, self.run(samples))
        return partial(self.results, self.in_batches(samples, self.sampled), "scoring")

    def results(self, made: Sequence[Callable[[], T]], part: str) -> list[T]:
        """What they return; what is timed as scoring has on a GPU a stream beside that of the next batch."""
        beside: Any = torch.Stream(self.device) if (part, self.device.type) == ("scoring", "cuda") else None
        with torch.cuda.stream(beside), timed(self.seconds, part, self.device):
            return [result() for result in made]

    def in_batches(self, samples: Sequence[Decoded], work: Work[T]) -> list[T]:
        """What the work returns for each sample, in their order; raises as `run`."""
        alike: dict[Form, list[int]] = {}
        for place, sample in enumerate(samples):
            alike.setdefault(form_of(sample), []).append(place)
        results: dict[int, T] = {}
        for places in alike.values():
            results |= zip(places, self.of_one_shape([samples[p] for p in places], work), strict=True)
        return [results[place] for place in range(len(samples))]

    def of_one_shape(self, samples: Sequence[Decoded], work: Work[T]) -> list[T]:
        """As `in_batches`, for samples of one shape and type."""
        problem = self.problems.of_samples(samples[0].array.shape)
        # Of an image that is larger than a tile, the tiles are the batch.
        whole = max(problem.operator.image_shape[1:]) <= self.job.data.size
        results: list[T] = []

        def together(part: Sequence[Decoded]) -> list[T]:
            prepared = self.problems.of_batch(problem, part)
            return work(prepared, part, np.stack([sample.array for sample in part]))

        def next_batch() -> list[T]:
            part = samples[len(results) :][: self.batch_size if whole else 1]
            return all_or_first(part, together)

        while len(results) < len(samples):
            results += self.memory.persist(next_batch, whole)
        return results

    def sampled(
        self, problem: Prepared, samples: Sequence[Decoded], arrays: np.ndarray
    ) -> list[Callable[[], Restored]]:
        """Restore samples, whose arrays are (B, H, W, C) or (B, C, h, w); raises as `run`.

        What is returned for each makes its result; the first that is called scores the batch.
        """
        problem.begin([sample.label for sample in samples], prompts_of(self.job, samples), self.batch_size)
        job, keys = self.job, [sample.key for sample in samples]
        with timed(self.seconds, "degrade", self.device), torch.no_grad():
            beside = [sample.truth for sample in samples if sample.truth is not None]
            y, truth = degrade(job, problem, keys, sent(torch.from_numpy(arrays), self.device), beside)
        before = self.seconds["sample"]
        with timed(self.seconds, "sample", self.device), torch.no_grad():
            problem = self.problems.as_told(problem, y)
        problem.metered.begin()
        drawn, scored = Samples(job, keys, y), truth if job.calibrated else None
        while drawn.wanted:
            with timed(self.seconds, "sample", self.device):
                image = drawn.draw(problem)
            if scored is not None:
                with timed(self.seconds, "score", self.device):
                    drawn.score(self.scorer(image, scored, again(self.scorer, problem, image)))
        for part, spent in problem.metered.seconds().items():
            self.seconds[part] += spent
        seen = (np.stack(beside) if beside else arrays) if truth is not None else None
        spent = (self.seconds["sample"] - before) / len(keys)
        batch = cache(partial(self.scored, problem, drawn, truth, seen, spent))
        return [partial(nth_of, batch, i) for i in range(len(keys))]

    @torch.no_grad()
    def scored(
        self, problem: Prepared, drawn: Samples, truth: Tensor | None, true: np.ndarray | None, seconds: float
    ) -> list[Restored]:
        """The results of a batch that was restored, in `seconds` each; true: its truth as it was read."""
        job, y, image, count = self.job, drawn.y, drawn.mean, len(drawn.keys)
        finite = image.isfinite().flatten(1).all(1).tolist()
        metrics = self.score(problem, y, image, truth)
        if truth is not None and job.calibrated:
            metrics |= drawn.calibration(truth)
        residuals = residual(problem.operator.forward(image), y)
        seen, bits = {"": levels(image, 8)}, BITS[job.restoration.format]
        if true is not None and job.reference == "truth":
            seen[TRUTH] = eight_bits(true)
        restored = seen[""] if bits == 8 else levels(image, bits)
        measurement = levels(y if problem.operator.pixels else problem.operator.pinv(y), 8)
        whole = [i for i in range(count) if finite[i]]
        pictures = {of: [images[i] for i in whole] for of, images in seen.items()}
        of_whole = features_of(self.extractor, [drawn.keys[i] for i in whole], pictures)
        features = dict(zip(whole, of_whole, strict=True))
        return [
            Restored(
                metrics={name: values[i] for name, values in metrics.items()},
                residual=residuals[i],
                seconds=seconds,
                forwards=drawn.forwards[i],
                vjps=drawn.vjps[i],
                of_autoencoder=drawn.of_autoencoder,
                batch_size=count,
                restored=restored[i],
                measurement=measurement[i],
                error=None if finite[i] else "NotFinite: the sampler's result contains NaN or infinity",
                several=several,
                own=problem.own[i] if problem.own else None,
                features=features.get(i, {}),
            )
            for i, several in enumerate(drawn.several())
        ]

    @torch.no_grad()
    def score(
        self, problem: Prepared, y: Tensor, image: Tensor, truth: Tensor | None
    ) -> dict[str, list[float]]:
        """The metrics of restored images; where there is a truth, also of what y gives without a network."""
        found = self.scorer(image, truth, again(self.scorer, problem, image))
        if truth is not None and found:
            for baseline, estimate in baselines(problem.alone, y).items():
                values = self.scorer(estimate, truth)
                found |= {baseline_column(name, baseline): of for name, of in values.items()}
        return found | round_trip(problem, truth)


def nth_of(batch: Callable[[], Sequence[T]], place: int) -> T:
    """One result of a batch."""
    return batch()[place]


def again(scorer: Scorer, problem: Prepared, image: Tensor) -> Tensor | None:
    """What the prior makes of restored images there and back, if a metric asks for it."""
    return there_and_back(problem.metered.prior, image.clamp(-1, 1)).image if scorer.needs_prior else None


def prior_of(job: Job, device: torch.device) -> Loaded:
    """A job's prior.

    Raises:
        JobError: it cannot be loaded.
    """
    try:
        here = on_this_node(job.prior)
        prior, described = priors.load(here, device=device), priors.describe(here)
    except (SpecError, OSError) as error:
        raise JobError(str(error)) from error
    precision = PRECISIONS[job.compute.on(device.type).precision]
    if precision is not None and hasattr(prior, "network"):  # that of a plug-in may have none
        speed.half_precision(prior, precision)
        if device.type == "cuda":
            speed.channels_last(prior)
    return Loaded(prior, described)


def compile_network(stage: Stage) -> None:
    """Compile a stage's network for whole batches, if its job asks for it."""
    mode, batch = stage.job.compute.on(stage.device.type).compile, stage.batch_size
    if mode is None or mode == "auto":  # which `on` has decided
        return
    if why := speed.compiled(stage.loaded.prior, mode, batch, lambda: stage.rehearse(batch)):
        stage.notes.append(why)


def form_of(sample: Decoded) -> Form:
    """What samples that are restored together have in common."""
    true = None if sample.truth is None else (sample.truth.shape, sample.truth.dtype)
    return (sample.array.shape, sample.array.dtype), true


def measuring(job: Job, device: torch.device) -> tuple[Scorer, Extractor]:
    """What measures images, and what sees them for metrics of sets; raises a JobError without weights."""
    try:
        spaces = {SETS[name].space for name in job.metrics if name in SETS}
        return Scorer(job.metrics, device), Extractor(spaces, device)
    except MissingWeights as error:
        raise JobError(f"metrics: {error}") from error


def features_of(
    extractor: Extractor, keys: Sequence[str], pictures: Mapping[str, Sequence[np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    """What metrics of sets see of each sample's pictures (H, W, C) uint8, by space with their name behind it.

    Args:
        pictures: of all samples, by their name: "" or TRUTH.
    """
    found: list[dict[str, np.ndarray]] = [{} for _ in keys]
    for of, images in pictures.items():
        for features, seen in zip(found, extractor(keys, images, of_data=of == TRUTH), strict=True):
            features |= {space + of: values for space, values in seen.items()}
    return found
