"""The pictures of a report: which samples are shown, and in how many bytes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from kintsugi import operators
from kintsugi.ahead import map_ahead
from kintsugi.errors import JobError, error_text
from kintsugi.operators import Operator
from kintsugi.operators.arrays import read_array
from kintsugi.pipeline.analysis.aggregate import Distribution
from kintsugi.pipeline.analysis.rows import Rows, measures_in
from kintsugi.pipeline.data.pictures import MAX_VALUES, decoded, encode, shown
from kintsugi.pipeline.execution.commit import PICTURES, is_picture, read_commit, read_rows, schema_of
from kintsugi.pipeline.execution.degrade import add_noise, levels
from kintsugi.pipeline.execution.directory import data_file
from kintsugi.pipeline.execution.rows import GALLERY
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.parameters import ESTIMATE, Parameter, Value
from kintsugi.pipeline.parts import Degradation
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.samplers import KeyedNoise

EXTREMES = 4  # samples at either end of the first measure
BUDGET = 5 << 20  # bytes of all pictures; a third more as text in the file
# (pixels of the longer side, quality), best first
FORMS = ((512, None), (512, 90), (256, 90), (256, 60), (128, 60))
SAMPLES = 3  # of those drawn for one measurement
FAILURES = 24
THREADS = 4  # in which pictures are encoded
SHEET_ROWS, GAP = 4, 4  # of pictures.png
SHEET_SIDE = 1024  # pixels of a picture in it, at most
KINDS = {"truth": "truth", "measurement": "measurement", "restored": "restoration"}
SEVERAL = ["samples", "deviation"]  # columns that are read where there are several samples


@dataclass
class Card:
    """A restored sample with its pictures.

    Attributes:
        place: among all rows. measures: what it can be sorted by.
        why: what it was chosen for; nothing if it is one of the first.
        pictures: encoded, by what they show: those of truth, measurement, pseudo-inverse and restoration
            that there are, and of several samples the first ones.
        deviation: of the samples, (H, W) on [-1, 1], mean of the channels.
        estimates: of parameters of its degradation, by column.
    """

    key: str
    place: int
    measures: dict[str, float]
    why: list[str]
    pictures: dict[str, bytes]
    deviation: np.ndarray | None = None
    estimates: Mapping[str, float] = field(default_factory=dict)


def choose(run: Run, rows_file: Location, title: str, ranked: Distribution | None) -> list[Card]:
    """The first samples in order, and those at both ends of a measure, as far as pictures are kept.

    Args:
        rows_file: all rows without pictures, in the order of the commits.
        title, ranked: of the measure.
    """
    why: dict[str, list[str]] = {}
    if ranked is not None:
        most = min(EXTREMES, (ranked.n + ranked.infinite) // 2)
        worst = ranked.worst[:most]
        best = [key for key in ranked.best if key not in worst][:most]  # of equal values none is both
        for end, keys in (("worst", worst), ("best", best)):
            for key in keys:
                why.setdefault(key, []).append(f"{end} {title}")
    places = set(range(GALLERY))
    if run.job.images != "none":
        with parquet(rows_file) as file:
            found = pc.is_in(file.read(columns=["key"])["key"], value_set=pa.array(why, pa.string()))
        places |= set(np.flatnonzero(found.to_numpy()).tolist())
    several = SEVERAL if run.job.restoration.samples_per_image > 1 else []
    cards, measured = [], measures_in(schema_of(run.job))
    for place, row in rows_at(run, places, [*shown_columns(run), *several]):
        pictures = {kind: row[name] for name, kind in KINDS.items() if row[name] is not None}
        if row["status"] == "ok" and pictures:
            known = ((name, row.get(name)) for name in measured)
            measures = {name: value for name, value in known if value is not None and value == value}
            reasons = why.get(row["key"], [])
            card = Card(row["key"], place, measures, reasons, pictures, estimates=estimates_in(row))
            if row.get("deviation") is not None:
                card.deviation = read_array(row["deviation"], MAX_VALUES).astype(float).mean(0)
                card.pictures |= {f"sample {i}": one for i, one in enumerate(row["samples"][:SAMPLES], 1)}
            cards.append(card)
    return with_pseudo_inverses(run.job, cards)


def estimates_in(row: Mapping[str, Any]) -> dict[str, float]:
    """What was estimated of a sample's degradation, by the parameter's column."""
    found = {name.removesuffix(ESTIMATE): of for name, of in row.items() if name.endswith(ESTIMATE)}
    return {name: value for name, value in found.items() if value is not None}


def shown_columns(run: Run) -> list[str]:
    """The columns of a run's rows, of their pictures those that are shown."""
    return [name for name in schema_of(run.job).names if name in KINDS or not is_picture(name)]


