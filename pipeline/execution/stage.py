"""The stage: degrade a batch of images, restore it, score it. Knows nothing of shards and rows."""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kintsugi import operators, priors, samplers
from kintsugi.errors import JobError
from kintsugi.operators import Operator, SpecError
from kintsugi.pipeline import storage
from kintsugi.pipeline.data.decode import MAX_PIXELS
from kintsugi.pipeline.data.depth import rounded
from kintsugi.pipeline.data.pictures import BITS
from kintsugi.pipeline.execution.checkpoints import on_this_node
from kintsugi.pipeline.execution.identity import of_operator, refuse_changed
from kintsugi.pipeline.execution.timing import Metered
from kintsugi.pipeline.job import Degradation, Job
from kintsugi.pipeline.metrics import SETS, TRUTH, baseline_column
from kintsugi.pipeline.metrics.features import Extractor
from kintsugi.pipeline.metrics.scoring import Scorer, residual
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.priors import speed
from kintsugi.priors.base import ClassConditional, Prior
from kintsugi.priors.tiled import Tiled
from kintsugi.samplers import KeyedNoise
from kintsugi.samplers.base import Sampler
from kintsugi.samplers.lmmse import linear_mmse

BATCH_ON_CPU = 16  # `auto` where memory does not tell: larger batches are no faster there
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
MAX_SIDE = 16_384  # whose decomposition takes minutes
PROBLEMS = 8  # sizes of measurements whose decompositions are kept
WAITS = 5  # pauses of 1, 2, 4, … s in a row for memory of the machine, which is not ours alone
NO_MEMORY = ("allocate memory", "not enough memory", "bad_alloc")  # in texts of torch's RuntimeErrors

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Restored:
    """One restored sample.

    Pictures are (H, W, 3) of uint8, or of uint16 if the job wants 16 bits; `measurement` is uint8 with the
    measurement's size and channels, or is its pseudo-inverse where it is no image. `seconds` is the
    sampler's time for the batch divided by its size.

    Attributes:
        samples, deviation, spread: where there are several samples: each, their standard deviation
            (3, H, W) float16 on [-1, 1], and the RMS of that.
        features: of the restored picture, and of the truth under "SPACE_truth", where set metrics ask for
            them.
    """

    metrics: dict[str, float]
    residual: float
    seconds: float
    forwards: int
    vjps: int
    batch_size: int
    restored: np.ndarray
    measurement: np.ndarray
    error: str | None
    samples: list[np.ndarray] = field(default_factory=list)
    deviation: np.ndarray | None = None
    spread: float | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What restoring images of one size takes. A sampler of its own, for it remembers its coefficients."""

    operator: Operator
    sampler: Sampler
    prior: Prior
    metered: Metered


class Shapes(NamedTuple):
    """Of an operator's images and measurements."""

    image: Shape
    measurement: tuple[int, ...]


