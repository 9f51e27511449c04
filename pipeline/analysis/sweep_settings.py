"""What a sweep tries: settings from a grid or at random, and the rungs on which the worse ones drop out."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Settings = dict[str, Any]
SMALLEST = 8  # images of the first rung: with fewer the order is a matter of luck
MAX_NAME = 60  # characters of a trial's settings in its name


@dataclass(frozen=True)
class Range:
    """Values between two numbers, drawn evenly, or evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    def draw(self, generator: np.random.Generator) -> float:
        """One of them, to four digits, so that names and job files can be read."""
        if self.log:
            value = math.exp(generator.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = generator.uniform(self.low, self.high)
        return float(f"{value:.4g}")


Choices = list[Any] | Range


def grid(vary: Mapping[str, list[Any]]) -> list[Settings]:
    """Every combination, once; the last field changes fastest."""
    return each_once(dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values()))


def random_settings(vary: Mapping[str, Choices], count: int, seed: int) -> list[Settings]:
    """`count` combinations at random, each once; the first ones of more are the same."""

    def draw(number: int) -> Settings:
        generator = np.random.default_rng([seed, number])
        return {
            field: choices.draw(generator)
            if isinstance(choices, Range)
            else choices[int(generator.integers(len(choices)))]
            for field, choices in vary.items()
        }

    return each_once(draw(number) for number in range(count))


def each_once(found: Iterable[Settings]) -> list[Settings]:
    """Settings without those that would have the folder of another."""
    return list({name_of(settings): settings for settings in found}.values())


def name_of(settings: Settings) -> str:
    """The folder of a trial: its settings in short, and a hash of them."""
    short = "_".join(f"{field.rpartition('.')[2]}={value}" for field, value in settings.items()) or "as-it-is"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9.=_+-]+', '-', short)[:MAX_NAME]}-{digest[:8]}"


@dataclass(frozen=True)
class Rung:
    """So many trials, each on the first so many images."""

    trials: int
    images: int


def rungs(trials: int, images: int, halve: int, unit: int) -> list[Rung]:
    """Of all trials 1/halve go on with halve times as many images, up to all; two at least see all of them.

    Args:
        halve: 1 lets every trial do all images.
        unit: images that are committed together: a rung has whole units.
    """
    sizes = [images]
    while halve > 1 and trials > halve ** len(sizes):
        smaller = -(-(sizes[0] // halve) // unit) * unit
        if sizes[0] // halve < SMALLEST or smaller >= sizes[0]:
            break
        sizes.insert(0, smaller)
    return [Rung(-(-trials // halve**number), size) for number, size in enumerate(sizes)]
