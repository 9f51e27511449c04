"""What is measured: of every restored image (`IMAGE`), and of the set of all (`SETS`).

A new metric is an entry here; one of images has a column in the rows by that alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from kintsugi.pipeline.metrics import distances, images
from kintsugi.pipeline.metrics.distances import Compare
from kintsugi.pipeline.metrics.images import Measure
from kintsugi.pipeline.metrics.weights import ALEXNET, INCEPTION, PT_INCEPTION, VGG16, MissingWeights, Weights

Better = Literal["higher", "lower", "one"] | None


@dataclass(frozen=True)
class ImageMetric:
    """A number for each restored image.

    Attributes:
        title: as it heads a column. better: which values are; None: neither.
        about: definition, range, network and source; the first line says it in short.
        load: makes the function for a device. needs_truth: whether that takes the truth, too.
        range: least and largest value, within which intervals stay.
        smallest: side of the smallest image, pixels.
        weights: a file that it needs.
    """

    title: str
    better: Better
    about: str
    load: Callable[[torch.device], Measure]
    needs_truth: bool = True
    range: tuple[float, float] = (0.0, math.inf)
    smallest: int = 1
    weights: Weights | None = None


@dataclass(frozen=True)
class SetMetric:
    """A number for a set of restored images, compared with a reference set.

    Attributes:
        title, better, about: as of an `ImageMetric`.
        space: what it sees of each image, one of `features.SPACES`.
        compare: makes the number of two sets.
        moments: whether mean and covariance of the reference suffice, or its features are needed.
    """

    title: str
    better: Better
    about: str
    space: str
    compare: Compare
    moments: bool = False

    @property
    def weights(self) -> Weights | None:
        return SPACE_WEIGHTS[self.space]

    @property
    def smallest(self) -> int:
        return 8 if self.space == "patches" else 1


def plain(measure: Measure) -> Callable[[torch.device], Measure]:
    """Of a function that is the same on all devices."""
    return lambda device: measure


PERFECT = 100.0
"""dB, as which an infinite PSNR, or a larger one, enters every mean and difference."""

IMAGE: Mapping[str, ImageMetric] = {
    "psnr": ImageMetric(
        "PSNR, dB",
        "higher",
        "Peak signal-to-noise ratio, 10 log₁₀(1/MSE), in dB; infinite for identical images.\n"
        "float64, on [0, 1]. Restorations of a run are clipped and not rounded; pictures that `score` reads "
        f"have 8 bits. In means and differences more than {PERFECT:g} dB count as {PERFECT:g}.",
        plain(images.psnr),
        range=(0.0, PERFECT),
    ),
    "ssim": ImageMetric(
        "SSIM",
        "higher",
        "Structural similarity, at most 1.\n"
        "Gaussian window of σ = 1.5 and 11 pixels, on RGB; borders are "
        "reflected, so that every pixel counts, where Wang's code leaves out 5 at each side "
        "(Wang et al., IEEE TIP 2004).",
        plain(images.ssim),
        range=(-1.0, 1.0),
        smallest=6,
    ),
    "ms_ssim": ImageMetric(
        "MS-SSIM",
        "higher",
        "Structural similarity over five scales, 0 to 1.\n"
        "Negative terms count as zero (Wang et al., Asilomar 2003).",
        plain(images.ms_ssim),
        range=(0.0, 1.0),
        smallest=176,  # four halvings must leave more than the 11-pixel window
    ),
    "lpips": ImageMetric(
        "LPIPS (AlexNet)",
        "lower",
        "Distance of deep features, 0 for equal images: AlexNet, version 0.1.\n"
        "Inputs on [-1, 1], no resizing (Zhang et al., CVPR 2018, 1801.03924).",
        images.lpips_alex,
        smallest=32,
        weights=ALEXNET,
    ),
    "lpips_vgg": ImageMetric(
        "LPIPS (VGG)",
        "lower",
        "Distance of deep features, 0 for equal images: VGG16, version 0.1.\n"
        "Inputs on [-1, 1], no resizing (Zhang et al., CVPR 2018, 1801.03924).",
        images.lpips_vgg,
        smallest=32,
        weights=VGG16,
    ),
    "vif": ImageMetric(
        "VIF",
        "higher",
        "Visual information fidelity, 0 to about 1: how much of the truth's information is there.\n"
        "In the pixel domain, four scales, visual noise of variance 2 on [0, 255], mean of the channels "
        "(Sheikh and Bovik, IEEE TIP 2006).",
        plain(images.vif),
        smallest=41,
    ),
    "spectrum_ratio": ImageMetric(
        "fine spectrum",
        "one",
        "Power of fine detail relative to the truth's: 1 is ideal, less is blurred, more is noisy.\n"
        "Geometric mean, over the rings between a half and the whole of Nyquist's frequency, of the ratio of "
        "the radial power spectra; Hann window, mean of the channels.",
        plain(images.spectrum_ratio),
        smallest=8,
    ),
    "total_variation": ImageMetric(
        "total variation",
        None,
        "Mean absolute difference of neighbouring values, on [0, 1]; needs no truth.\n"
        "Neither smooth nor rough is good by itself. "
        "Down and to the right, added (Rudin, Osher and Fatemi, Physica D 1992).",
        plain(images.total_variation),
        needs_truth=False,
    ),
}

BASELINES: Mapping[str, str] = {"pinv": "H⁺y", "lmmse": "linear MMSE"}
"""What a measurement gives without a network, beside which a restoration is scored."""


def baseline_column(metric: str, baseline: str) -> str:
    """Where the rows hold the value that a baseline has."""
    return f"{metric}_{baseline}"


BASELINE_COLUMNS = tuple(baseline_column(name, baseline) for name in IMAGE for baseline in BASELINES)

TRUTH = "_truth"
"""Ends the name of a column with the features of true images."""

SPACE_WEIGHTS: Mapping[str, Weights | None] = {
    "clean": INCEPTION,
    "legacy_tensorflow": INCEPTION,
    "legacy_pytorch": PT_INCEPTION,
    "patches": None,
}
"""What the features of an image are made with: clean-fid's modes, and patches without a network."""

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
MODES = {
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


SETS: Mapping[str, SetMetric] = {
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
}


ALL: Mapping[str, ImageMetric | SetMetric] = {**IMAGE, **SETS}


def check(names: Sequence[str], size: int, has_truth: bool, reference: object) -> None:
    """Refuse metrics that cannot be computed, before anything runs.

    Args:
        size: side of the images, pixels. has_truth: whether there is one for each.
        reference: what sets are compared with.

    Raises:
        ValueError: an unknown metric, one that needs larger images, or one without what it compares with.
    """
    for name in names:
        if name not in ALL:
            raise ValueError(f"metrics: no metric {name!r}; choose from {', '.join(sorted(ALL))}")
        metric = ALL[name]
        if size < metric.smallest:
            raise ValueError(
                f"metrics: {name} needs images of at least {metric.smallest} pixels, data.size is {size}"
            )
        if isinstance(metric, ImageMetric):
            if metric.needs_truth and not has_truth:
                raise ValueError(
                    f"metrics: {name} compares with the truth, which measurements do not have; leave it out"
                )
        elif reference == "truth" and not has_truth:
            raise ValueError(
                f"metrics: {name} compares with the truth, which measurements do not have; set reference"
            )
        elif metric.space == "patches" and reference != "truth":
            raise ValueError(f"metrics: {name} compares with the truth of the run; set reference=truth")


def refuse_missing_weights(names: Sequence[str]) -> None:
    """Raises:
    MissingWeights: a metric's file is not on this machine.
    """
    for name in names:
        weights = ALL[name].weights
        if weights is not None:
            try:
                weights.find()
            except MissingWeights as error:
                raise MissingWeights(f"metrics: {name}: {error}") from error
