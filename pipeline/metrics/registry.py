"""The registry of metrics: what is built in, and plug-ins; of images, sets and clips."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from kintsugi.errors import SpecError
from kintsugi.pipeline.metrics import distances, images
from kintsugi.pipeline.metrics.clips import CLIP_METRICS
from kintsugi.pipeline.metrics.distances import Compare
from kintsugi.pipeline.metrics.metric import ClipMetric, ImageMetric, Metric, SetMetric, Space
from kintsugi.pipeline.metrics.weights import MissingWeights
from kintsugi.registry import Registry, choices

M = TypeVar("M", ImageMetric, SetMetric, ClipMetric)

FID = (
    "Fréchet distance of Inception features, 0 for equal sets{mode}.\n"
    "Of Gaussians with the sets' moments (Heusel et al., NeurIPS 2017, 1706.08500), of 8-bit restorations; "
    "{network}. From 8,192 samples also extrapolated to infinitely many (Chong and Forsyth, CVPR 2020), "
    "where that is at least half of it."
)
KID = (
    "Kernel distance of Inception features, about 0 for equal sets{mode}.\n"
    "Unbiased MMD² of all samples, kernel (xᵀy/2048 + 1)³ (Bińkowski et al., ICLR 2018, 1801.01401); "
    "{network}."
)
MANIFOLD = (
    "Balls to the third neighbour (Kynkäänniemi et al., NeurIPS 2019, 1904.06991), of the features of FID "
    "instead of the paper's VGG16."
)
MODES: Mapping[Space, tuple[str, str]] = {
    "clean": ("", "clean-fid's resizing and TorchScript network (Parmar et al., CVPR 2022)"),
    "legacy_pytorch": (
        ", as pytorch-fid computes it",
        "resized by torch's bilinear filter, with aliases",
    ),
    "legacy_tensorflow": (", as TensorFlow's code computes it", "resized inside the TorchScript network"),
}


def inception(title: str, about: str, compare: Compare, moments: bool) -> dict[str, SetMetric]:
    """A metric in each of clean-fid's modes; `clean` has the short name."""
    found = {}
    for space, (mode, network) in MODES.items():
        name, suffix = (title, "") if space == "clean" else (f"{title} ({space})", f"_{space}")
        text = about.format(mode=mode, network=network)
        found[title.lower() + suffix] = SetMetric(name, "lower", text, space, compare, moments)
    return found


BUILTIN: dict[str, Metric] = {
    **images.find(),
    **inception("FID", FID, distances.fid, moments=True),
    **inception("KID", KID, distances.kid, moments=False),
    "precision": SetMetric(
        "precision",
        "higher",
        "Share of the restorations that lie in the reference's manifold, 0 to 1.\n" + MANIFOLD,
        "clean",
        distances.precision,
    ),
    "recall": SetMetric(
        "recall",
        "higher",
        "Share of the reference that lies in the restorations' manifold, 0 to 1.\n" + MANIFOLD,
        "clean",
        distances.recall,
    ),
    "swd": SetMetric(
        "sliced Wasserstein",
        "lower",
        "Distance of fine textures from the truth's, 0 for equal sets; needs no weights.\n"
        "Sliced Wasserstein-1 distance of 7×7 patches of the finest Laplacian level, 32 an image, in units "
        "of the truth's standard deviation (Karras et al., ICLR 2018, 1710.10196).",
        "patches",
        distances.swd,
    ),
    **CLIP_METRICS,
}


REGISTRY = Registry("metric", BUILTIN, (ImageMetric, SetMetric, ClipMetric), field="metrics")


class OfKind(Mapping[str, M]):
    """The metrics of one kind, also plug-ins by their names; iteration gives what is built in."""

    def __init__(self, kind: type[M]):
        self.kind: type[M] = kind

    def __getitem__(self, name: str) -> M:
        metric = REGISTRY[name]
        if not isinstance(metric, self.kind):
            raise KeyError(name)
        return metric

    def __iter__(self) -> Iterator[str]:
        return (name for name, metric in BUILTIN.items() if isinstance(metric, self.kind))

    def __len__(self) -> int:
        return sum(1 for _ in self)


IMAGE, SETS, CLIPS = OfKind(ImageMetric), OfKind(SetMetric), OfKind(ClipMetric)

BASELINES: Mapping[str, str] = {"pinv": "H⁺y", "lmmse": "linear MMSE"}
"""What a measurement gives without a network, beside which a restoration is scored."""

TRUTH = "_truth"
"""Ends the name of a column with the features of true images."""

SAMPLED = "_samples"
"""Ends the name of a column with the mean of a metric over several samples."""

