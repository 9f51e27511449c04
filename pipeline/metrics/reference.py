"""What a restored set is compared with, and the files of statistics that hold it."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from zipfile import BadZipFile

import numpy as np

from kintsugi.errors import JobError
from kintsugi.pipeline.metrics.distances import PAIRS_MOST, FeatureSet
from kintsugi.pipeline.metrics.features import SIZES
from kintsugi.pipeline.metrics.metric import SPACE_WEIGHTS, SetMetric
from kintsugi.pipeline.metrics.moments import Gaussian
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.pipeline.storage.location import Location


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

    def sample(self, metric: SetMetric) -> FeatureSet:
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
            return FeatureSet(n, gaussian)
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
        return FeatureSet(n, gaussian, features=as_float(features[some], f"features of {self.title}"))

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
    """Of the bytes of a file of statistics, hexadecimal; raises JobError where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise JobError(f"reference: {file} cannot be read: {error}") from error


def as_float(values: np.ndarray, what: str) -> np.ndarray:
    """Real finite numbers as float64."""
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise JobError(f"reference: {what} are not all finite numbers")
    return values.astype(np.float64)
