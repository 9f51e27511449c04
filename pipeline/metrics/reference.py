"""What a restored set is compared with, and the files of statistics that hold it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.job import JobError, Published
from pipeline.metrics import SETS, SPACE_WEIGHTS, refuse_missing_weights
from pipeline.metrics.distances import Sample
from pipeline.metrics.features import SIZES, Extractor
from pipeline.metrics.sets import PAIRS_MOST, share
from pipeline.metrics.source import Pictures
from pipeline.metrics.statistics import Gaussian, Moments
from pipeline.metrics.weights import MissingWeights
from pipeline.storage import Location, publish

STATISTICS = "https://www.cs.cmu.edu/~clean-fid/stats/"


@dataclass(frozen=True)
class Reference:
    """The true images of the run (`paired`), or statistics in files.

    Attributes:
        title: in words. files: where the moments for a space are, or (true) the features.
        size: side of its images, pixels, None where the title does not say.
    """

    title: str
    paired: bool = False
    files: Callable[[str, bool], Location] | None = None
    size: int | None = None

    def sample(self, space: str, features: bool) -> Sample:
        """The reference as a set.

        Raises:
            JobError: its file cannot be read, is of another space, or lacks the features.
        """
        assert self.files is not None
        stored = read(self.files(space, False))
        if stored.keys() & {"mu", "sigma"} != {"mu", "sigma"} or stored["mu"].shape != (SIZES[space],):
            raise JobError(
                f"reference: {self.title} does not hold mu and sigma of {SIZES[space]} features; make it "
                "with `kintsugi stats`"
            )
        kept = None
        if features:
            held = read(self.files(space, True))
            kept = held.get("features", held.get("feats"))  # the latter is clean-fid's name
            if kept is None:
                raise JobError(
                    f"reference: {self.title} holds no features, which KID, precision and recall compare; "
                    "make it with `kintsugi stats`"
                )
            kept = kept[:: -(-len(kept) // PAIRS_MOST)]  # clean-fid's are of all images
        gaussian = Gaussian(stored["mu"].astype(np.float64), stored["sigma"].astype(np.float64))
        return Sample(int(stored["n"]) if "n" in stored else None, gaussian, features=kept)

    def warnings(self, space: str, size: int) -> list[str]:
        """Why a number that compares images of a size with this must be read with care."""
        if self.files is None:
            return []
        stored, found = read(self.files(space, False)), []
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


def read(file: Location) -> dict[str, Any]:
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError) as error:
        raise JobError(f"reference: {file} cannot be read: {error}") from error


def reference_of(given: Published | str, run: Location) -> Reference:
    """What a job's `reference` names; of images, statistics are computed once and kept in the run directory.

    Raises:
        JobError: it is not there, or cannot be read.
    """
    if given == "truth":
        return Reference("the true images of this run", paired=True)
    if isinstance(given, Published):
        title = f"clean-fid's statistics of {given.name}, {given.split}, {given.resolution}"
        size = None if given.resolution == "na" else given.resolution
        return Reference(title, files=lambda space, features: published(given, space, features), size=size)
    if given.endswith(".npz"):
        return Reference(given, files=lambda space, features: storage.at(given))

    def computed(space: str, features: bool) -> Location:
        file = run / f"reference-{space}.npz"
        if not file.exists():
            from pipeline.executors import default_device

            make_statistics(Pictures("reference", given), file, space, default_device())
        return file

    return Reference(given, files=computed)


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
    elif given.endswith(".npz"):
        if not storage.at(given).is_file():
            raise JobError(f"reference: no such file: {given}; make it with `kintsugi stats`")
        stored = read(storage.at(given))
        mode = str(stored["mode"]) if "mode" in stored else None
        for name, metric in asked.items():
            if mode not in (None, metric.space):
                raise JobError(
                    f"reference: {given} was made with --mode {mode}, and {name} needs {metric.space}; "
                    "leave the metric out, or make statistics of that mode"
                )
            Reference(given, files=lambda space, features: storage.at(given)).sample(
                metric.space, not metric.moments
            )
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

    These are mode, n, size (side of the images, 0 where they differ), weights (SHA-256), and the features
    of at most 10,000 images, chosen by their keys.

    Returns:
        how many images there are.

    Raises:
        JobError: an image cannot be read, or weights are missing.
    """
    try:
        extract = Extractor([mode], device)
    except MissingWeights as error:
        raise JobError(str(error)) from error
    moments, kept, sizes = Moments(SIZES[mode]), [], set()
    for found in pictures.read_all(pictures.places):
        if found.image is None:
            raise JobError(f"{found.key}: {found.error}")
        features = extract(found.key, found.image)[mode]
        moments.add(features[None])
        if share(found.key) < PAIRS_MOST / len(pictures):
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
            features=np.stack(kept),
        )
    return moments.n