COVERAGE: Mapping[str, float] = {"coverage_50": 0.5, "coverage_90": 0.9, "coverage_95": 0.95}
"""By column, the share of pixels that should lie in the interval that several samples give."""

CALIBRATION = (*COVERAGE, "z_mean", "z_rms", "error_rms")
"""The columns of several samples of images with their truth; see `calibration`."""

NAME = re.compile(r"[a-z][a-z0-9_]*")
TAKEN = (
    *("key", "shard", "index", "label", "source", "file", "status", "error", "seed", "seconds"),
    *("forwards", "vjps", "batch_size", "residual", "spread"),
    *("decodes", "encodes", "autoencoder_vjps", "round_trip"),
    *("restored", "measurement", "truth", "deviation", "samples"),
    *CALIBRATION,
    *("group", "n", "failed", "place"),
)
"""What no metric can be named: other columns of the rows, and of tables and pages that are made of them."""
BEGINNINGS = ("operator_", "sigma")
"""How names of columns with parameters of samples begin."""
ENDINGS = (*(f"_{baseline}" for baseline in BASELINES), "_low", "_high", "_infinity", SAMPLED)


def columns(names: Sequence[str]) -> list[str]:
    """The metrics of images that have a column in the rows of a job that names these metrics."""
    return list(dict.fromkeys([*images.IN_EVERY_RUN, *(name for name in names if name in IMAGE)]))


def baseline_column(metric: str, baseline: str) -> str:
    """Where the rows hold the value that a baseline has."""
    return f"{metric}_{baseline}"


def samples_column(metric: str) -> str:
    """Where the rows hold the mean of a metric over several samples."""
    return metric + SAMPLED


def is_baseline(column: str) -> bool:
    """Whether that is such a column."""
    return column.endswith(tuple(f"_{baseline}" for baseline in BASELINES))


def check(
    names: Sequence[str],
    size: int,
    has_truth: bool,
    reference: object,
    channels: int = 3,
    has_prior: bool = True,
) -> None:
    """Refuse metrics that cannot be computed, before anything runs.

    Args:
        size: side of the images, pixels. has_truth: whether there is one for each.
        reference: what sets are compared with. channels: of the images.
        has_prior: whether a job restores them.

    Raises:
        SpecError: an unknown metric, a plug-in that cannot be used, one that needs larger images or others'
            channels, or one without what it compares with.
    """
    for name in names:
        if (metric := REGISTRY.get(name)) is None:
            raise SpecError(f"metrics: no metric {name!r}; choose from {choices(REGISTRY)}")
        taken = name in TAKEN or name.startswith(BEGINNINGS) or name.endswith(ENDINGS)
        if not NAME.fullmatch(name) or taken:
            raise SpecError(
                f"metrics: no metric can be named {name!r}: a name is of a-z, 0-9 and _, is that of no other "
                f"column ({', '.join(TAKEN)}), does not begin with "
                f"{', '.join(BEGINNINGS)}, and does not end with {', '.join(ENDINGS)}"
            )
        if size < metric.smallest:
            raise SpecError(
                f"metrics: {name} needs images of at least {metric.smallest} pixels, data.size is {size}"
            )
        if metric.channels is not None and channels not in metric.channels:
            few = " or ".join(map(str, metric.channels))
            raise SpecError(f"metrics: {name} is of images with {few} channels, data.channels is {channels}")
        if isinstance(metric, ImageMetric) and metric.needs_prior and not has_prior:
            raise SpecError(
                f"metrics: {name} asks the job's prior, which restored images do not have; leave it out"
            )
        refuse_no_truth(name, metric, has_truth, reference)


def refuse_no_truth(name: str, metric: Metric, has_truth: bool, reference: object) -> None:
    """Raise a SpecError for a metric without what it compares with; as `check`."""
    if isinstance(metric, SetMetric):
        if reference == "truth" and not has_truth:
            raise SpecError(
                f"metrics: {name} compares with the truth, which measurements do not have; set reference"
            )
        if metric.space == "patches" and reference != "truth":
            raise SpecError(f"metrics: {name} compares with the truth of the run; set reference=truth")
    elif not has_truth and (isinstance(metric, ClipMetric) or metric.needs_truth):
        raise SpecError(
            f"metrics: {name} compares with the truth, which measurements do not have; leave it out, "
            "or name their truth by data.truth"
        )


def refuse_missing_weights(names: Sequence[str]) -> None:
    """Raises:
    MissingWeights: a metric's file, or its package, is not on this machine.
    """
    for name in names:
        metric = REGISTRY[name]
        try:
            for each in (metric.weights, metric.extra):
                if each is not None:
                    each.find()
        except MissingWeights as error:
            raise MissingWeights(f"metrics: {name}: {error}") from error
