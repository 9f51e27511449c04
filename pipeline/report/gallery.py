"""The pictures of a report: which samples are shown, and in how many bytes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

import operators
from operators import SpecError
from pipeline.aggregate import Measure
from pipeline.commit import PICTURES, ROWS, read_rows
from pipeline.job import Job
from pipeline.pictures import encode
from pipeline.restore import levels, measure
from pipeline.run import Run
from pipeline.storage import Location, parquet
from pipeline.worker import GALLERY
from samplers import KeyedNoise

EXTREMES = 4  # samples at either end of the first measure
BUDGET = 5 << 20  # bytes of all pictures; a third more as text in the file
FORMS = ((512, None), (512, 90), (256, 90), (256, 60))  # (pixels of the longer side, quality), best first
SHEET_ROWS, GAP = 4, 4  # of pictures.png
SHEET_SIDE = 1024  # pixels of a picture in it, at most
KINDS = {"truth": "truth", "measurement": "measurement", "restored": "restoration"}
COLUMNS = [name for name in ROWS.names if name in KINDS or name not in PICTURES]


@dataclass
class Card:
    """A restored sample with its pictures.

    Attributes:
        row: its columns. why: what it was chosen for; nothing if it is one of the first.
        pictures: encoded, by what they show: those of truth, measurement, pseudo-inverse and restoration
            that there are.
    """

    row: dict[str, Any]
    why: list[str]
    pictures: dict[str, bytes]


def choose(run: Run, rows_file: Location, title: str, ranked: Measure | None) -> list[Card]:
    """The first samples in order, and those at both ends of a measure, as far as pictures are kept.

    Args:
        rows_file: all rows without pictures, in the order of the commits.
        title, ranked: of the measure.
    """
    why: dict[str, list[str]] = {}
    if ranked is not None:
        most = min(EXTREMES, (ranked.n + ranked.infinite) // 2)  # none is both
        for end, keys in (("worst", ranked.worst), ("best", ranked.best)):
            for key in keys[:most]:
                why.setdefault(key, []).append(f"{end} {title}")
    places = set(range(GALLERY))
    if run.job.images != "none":
        with parquet(rows_file) as file:
            found = pc.is_in(file.read(columns=["key"])["key"], value_set=pa.array(why, pa.string()))
        places |= set(np.flatnonzero(found.to_numpy()).tolist())
    cards = []
    for row in rows_at(run, places):
        pictures = {kind: content for name, kind in KINDS.items() if (content := row.pop(name)) is not None}
        if row["status"] == "ok" and pictures:
            cards.append(Card(row, why.get(row["key"], []), pictures))
    return with_pseudo_inverses(run.job, cards)


def rows_at(run: Run, places: Iterable[int]) -> list[dict[str, Any]]:
    """Committed rows by their places among all of them, with what is shown of their pictures."""
    wanted = np.array(sorted(places))
    rows: list[dict[str, Any]] = []
    first = 0
    for _, commit in run.commits():
        if commit is None:
            continue
        inside = wanted[(wanted >= first) & (wanted < first + commit.rows)] - first
        if len(inside):
            rows += read_rows(run.folder, commit, COLUMNS).take(inside).to_pylist()
        first += commit.rows
        if first > wanted[-1]:
            break
    return rows


def with_pseudo_inverses(job: Job, cards: list[Card]) -> list[Card]:
    """The cards with H⁺y where that is another picture than y; where y is no image, H⁺y is what rows hold.

    It is made again from the truth, as the measurement in the row is rounded and clipped: by the noise that
    belongs to the key it is what the sampler began with.
    """
    try:
        operator = operators.build(job.degradation.operator, job.image_shape)
    except SpecError:  # of measurements, which have sizes of their own
        return cards
    for card in cards:
        pictures = card.pictures
        if not operator.pixels:
            named = {"measurement": "pseudo-inverse"}
            card.pictures = {named.get(kind, kind): content for kind, content in pictures.items()}
        elif "truth" in pictures and "measurement" in pictures:
            with Image.open(BytesIO(pictures["truth"])) as truth:
                x = (
                    torch.from_numpy(np.array(truth.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5
                    - 1
                )
            noise = KeyedNoise(job.seed, [card.row["key"]])
            with torch.no_grad():
                y = measure(operator.forward(x), job.degradation, noise)
                seen, pseudo_inverse = levels(y, 8)[0], levels(operator.pinv(y), 8)[0]
            if not np.array_equal(seen, pseudo_inverse):
                restoration = pictures.pop("restoration")
                pictures |= {"pseudo-inverse": encode(pseudo_inverse), "restoration": restoration}
    return cards


def fitted(cards: Sequence[Card]) -> tuple[list[dict[str, bytes]], str]:
    """The pictures of each card as WebP, in the best form that keeps within the budget, and that in words."""
    for side, quality in FORMS:
        found = [{kind: webp(content, side, quality) for kind, content in c.pictures.items()} for c in cards]
        if sum(len(content) for pictures in found for content in pictures.values()) <= BUDGET:
            break
    how = "lossless" if quality is None else f"WebP of quality {quality}"
    return found, f"{how} and at most {side} pixels a side"


def webp(content: bytes, side: int, quality: int | None) -> bytes:
    """A picture reduced to at most `side` pixels a side; without loss if `quality` is None."""
    with Image.open(BytesIO(content)) as image:
        picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(
        buffer, "WebP", lossless=quality is None, quality=30 if quality is None else quality, method=2
    )
    return buffer.getvalue()


def contact_sheet(cards: Sequence[Card]) -> Image.Image:
    """Measurement, restoration and truth side by side, a sample per row; measurements are not smoothed."""
    rows = [
        [c.pictures[kind] for kind in ("measurement", "restoration", "truth") if kind in c.pictures]
        for c in cards[:SHEET_ROWS]
    ]
    images = [[Image.open(BytesIO(content)).convert("RGB") for content in row] for row in rows]
    # A row is as large as its largest picture, up to a bound.
    sides = [reduced(max(picture.size for picture in row)) for row in images]
    width = max(len(row) * (w + GAP) - GAP for row, (w, _) in zip(images, sides, strict=True))
    sheet = Image.new("RGB", (width, sum(h + GAP for _, h in sides) - GAP), "white")
    top = 0
    for (w, h), row in zip(sides, images, strict=True):
        for x, picture in enumerate(row):
            how = Image.Resampling.LANCZOS if picture.width > w else Image.Resampling.NEAREST
            sheet.paste(picture.resize((w, h), how), (x * (w + GAP), top))
        top += h + GAP
    return sheet


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height, reduced to at most `SHEET_SIDE` pixels."""
    scale = min(1.0, SHEET_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