class Stage:
    """Everything a worker keeps between batches.

    Args:
        files: what the files of the operator must be, by field; nothing is asked of others.

    Attributes:
        seconds: time spent by part (degrade, sample, score) since the start; forward and vjp are the
            network's within sample.
        batch_size: samples, or tiles, restored at once; halved when memory runs out.
        waits: pauses for memory since a batch last succeeded.
        notes: what the user should know.
        typical: shapes of images with sides `data.size`; of measurements perhaps a little larger, or None
            where none of these fits the operator.

    Raises:
        JobError: the prior cannot be loaded, or the sampler does not fit it; weights of a metric are missing,
            or a file is not what it must be.
    """

    def __init__(self, job: Job, device: str | torch.device, files: Mapping[str, str] | None = None):
        self.job, self.device, self.files = job, torch.device(device), files or {}
        try:
            self.scorer = Scorer(job.metrics, device)
            self.extractor = Extractor({SETS[name].space for name in job.metrics if name in SETS}, device)
        except MissingWeights as error:
            raise JobError(f"metrics: {error}") from error
        try:
            here = on_this_node(job.prior)
            self.prior = priors.load(here, device=device)
            self.multiple = priors.describe(here).multiple
        except (SpecError, OSError) as error:
            raise JobError(str(error)) from error
        precision = PRECISIONS[job.compute.precision]
        if precision is not None:
            speed.half_precision(self.prior, precision)
            if self.device.type == "cuda":
                speed.channels_last(self.prior)
        self.problems: OrderedDict[Shape, Prepared] = OrderedDict()
        self.problems_kept = PROBLEMS
        self.batch_size = BATCH_ON_CPU if job.compute.batch_size == "auto" else job.compute.batch_size
        self.notes: list[str] = []
        self.waits = 0
        self.seconds = dict.fromkeys(("degrade", "sample", "forward", "vjp", "score"), 0.0)
        try:
            self.typical = self.typical_shapes()
        except ValueError as error:
            raise JobError(f"sampler.{error}") from error

    @property
    def batch_size(self) -> int:
        return self._batch_size

    @batch_size.setter
    def batch_size(self, count: int) -> None:
        self._batch_size = count
        for problem in self.problems.values():
            if isinstance(problem.prior, Tiled):
                problem.prior.batch = count

    def typical_shapes(self) -> Shapes | None:
        size = self.job.data.size
        for side in range(size, size + size // 4 if self.job.from_measurements else size + 1):
            with suppress(SpecError):
                operator = self.problem((3, side, side)).operator
                return Shapes(operator.image_shape, operator.measurement_shape)
        return None

    def problem(self, shape: Shape) -> Prepared:
        """The problem of images of a shape; those of a few shapes are kept.

        Raises:
            SpecError: the operator does not fit the shape.
            ValueError: the sampler does not fit; the message begins with the field.
            JobError: a file of the operator is not what it must be.
        """
        if shape in self.problems:
            self.problems.move_to_end(shape)
            return self.problems[shape]
        degradation = self.job.degradation
        self.check_files()
        operator = operators.build(degradation.operator, shape, device=self.device)
        self.check_files()  # again, so that what was read in between is what is checked
        prior: Prior = self.prior
        if self.job.from_measurements:
            overlap = min(self.job.restoration.overlap, self.job.data.size // 2)
            prior = Tiled(self.prior, self.job.data.size, self.multiple, overlap, self.batch_size)
        metered = Metered(prior, self.device)
        found = Prepared(operator, samplers.build(self.job.sampler), prior, metered)
        found.sampler.prepare(metered, operator, degradation.sigma_y, torch.empty(0, device=self.device))
        self.problems[shape] = found
        self.forget_problems()
        return found

    def check_files(self) -> None:
        """Raise a JobError if a file of the operator is gone or not what it must be."""
        if self.files:
            refuse_changed(self.files, of_operator(self.job))

    def forget_problems(self) -> None:
        """Keep the problems that were used last."""
        while len(self.problems) > self.problems_kept:
            self.problems.popitem(last=False)

    def problem_of(self, sample: tuple[int, ...]) -> Prepared:
        """The problem of samples of this shape: of images, (H, W, 3), or of measurements, (C, h, w).

        Raises:
            ValueError: there is none, or its images would be too large.
        """
        if not self.job.from_measurements:
            height, width, channels = sample
            return self.problem((channels, height, width))
        rows = columns = 1.0
        if self.typical is not None:
            image, measurement = self.typical
            if measurement == sample:
                return self.problem(image)
            rows, columns = (whole / part for whole, part in zip(image[1:], measurement[1:], strict=True))
        height, width = round(sample[1] * rows), round(sample[2] * columns)
        if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
            raise ValueError(
                f"its restoration would have {height}x{width} pixels, more than {MAX_PIXELS:,} or a side of "
                f"{MAX_SIDE:,}"
            )
        found = self.problem((3, height, width))
        if found.operator.measurement_shape != sample:
            raise ValueError(
                f"a measurement of shape {sample}; of images of {height}x{width} the operator makes "
                f"{found.operator.measurement_shape}"
            )
        return found

    @property
    def measured_channels(self) -> int:
        """Channels of a measurement."""
        return 3 if self.typical is None else self.typical.measurement[0]

    @property
    def measures_pixels(self) -> bool:
        """Whether measurements are images."""
        return self.typical is None or self.problem(self.typical.image).operator.pixels

    def compile(self) -> None:
        """Compile the network for whole batches, if the job asks for it."""
        mode, batch = self.job.compute.compile, self.batch_size
        if mode is not None and (
            why := speed.compiled(self.prior, mode, batch, lambda: self.rehearse(batch))
        ):
            self.notes.append(why)

    def largest_batch(self, limit: int) -> int:
        """The largest batch up to `limit` that fits into a GPU's memory, to an eighth.

        A tenth of the memory is left, for what a rehearsal does not show.
        """
        share = self.job.compute.gpus_per_actor if 0 < self.job.compute.gpus_per_actor < 1 else 1.0
        fits, fails = 0, limit + 1
        with memory_limited(self.device, 0.9 * share):
            while fails - fits > max(1, fits // 8):
                # Doubling until something fails, then halving the interval.
                count = min(max(1, 2 * fits), limit) if fails > limit else (fits + fails) // 2
                try:
                    self.rehearse(count)
                    fits = count
                except torch.OutOfMemoryError:
                    fails = count
                self.release_memory()
                if fails == 1:
                    return 1  # `run` will recompute activations, or say that nothing fits
        return fits

    def rehearse(self, count: int) -> None:
        """The first step of the sampler on a batch and the evaluation after it, and the batch's scores.

        It needs the memory of a whole run, and little time.

        Raises:
            JobError: no image of about `data.size` fits the operator.
        """
        if self.typical is None:
            raise JobError("compute: the operator fits no image of data.size; give batch_size as a number")
        problem = self.problem(self.typical.image)
        self.batch_size = count
        truth = torch.zeros(count, *problem.operator.image_shape, device=self.device)
        noise = KeyedNoise(0, [str(i) for i in range(count)])
        self.label(problem.prior, [0] * count)
        y = problem.operator.forward(truth)
        sigma_y = self.job.degradation.sigma_y
        with suppress(RehearsedError):
            problem.sampler(
                problem.metered, problem.operator, y, noise, sigma_y=sigma_y, callback=end_of_rehearsal
            )
        self.score(problem.operator, y, truth, truth)

    def release_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(
        self,
        keys: Sequence[str],
        samples: Sequence[np.ndarray],
        labels: Sequence[int | None] | None = None,
    ) -> list[Restored]:
        """Restore images (H, W, 3), uint8 or float32 on [-1, 1], or measurements (C, h, w) float32.

        Those of one shape and type together.

        Too little memory halves the batch, and stays so; when a single image of one tile does not fit,
        activations are computed twice instead of being kept. What a larger image lacks is its own affair.
        Memory of the machine, which others use too, is waited for in the end.

        Raises:
            Exception: what the operator, prior or sampler raised.
        """
        labels = labels or [None] * len(keys)
        shapes: dict[tuple[tuple[int, ...], np.dtype], list[int]] = {}
        for place, sample in enumerate(samples):
            shapes.setdefault((sample.shape, sample.dtype), []).append(place)
        results: dict[int, Restored] = {}
        for places in shapes.values():
            alike = self.run_alike(
                [keys[place] for place in places],
                [samples[place] for place in places],
                [labels[place] for place in places],
            )
            results |= zip(places, alike, strict=True)
        return [results[place] for place in range(len(keys))]

    def run_alike(
        self, keys: Sequence[str], samples: Sequence[np.ndarray], labels: Sequence[int | None]
    ) -> list[Restored]:
        """Restore samples of one shape."""
        results: list[Restored] = []
        problem = self.problem_of(samples[0].shape)
        # Of an image that is larger than a tile, the tiles are the batch.
        whole = max(problem.operator.image_shape[1:]) <= self.job.data.size
        before = self.batch_size
        while len(results) < len(keys):
            part = slice(len(results), len(results) + (self.batch_size if whole else 1))
            pause = 0.0
            try:
                results += self.run_batch(problem, keys[part], np.stack(samples[part]), labels[part])
                self.waits = 0
                continue
            except Exception as error:
                if not lacks_memory(error):
                    raise
                change = self.use_less_memory(whole)
                if change is None and not isinstance(error, torch.OutOfMemoryError) and self.waits < WAITS:
                    self.waits += 1
                    pause = storage.pause(self.waits)
                    change = f"waiting for {pause:g} s"
                if change is None:
                    if not whole:
                        self.batch_size = before
                    raise
            # Outside the handler, whose traceback keeps the tensors of the failed batch alive.
            self.release_memory()
            self.notes.append(f"out of memory: {change}")
            time.sleep(pause)
        return results

    def use_less_memory(self, whole: bool) -> str | None:
        """Do something about memory that ran out; returns what, or None where nothing is left to do.

        Args:
            whole: the network sees whole images; of tiles it keeps no activations anyway.
        """
        if len(self.problems) > 1:
            self.problems_kept = 1
            self.forget_problems()
            return "one size of images at a time is kept prepared from now on"
        if self.batch_size > 1:
            self.batch_size = (self.batch_size + 1) // 2
            return f"batches of {self.batch_size}, not compiled from now on"
        if whole and speed.checkpointed(self.prior):
            return "activations are computed twice from now on"
        return None

    def label(self, prior: Prior, labels: Sequence[int | None]) -> None:
        """Tell a class-conditional prior the classes of the next batch.

        Raises:
            ValueError: a sample without a label.
        """
        if not isinstance(prior, ClassConditional) or prior.classes is None or prior.label is not None:
            return
        if None in labels:
            raise ValueError("the prior is class-conditional and the sample has no .cls; set prior.label")
        prior.labels = torch.tensor(labels, device=self.device)

    def run_batch(
        self, problem: Prepared, keys: Sequence[str], samples: np.ndarray, labels: Sequence[int | None]
    ) -> list[Restored]:
        operator, job = problem.operator, self.job
        self.label(problem.prior, labels)
        noise = KeyedNoise(job.seed, keys)
        truth = None
        with self.timed("degrade"), torch.no_grad():
            y = torch.from_numpy(samples).to(self.device)
            if not job.from_measurements:
                truth = y.permute(0, 3, 1, 2)
                truth = truth.float() / 127.5 - 1 if y.dtype == torch.uint8 else truth
                y = add_noise(operator.forward(truth), job.degradation, noise)
        before = self.seconds["sample"]
        count = job.restoration.samples_per_image
        bits = BITS[job.restoration.format]
        drawn: list[np.ndarray] = []
        spread = RunningDeviation()
        problem.metered.begin()
        with self.timed("sample"):
            for number in range(count):
                noise = KeyedNoise(job.seed, keys if number == 0 else [f"{k}\0{number}" for k in keys])
                outcome = problem.sampler(
                    problem.metered, operator, y, noise, sigma_y=job.degradation.sigma_y
                )
                if count > 1:
                    spread.add(outcome.image)
                    drawn.append(levels(outcome.image, bits))
        for part, spent in problem.metered.seconds().items():
            self.seconds[part] += spent
        seconds = (self.seconds["sample"] - before) / len(keys)
        with self.timed("score"), torch.no_grad():
            image = outcome.image if count == 1 else spread.mean
            finite = image.isfinite().flatten(1).all(1).tolist()
            metrics = self.score(operator, y, image, truth)
            residuals = residual(operator.forward(image), y)
            seen = y if operator.pixels else operator.pinv(y)
            deviation = spread.deviation.half().cpu().numpy() if count > 1 else [None] * len(keys)
            spreads = spread.deviation.square().mean((1, 2, 3)).sqrt().tolist() if count > 1 else deviation
            restored, measurement = levels(image, bits), levels(seen, 8)
            true = None if job.from_measurements else eight_bits(samples)
            features = [
                self.features(key, levels(image[i : i + 1], 8)[0], None if true is None else true[i])
                if finite[i] and self.extractor.spaces
                else {}
                for i, key in enumerate(keys)
            ]
        return [
            Restored(
                metrics={name: values[i] for name, values in metrics.items()},
                residual=residuals[i],
                seconds=seconds,
                forwards=count * outcome.forwards,
                vjps=count * outcome.vjps,
                batch_size=len(keys),
                restored=restored[i],
                measurement=measurement[i],
                error=None if finite[i] else "NotFinite: the sampler's result contains NaN or infinity",
                samples=[one[i] for one in drawn],
                deviation=deviation[i],
                spread=spreads[i],
                features=features[i],
            )
            for i in range(len(keys))
        ]

    @torch.no_grad()
    def score(
        self, operator: Operator, y: Tensor, image: Tensor, truth: Tensor | None
    ) -> dict[str, list[float]]:
        """The metrics of restored images; where there is a truth, also of what y gives without a network."""
        found = self.scorer(image, truth)
        if truth is not None and found:
            for baseline, estimate in baselines(operator, y, self.job.degradation.sigma_y).items():
                values = self.scorer(estimate, truth)
                found |= {baseline_column(name, baseline): of for name, of in values.items()}
        return found

    def features(self, key: str, restored: np.ndarray, truth: np.ndarray | None) -> dict[str, np.ndarray]:
        """What set metrics need to know of pictures (H, W, 3) uint8; of the truth if it is the reference."""
        found = self.extractor(key, restored)
        if truth is not None and self.job.reference == "truth":
            found |= {space + TRUTH: values for space, values in self.extractor(key, truth).items()}
        return found

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # once per part of a batch, not per step
        self.seconds[part] += time.perf_counter() - started


def lacks_memory(error: BaseException) -> bool:
    """Whether a device, or the machine, had too little memory for it: torch has no type for the latter."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)


class RehearsedError(Exception):
    """Ends a sampler's run early."""


def end_of_rehearsal(step: int, x: Tensor, prediction: Tensor) -> None:
    if step == 1:
        raise RehearsedError


@contextmanager
def memory_limited(device: torch.device, share: float) -> Iterator[None]:
    """Let this process use only a share of a GPU's memory."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def baselines(operator: Operator, y: Tensor, sigma_y: float) -> dict[str, Tensor]:
    """What measurements give without a network, (B, C, H, W): H⁺y, and of a matrix H the linear MMSE.

    Each by itself, so that the last digits do not depend on the batch.
    """
    single = [operator.pinv(y[i : i + 1]) for i in range(len(y))]
    found = {"pinv": torch.cat(single)}
    if operator.linear:
        known = map(operator.to_spectral, single)
        found["lmmse"] = torch.cat([linear_mmse(operator, each, sigma_y) for each in known])
    return found


def add_noise(y: Tensor, degradation: Degradation, noise: KeyedNoise) -> Tensor:
    """The measurement (B, …): y on the [-1, 1] scale with the job's noise, keyed by sample."""
    if (photons := degradation.poisson) is not None:
        rates = photons * ((y + 1) / 2).clamp_min(0)
        y = noise.poisson("photons", rates) / photons * 2 - 1
    if degradation.gaussian > 0:
        y = y + degradation.gaussian * noise.normal("measurement", tuple(y.shape[1:])).to(y)
    return y


class RunningDeviation:
    """Mean and standard deviation of samples, one batch after another (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, x: Tensor) -> None:
        self.count += 1
        if self.count == 1:
            self.mean, self.squares = torch.zeros_like(x), torch.zeros_like(x)
        difference = x - self.mean
        self.mean = self.mean + difference / self.count
        self.squares += difference * (x - self.mean)

    @property
    def deviation(self) -> Tensor:
        """Unbiased."""
        return (self.squares / (self.count - 1)).sqrt()


def eight_bits(picture: np.ndarray) -> np.ndarray:
    """An image as it was read, uint8 or float32 on [-1, 1], as uint8."""
    return picture if picture.dtype == np.uint8 else rounded(picture)


def levels(x: Tensor, bits: int) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] → (B, H, W, C) uint8 or uint16, clipped and rounded."""
    top = 2**bits - 1
    values = ((x + 1) * (top / 2)).round().clamp(0, top).permute(0, 2, 3, 1)
    array: np.ndarray = values.to(torch.uint8 if bits == 8 else torch.int32).cpu().numpy()
    return array.astype(np.uint16) if bits == 16 else array
