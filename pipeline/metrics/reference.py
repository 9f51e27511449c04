"""What a restored set is compared with, and the files of statistics that hold it."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from pipeline import storage
from pipeline.errors import JobError
from pipeline.job import Published
from pipeline.metrics import SETS, SPACE_WEIGHTS, SetMetric, refuse_missing_weights
from pipeline.metrics.distances import Sample
from pipeline.metrics.features import SIZES, Extractor
from pipeline.metrics.moments import Gaussian, Moments
from pipeline.metrics.sets import PAIRS_MOST, share
from pipeline.metrics.source import Pictures
from pipeline.metrics.weights import MissingWeights
from pipeline.records import MAX_TABLE, regular
from pipeline.storage import Location, publish

STATISTICS = "https://www.cs.cmu.edu/~clean-fid/stats/"


@dataclass(frozen=True)
class Reference:
    """The true images of the run (`paired`), or statistics in files.

    Attributes:
        title: in words. files: where the moments for a space are, or (true) the features.
        size: side of its images, pixels, None where the title does not say.
        care: why it must be read with care, known when the files are.
    """

    title: str
    paired: bool = False
    files: Callable[[str, bool], Location] | None = None
    size: int | None = None
    care: list[str] = field(default_factory=list)

    def sample(self, metric: SetMetric) -> Sample:
        """The reference as a set, with features where the metric needs them.

        Raises:
            JobError: its file cannot be read, is of another space, or lacks the features.
        """
        assert self.files is not None
        width = SIZES[metric.space]
        stored = read(self.files(metric.space, False), ["mu", "sigma", "n"])
        shapes = {name: values.shape for name, values in stored.items() if name != "n"}
        if shapes != {"mu": (width,), "sigma": (width, width)}:
            raise JobError(
                f"reference: {self.title} does not hold mu and sigma of {width} features; make it with "
                "`kintsugi stats`"
            )
        mu, sigma = (as_float(stored[name], f"{name} of {self.title}") for name in ("mu", "sigma"))
        if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-12 * sigma.diagonal().max()):
            raise JobError(f"reference: sigma of {self.title} is no covariance: it is not symmetric")
        n, gaussian = int(stored["n"]) if "n" in stored else None, Gaussian(mu, sigma)
        if metric.moments:
            return Sample(n, gaussian)
        held = read(self.files(metric.space, True), ["features", "feats"])
        features = held.get("features", held.get("feats"))  # the latter is clean-fid's name
        if features is None:
            raise JobError(
                f"reference: {self.title} holds no features, which KID, precision and recall compare; "
                "make it with `kintsugi stats`"
            )
        if features.ndim != 2 or features.shape[1] != width:
            raise JobError(f"reference: features of {self.title} are not (n, {width})")
        # clean-fid's are of all images, in the order of their files.
        some = np.random.default_rng(0).permutation(len(features))[:PAIRS_MOST]
        return Sample(n, gaussian, features=as_float(features[some], f"features of {self.title}"))

    def digest(self, metric: SetMetric) -> str | None:
        """SHA-256 of the file that the metric compares with; None of the true images.

        Raises:
            JobError: it cannot be read.
        """
        return None if self.files is None else sha256(self.files(metric.space, not metric.moments))

    def warnings(self, space: str, size: int) -> list[str]:
        """Why a number that compares images of a size with this must be read with care."""
        if self.files is None:
            return []
        stored = read(self.files(space, False), ["n", "size", "weights"])
        found = list(self.care)
        its = self.size if "size" not in stored else int(stored["size"])
        if its not in (None, size):
            sizes = f"{its} pixels" if its else "several sizes"
            found.append(f"images of {size} pixels are compared with a reference of {sizes}")
        made_with, weights = str(stored.get("weights", "")), SPACE_WEIGHTS[space]
        with suppress(MissingWeights):  # where a report is made the network need not be
            if made_with and weights is not None and made_with != weights.digest():
                found.append(f"the reference was made with other weights, of SHA-256 {made_with}")
        if "n" in stored and int(stored["n"]) < SIZES[space]:
            found.append(f"the reference has {int(stored['n'])} samples, fewer than features")
        return found


def read(file: Location, names: Sequence[str]) -> dict[str, Any]:
    """Those of the arrays that a file has.

    Raises:
        JobError: it cannot be read.
    """
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {name: stored[name] for name in names if name in stored}
    except (OSError, ValueError, EOFError, TypeError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise JobError(f"reference: {file} cannot be read as an .npz: {error}") from error


def sha256(file: Location) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"reference: {file} cannot be read: {error}") from error


def as_float(values: np.ndarray, what: str) -> np.ndarray:
    """Real finite numbers as float64."""
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise JobError(f"reference: {what} are not all finite numbers")
    return values.astype(np.float64)


def reference_of(given: Published | str, run: Location) -> Reference:
    """What a job's `reference` names; of images, statistics are computed once and kept in the run directory.

    Kept ones of other images, or made with other weights, are computed anew; if the images are not there any
    more, they are used with a warning. What cannot be read is found when it is needed.
    """
    if given == "truth":
        return Reference("the true images of this run", paired=True)
    if isinstance(given, Published):
        title = f"clean-fid's statistics of {given.name}, {given.split}, {given.resolution}"
        size = None if given.resolution == "na" else given.resolution
        return Reference(title, files=lambda space, features: published(given, space, features), size=size)
    if given.endswith(".npz"):
        return Reference(given, files=lambda space, features: storage.at(given))
    care: list[str] = []

    @cache
    def computed(space: str, features: bool) -> Location:
        file = run / f"reference-{space}.npz"
        with suppress(FileNotFoundError):
            regular(file, MAX_TABLE)
        try:
            pictures = Pictures("reference", given)
        except JobError:
            if not is_of(file, source=given):
                raise
            care.append(
                "its images are not there any more: these are statistics that were made of them before"
            )
            return file
        weights, is_with = SPACE_WEIGHTS[space], {"images": pictures.digest()}
        if weights is not None:
            with suppress(MissingWeights):  # then those that are kept must do
                is_with["weights"] = weights.digest()
        if not is_of(file, **is_with):
            from pipeline.executors import default_device

            make_statistics(pictures, file, space, default_device())
        return file

    return Reference(given, files=computed, care=care)


def is_of(file: Location, **made_of: str) -> bool:
    """Whether statistics are there, whole, and made of this."""
    try:
        stored = read(file, list(made_of))
    except JobError:
        return False
    return {name: str(value) for name, value in stored.items()} == made_of


def published(given: Published, space: str, features: bool) -> Path:
    """clean-fid's file of statistics, where clean-fid looks for it."""
    import importlib.util

    # Found, not imported, which takes seconds.
    package = importlib.util.find_spec("cleanfid")
    assert package is not None
    assert package.origin is not None
    kind = "_kid" if features else ""
    name = f"{given.name}_{space}_{given.split}_{given.resolution}{kind}.npz".lower()
    return Path(package.origin).parent / "stats" / name


