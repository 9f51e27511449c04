"""What a report begins with, in plain words: what was done, how good it is, what it cost; and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from kintsugi.operators import Operator, specs_in
from kintsugi.pipeline.analysis.measures import badness_of, bare, better, number, of_image, unit
from kintsugi.pipeline.analysis.report.gallery import Card, degrading, image_shape, measured
from kintsugi.pipeline.analysis.report.results import by_command
from kintsugi.pipeline.data.pictures import encode
from kintsugi.pipeline.execution.degrade import baselines, levels
from kintsugi.pipeline.execution.rows import GALLERY
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics.registry import BASELINES

SAMPLES = 3  # whose pictures are shown, the first of the job
LINEAR = BASELINES["lmmse"]
"""The kind of picture that only these samples have."""
REASON = 200  # characters of an error
OF_AUTOENCODER = {
    "decodes": "by the decoder",
    "encodes": "by the encoder",
    "autoencoder_vjps": "with Jacobians of these",
}
DAMAGE = {
    "anisotropic_blur": "blur",
    "average_pool": "fewer pixels",
    "bicubic": "fewer pixels",
    "blur": "blur",
    "colorize": "lost colours",
    "compressed_sensing": "fewer measurements than pixels",
    "denoise": "",
    "gaussian_blur": "blur",
    "gaussian_blur_rediff": "blur",
    "hdr": "overexposure",
    "inpaint": "missing pixels",
    "jpeg": "JPEG compression",
    "linear_motion_blur": "motion blur",
    "motion_blur": "motion blur",
    "nonlinear_blur": "non-linear blur",
    "phase_retrieval": "lost phases",
    "quantize": "few levels of brightness",
    "resize": "fewer pixels",
    "uniform_blur": "blur",
}
"""What an operator does to an image, in plain words; a plug-in's is its name."""


@dataclass(frozen=True)
class Opening:
    """Sentences.

    Attributes:
        done: what was done, and how good it is.
        cost: what an image cost; nothing where that is not known.
        failed: what is lacking. whole: whether nothing is.
    """

    done: str
    cost: str
    failed: str
    whole: bool


def opening(job: Job, metrics: Mapping[str, Any]) -> Opening:
    """The sentences of a run, by the numbers of its metrics.json as the tables have them."""
    samples = metrics["samples"]
    planned, ok = samples["planned"], samples["ok"]
    done, whole = "compared with the truth" if job.is_score else "restored", ok == planned
    lacking = failed(metrics) if not whole else "None failed."
    if not ok:
        yet = " yet" if samples["done"] < planned else ""
        return Opening(f"None of the {planned} images is {done}{yet}.", "", lacking, whole)
    images = f"{ok} of {planned} images" if not whole else "1 image" if ok == 1 else f"{ok} images"
    if not job.is_score:
        each = "each " if ok > 1 else ""
        images += " with " * bool(damage := " and ".join(damages(job))) + damage + ","
        done = f"{each}restored {by_what(job, metrics)}"
    cost = "" if job.is_score else cost_of(metrics)
    return Opening(f"{images} {done}{how_good(job, metrics)}.", cost, lacking, whole)


def damages(job: Job) -> Iterator[str]:
    """What is wrong with the images of a job that restores, in words."""
    for _, spec in specs_in(job.degradation.operator, "operator"):
        if spec["name"] != "compose" and (damage := DAMAGE.get(spec["name"], spec["name"])):
            yield damage
    if job.degradation.noise != "noiseless":
        yield f"noise ({job.degradation.noise})"


def by_what(job: Job, metrics: Mapping[str, Any]) -> str:
    """By what a sample was restored."""
    cost, several = metrics["cost"], job.restoration.samples_per_image
    how = f"as the mean of {several} samples, " if several > 1 else ""
    if by_command(job):
        return f"{how}by a command"
    if not cost["forwards"]:
        return f"{how}without a network"
    return (
        f"{how}by {times(cost['forwards'], 'evaluation')} of a network ({metrics['provenance']['prior'][0]})"
    )


