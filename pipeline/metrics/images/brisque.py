"""Quality by a regression on statistics of natural scenes."""

import math

import torch
from torch import Tensor

from kintsugi.pipeline.metrics.metric import GREY_OR_RGB, ImageMetric, Measure
from kintsugi.pipeline.metrics.weights import BRISQUE, Extra

EXTRA = Extra("piq", "iqa")


def load(device: torch.device) -> Measure:
    """piq's function, with its file; raises a MissingWeights without either."""
    EXTRA.find()
    import piq

    def brisque(restored: Tensor) -> float:
        BRISQUE.find()  # else piq would fetch it
        try:
            return float(piq.brisque(restored))
        except AssertionError:  # of an image that is flat
            return math.nan

    BRISQUE.find()
    return brisque


METRIC = ImageMetric(
    "BRISQUE",
    "lower",
    "Distortion that people would see, about 0 to 100, by a regression; needs no truth.\n"
    "piq's function and file; not defined for a flat image. Trained on blur, noise and compression: what a "
    "network does to an image is none of these (Mittal et al., IEEE TIP 2012).",
    load,
    needs_truth=False,
    range=(-math.inf, math.inf),
    smallest=32,
    channels=GREY_OR_RGB,
    weights=BRISQUE,
    extra=EXTRA,
)