def refuse_missing(metrics: Sequence[str], given: Published | str) -> None:
    """Refuse metrics that lack a file, of weights or of their reference, before anything runs.

    Raises:
        JobError: weights or reference statistics are missing, or the statistics do not fit; the message says
            which, and how to get them.
    """
    try:
        refuse_missing_weights(metrics)
    except MissingWeights as error:
        raise JobError(str(error)) from error
    asked = {name: SETS[name] for name in metrics if name in SETS}
    if not asked or given == "truth":
        return
    if isinstance(given, Published):
        for name, metric in asked.items():
            needed = [False] if metric.moments else [False, True]
            for file in (published(given, metric.space, features) for features in needed):
                if not file.is_file():
                    raise JobError(
                        f"reference: {name} needs clean-fid's statistics {file.name}, which are missing:\n"
                        f"  curl -L --create-dirs -o {file} {STATISTICS}{file.name}\n"
                        "where clean-fid has published them for this data set, or name a folder or an .npz"
                    )
            reference_of(given, Path()).sample(metric)
    elif given.endswith(".npz"):
        if not storage.at(given).is_file():
            raise JobError(f"reference: no such file: {given}; make it with `kintsugi stats`")
        stored = read(storage.at(given), ["mode"])
        mode = str(stored["mode"]) if "mode" in stored else None
        for name, metric in asked.items():
            if mode not in (None, metric.space):
                raise JobError(
                    f"reference: {given} was made with --mode {mode}, and {name} needs {metric.space}; "
                    "leave the metric out, or make statistics of that mode"
                )
            reference_of(given, Path()).sample(metric)
    else:
        Pictures("reference", given)


def make_statistics(
    pictures: Pictures,
    out: Location,
    mode: str,
    device: str,
    on_image: Callable[[], None] = lambda: None,
) -> int:
    """Write reference statistics: mu and sigma as clean-fid names them, with what they were made of.

    These are mode, n, size (side of the images, 0 where they differ), weights (SHA-256), source (the
    patterns), images (a digest of which they are), and the features of at most 10,000 images, chosen by the
    hash of their keys.

    Returns:
        how many images there are.

    Raises:
        JobError: an image cannot be read, or weights are missing.
    """
    try:
        extract = Extractor([mode], device)
    except MissingWeights as error:
        raise JobError(str(error)) from error
    chosen = set(sorted(pictures.places, key=lambda key: (share(key), key))[:PAIRS_MOST])
    moments, kept, sizes = Moments(SIZES[mode]), [], set()
    for found in pictures.read_all(pictures.places):
        if found.image is None:
            raise JobError(f"{found.key}: {found.error}")
        features = extract(found.key, found.image)[mode]
        moments.add(features[None])
        if found.key in chosen:
            kept.append(features)
        sizes |= set(found.image.shape[:2])
        on_image()
    if moments.n < 2:
        raise JobError("reference statistics take at least two images")
    weights = SPACE_WEIGHTS[mode]
    gaussian = moments.gaussian
    with publish(out) as temporary, temporary.open("wb") as stream:
        np.savez(
            stream,
            mu=gaussian.mean,
            sigma=gaussian.covariance,
            n=moments.n,
            mode=mode,
            size=sizes.pop() if len(sizes) == 1 else 0,
            weights="" if weights is None else weights.digest(),
            source=pictures.name,
            images=pictures.digest(),
            features=np.stack(kept),
        )
    return moments.n