def times(count: float, what: str) -> str:
    """So many of a thing."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def how_good(job: Job, metrics: Mapping[str, Any]) -> str:
    """By the first metric that compares with the truth: beside the better of what needs no network."""
    if not job.has_truth:
        return "; there is no truth to compare with"
    for name, v in metrics["metrics"].items():
        metric = of_image(name)
        if metric is None or not metric.needs_truth or v["mean"] is None:
            continue
        known = {
            baseline: badness_of(name, b["value"])
            for baseline, b in v.get("baselines", {}).items()
            if b["improved"] is not None and b["difference"]["value"] is not None
        }
        if not known:
            return f": {with_unit(name, v['mean'])} on average"
        best = min(known, key=lambda baseline: known[baseline] or 0.0)
        return f": {against(name, BASELINES[best], v['baselines'][best])}"
    return ""


def with_unit(name: str, value: float) -> str:
    """A value of a measure, behind its name."""
    return f"{bare(name)} {number(value)} {unit(name)}".rstrip()


def against(name: str, label: str, baseline: Mapping[str, Any]) -> str:
    """By how much restoring adds to what needs no network, and on how many images."""
    difference = baseline["difference"]
    value, low, high = (difference[part] for part in ("value", "low", "high"))
    word = "better" if (value > 0) == (better(name) == "higher") else "worse"
    chance = " (that may be chance)" if low is None or high is None or low <= 0 <= high else ""
    return (
        f"{with_unit(name, abs(value))} {word} than {label}, which needs no network{chance}; "
        f"better on {number(100 * baseline['improved'], 0)} % of them"
    )


def cost_of(metrics: Mapping[str, Any]) -> str:
    """What an image cost, beside the evaluations that are said already."""
    cost, seconds = metrics["cost"], metrics["metrics"]["seconds"]["mean"]
    devices = ", ".join(metrics["provenance"].get("device", ()))
    beside = []
    if cost["vjps"]:
        beside.append(
            f"{times(cost['vjps'], 'vector-Jacobian product')} of the network beside the evaluations"
        )
    for name, what in OF_AUTOENCODER.items():
        if count := cost.get(name):
            beside.append(f"{number(count, 0)} passes {what}")
    if more := cost.get("measuring"):
        beside.append(f"{times(more, 'evaluation')} more by which it is measured")
    if (every := cost.get("reuse", 1)) > 1:
        beside.append(f"the network's coarser levels in one of {every} evaluations, reused in others")
    where, what = " on " * bool(devices) + devices, ", with " * bool(beside) + " and ".join(beside)
    return f"An image took {number(seconds)} s{where}{what}."


def failed(metrics: Mapping[str, Any]) -> str:
    """How many samples failed, and why most of them did, and how many are not done yet."""
    samples, reasons = metrics["samples"], metrics["failures"]["reasons"]
    said = []
    if samples["failed"]:
        most = shorten(reasons[0]["error"], REASON, placeholder=" …").rstrip(".")
        several = f"for {len(reasons)} reasons, most often " if len(reasons) > 1 else ""
        said.append(f"{samples['failed']} failed: {several}{most}.")
    if waiting := samples["planned"] - samples["done"]:
        said.append(f"{waiting} not done yet.")
    return " ".join(said)


def at_top(cards: Sequence[Card]) -> list[Card]:
    """Those whose pictures are at the top: first ones of the job, and none that was chosen by its metric."""
    return [card for card in cards if card.place < GALLERY][:SAMPLES]


@torch.no_grad()
def add_linear_mmse(job: Job, cards: Sequence[Card]) -> None:
    """Give cards that picture, where the truth is known and the operator is a known matrix."""
    needed = {"truth", "measurement"} if job.from_measurements else {"truth"}
    for card in cards:
        if card.estimates or not needed <= card.pictures.keys():
            continue
        try:
            degradation, operator = degrading(job, card, image_shape(job, card))
        except ValueError:  # of restored images, or known from files beside the sample
            continue
        estimate = linear_mmse(measured(job, card, degradation, operator), operator, degradation.sigma_y)
        if estimate is not None:
            card.pictures[LINEAR] = encode(levels(estimate, 8)[0])


def linear_mmse(y: Tensor, operator: Operator, sigma_y: float) -> Tensor | None:
    """The estimate (1, C, H, W) of an image from its measurement, None where the operator is no matrix."""
    return baselines(lambda _: (operator, sigma_y), y).get("lmmse")


def views(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Which pictures of a sample are shown, in their order, and in words what each is."""
    measurement, pseudo_inverse = "measurement", "pseudo-inverse"
    before = {measurement: "before"} if measurement in pictures else {pseudo_inverse: "before, as H⁺y"}
    beside = {LINEAR: LINEAR} if LINEAR in pictures else {pseudo_inverse: BASELINES["pinv"]}
    without = {kind: f"{label}, no network" for kind, label in beside.items() if kind not in before}
    words = {**before, **without, "restoration": "restored", "truth": "truth"}
    return {kind: label for kind, label in words.items() if kind in pictures}