def rows_at(
    run: Run, places: Iterable[int], columns: Sequence[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Committed rows by their places among all of them, in order; by default with `shown_columns`."""
    columns = columns or shown_columns(run)
    wanted = np.array(sorted(places), int)
    first = 0
    for unit, counts in run.counts():
        if counts is None:
            continue
        inside = wanted[(wanted >= first) & (wanted < first + counts.rows)]
        if len(inside) and (commit := read_commit(run.folder, unit.unit, run.config_hash)):
            rows = read_rows(run.folder, commit, list(columns)).take(inside - first).to_pylist()
            for place, row in zip(inside.tolist(), rows, strict=True):
                refuse_no_pictures(row, data_file(run.folder, commit.unit))
                yield place, row
        first += counts.rows
        if not len(wanted) or first > wanted[-1]:
            break


def refuse_no_pictures(row: dict[str, Any], file: Location) -> None:
    """Raise a JobError if what a row keeps as pictures cannot be shown: the run may be somebody else's."""
    for name in PICTURES:
        content = row.get(name)
        for one in content if isinstance(content, list) else [content]:
            try:
                if one is None:
                    continue
                if name == "deviation":
                    read_array(one, MAX_VALUES, refuse_no_deviation)
                else:
                    decoded(one)
            except Exception as error:  # whatever Pillow makes of it
                raise JobError(f"{file}: {name} of {row['key']!r}: {error_text(error)}") from error


def refuse_no_deviation(shape: tuple[int, ...], kind: np.dtype) -> None:
    """Raises ValueError unless it is an (H, W, C) of floats, none of the three 0."""
    if len(shape) != 3 or kind.kind != "f" or 0 in shape:
        raise ValueError(f"an array of {kind} with shape {shape}, not the deviations of an image")


def failures(rows: Rows) -> list[tuple[int, str, str]]:
    """The first failed samples: place among all rows, key and error."""
    places = np.flatnonzero(pc.equal(rows["status"], "failed").to_numpy())[:FAILURES]
    keys, errors = (rows[name].take(places).to_pylist() for name in ("key", "error"))
    return list(zip(places.tolist(), keys, errors, strict=True))


def draw_deviations(cards: Sequence[Card]) -> float | None:
    """Add the deviations as pictures; returns what is white in them, None where there are none."""
    known = [(card, card.deviation) for card in cards if card.deviation is not None]
    if not known:
        return None
    white = max(float(deviation.max()) for _, deviation in known) or 1.0
    for card, deviation in known:
        card.pictures["deviation"] = encode((255 * deviation / white).round().astype(np.uint8)[..., None])
    return white


def with_pseudo_inverses(job: Job, cards: list[Card]) -> list[Card]:
    """The cards with H⁺y where that is another picture than y; where y is no image, H⁺y is what rows hold.

    It is there where the truth is: of images that were degraded here, and of pairs.
    """
    made = None
    for card in cards:
        pictures, shape = card.pictures, image_shape(job, card)
        try:
            if made is None or job.degradation.parameters or made[1].image_shape != shape:
                made = degrading(job, card, shape)
        except ValueError:  # measurements have sizes, and perhaps parameters, of their own
            continue
        degradation, operator = made
        if not operator.pixels:
            named = {"measurement": "pseudo-inverse"}
            card.pictures = {named.get(kind, kind): content for kind, content in pictures.items()}
        elif "truth" in pictures and "measurement" in pictures:
            with torch.no_grad():
                y = measured(job, card, degradation, operator)
                seen, pseudo_inverse = levels(y, 8)[0], levels(operator.pinv(y), 8)[0]
            if not np.array_equal(seen, pseudo_inverse):
                before = {kind: pictures[kind] for kind in ("truth", "measurement")}
                card.pictures = before | {"pseudo-inverse": encode(pseudo_inverse)} | pictures
    return cards


def image_shape(job: Job, card: Card) -> tuple[int, int, int]:
    """(C, H, W) of a sample's image: of a pair its truth's, else the job's."""
    if job.from_measurements and "truth" in card.pictures:
        channels, height, width = tensor_of(card.pictures["truth"]).shape[1:]
        return channels, height, width
    return job.image_shape


def degrading(job: Job, card: Card, shape: tuple[int, int, int]) -> tuple[Degradation, Operator]:
    """What degraded a sample's image; raises a ValueError where that is known from files beside it alone."""
    values: dict[Parameter, Value] = {}
    for each in job.degradation.parameters:
        if not each.has_source and each.column in card.estimates:
            values[each] = card.estimates[each.column]
        else:
            values[each] = each.of_sample(job.seed, card.key, {}, shape[1:])
    degradation = job.degradation.with_values(values)
    return degradation, operators.build(degradation.operator, shape)


def measured(job: Job, card: Card, degradation: Degradation, operator: Operator) -> Tensor:
    """The measurement y (1, C, h, w) of a sample whose truth is known, on [-1, 1].

    It is made again from the truth, as that in the row is rounded and clipped: by the noise that belongs to
    the key it is what the sampler began with. Of a pair the one in the row must do.
    """
    if job.from_measurements:
        return tensor_of(card.pictures["measurement"])
    y = operator.forward(tensor_of(card.pictures["truth"]))
    noise = KeyedNoise(job.seed, [card.key])
    return add_noise(y, degradation.poisson, degradation.gaussian, noise)


def tensor_of(picture: bytes) -> Tensor:
    """A picture of 8 bits as (1, C, H, W) on [-1, 1]."""
    return torch.from_numpy(decoded(picture).transpose(2, 0, 1).copy())[None].float() / 127.5 - 1


def fitted(cards: Sequence[Card]) -> tuple[list[dict[str, bytes]], str]:
    """The pictures of each card as WebP, in the best form that keeps within the budget, and that in words."""
    for side, quality in FORMS:

        def smaller(card: Card, side: int = side, quality: int | None = quality) -> dict[str, bytes]:
            return {kind: webp(content, side, quality) for kind, content in card.pictures.items()}

        found = list(map_ahead(smaller, cards, THREADS))
        if sum(len(content) for pictures in found for content in pictures.values()) <= BUDGET:
            break
    how = "lossless" if quality is None else f"WebP of quality {quality}"
    return found, f"{how} and at most {side} pixels a side"


def webp(content: bytes, side: int, quality: int | None) -> bytes:
    """A picture reduced to at most `side` pixels a side; without loss if `quality` is None."""
    picture = shown(content).convert("RGB")
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
    images = [[shown(content) for content in row] for row in rows]
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
