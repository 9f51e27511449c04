"""What a job's restored set is compared with: found, made, and refused where it is missing."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from kintsugi.device import default_device
from kintsugi.errors import JobError
from kintsugi.numerics import at_once
from kintsugi.pipeline.data.collection import Collection
from kintsugi.pipeline.data.decode import Decoded
from kintsugi.pipeline.execution.directory import reference_file
from kintsugi.pipeline.metrics import SETS
from kintsugi.pipeline.metrics.distances import PAIRS_MOST
from kintsugi.pipeline.metrics.features import SIZES, Extractor
from kintsugi.pipeline.metrics.metric import SPACE_WEIGHTS
from kintsugi.pipeline.metrics.moments import Moments
from kintsugi.pipeline.metrics.reference import Reference, read
from kintsugi.pipeline.metrics.registry import refuse_missing_weights
from kintsugi.pipeline.metrics.sets import share
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.pipeline.parts import Published
from kintsugi.pipeline.storage.location import Location, at
from kintsugi.pipeline.storage.publish import publish
from kintsugi.pipeline.storage.records import MAX_TABLE, regular

STATISTICS = "https://www.cs.cmu.edu/~clean-fid/stats/"


def reference_of(given: Published | str, folder: Location) -> Reference:
    """What a job's `reference` names; of images, statistics are computed once and kept in the run's folder.

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
        file = at(given)
        return Reference(given, files=lambda space, features: file)
    care: list[str] = []

    @cache
    def computed(space: str, features: bool) -> Location:
        file = reference_file(folder, space)
        with suppress(FileNotFoundError):
            regular(file, MAX_TABLE)
        try:
            pictures = Collection("reference", given)
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
        statistics = at(given)
        if not statistics.is_file():
            raise JobError(f"reference: no such file: {given}; make it with `kintsugi stats`")
        stored = read(statistics, ["mode"])
        mode = str(stored["mode"]) if "mode" in stored else None
        for name, metric in asked.items():
            if mode not in (None, metric.space):
                raise JobError(
                    f"reference: {given} was made with --mode {mode}, and {name} needs {metric.space}; "
                    "leave the metric out, or make statistics of that mode"
                )
            reference_of(given, Path()).sample(metric)
    else:
        Collection("reference", given)


def image_of(found: Decoded) -> np.ndarray:
    """The image that was read; raises a JobError if it could not be."""
    if found.image is None:
        raise JobError(f"{found.key}: {found.error}")
    return found.image


def make_statistics(
    pictures: Collection,
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
    everything = pictures.read_all(pictures.places)
    while batch := list(islice(everything, at_once(extract.device))):
        images = {found.key: image_of(found) for found in batch}
        features = extract([*images], [*images.values()], of_data=True)
        for (key, image), seen in zip(images.items(), features, strict=True):
            moments.add(seen[mode][None])
            if key in chosen:
                kept.append(seen[mode])
            sizes |= set(image.shape[:2])
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
