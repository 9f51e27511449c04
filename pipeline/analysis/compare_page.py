"""What a comparison says and shows: tables, notes, the figure, pictures, and the page that holds all."""

import json
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kintsugi.pipeline.analysis.compare import Comparison, Paired
from kintsugi.pipeline.analysis.compare_inputs import Input
from kintsugi.pipeline.analysis.compare_runs import RunNumbers, left_out_images, references
from kintsugi.pipeline.analysis.measures import (
    ASCENDING,
    badness_of,
    bare,
    better,
    number,
    title,
    with_interval,
)
from kintsugi.pipeline.analysis.report.gallery import (
    KINDS,
    Card,
    estimates_in,
    fitted,
    rows_at,
    with_pseudo_inverses,
)
from kintsugi.pipeline.analysis.report.write import environments
from kintsugi.pipeline.analysis.tables import Table, csv_text, markdown_text
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish

FRONTIER = ("psnr", "lpips", "fid")


def runs_table(comparison: Comparison) -> Table:
    """A run in each row: means with intervals, metrics of sets, and cost."""
    names = [*comparison.measures, *comparison.set_names]
    counts = {"forwards": "forwards", "vjps": "VJPs"}
    if any(run.cost.decodes for run in comparison.runs):
        counts |= {"decodes": "decodes", "encodes": "encodes", "autoencoder_vjps": "VJPs of the autoencoder"}
    rows = [
        [
            run.label,
            str(images),
            *(with_interval(*run.estimate(name)) for name in names),
            *("–" if (count := getattr(run.cost, name)) is None else str(count) for name in counts),
            number(run.cost.seconds),
        ]
        for run, images in lines(comparison)
    ]
    return Table(["run", "images", *map(title, names), *counts.values(), "s per image"], rows)


def lines(comparison: Comparison) -> list[tuple[RunNumbers, int]]:
    """Those that have a line in the table of runs, and of how many images its means are."""
    compared = [(run, comparison.images) for run in [*comparison.baselines, *comparison.runs]]
    return compared + [(run, run.rows) for run in comparison.listed]


def runs_csv(comparison: Comparison) -> str:
    """The same for programs: names for titles, all digits, a column for either end of an interval."""
    rows = [
        {"run": run.label, "images": images}
        | {
            name + part: value
            for name in [*comparison.measures, *comparison.set_names]
            for part, value in zip(("", "_low", "_high"), run.estimate(name), strict=True)
        }
        | asdict(run.cost)
        for run, images in lines(comparison)
    ]
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def paired_table(pairs: Iterable[Paired]) -> Table:
    """A difference in each row."""
    return Table(
        ["measure", "baseline", "other", "pairs", "difference", "p", "p, Holm", "wins"],
        [
            [
                title(one.measure),
                one.baseline,
                one.other,
                str(one.n),
                with_interval(one.difference, one.low, one.high),
                *map(number, (one.p, one.corrected)),
                "–" if one.wins is None else f"{100 * one.wins:.0f} %",
            ]
            for one in pairs
        ],
    )


def paired_csv(comparison: Comparison) -> str:
    """The same for programs, with all digits."""
    head = ["p_holm" if field.name == "corrected" else field.name for field in fields(Paired)]
    return csv_text([head, *(list(vars(one).values()) for one in comparison.differences)])


def left_out(comparison: Comparison) -> list[str]:
    """In words, what was not compared, and why."""
    found = left_out_images(comparison.runs, comparison.images)
    found += [
        f"{bare(name)} is left out: only {', '.join(labels)} {'has' if len(labels) == 1 else 'have'} it"
        for name, labels in comparison.not_shared.items()
    ]
    if any(run.cost.decodes for run in comparison.runs):
        found.append("what an autoencoder does is not among network evaluations; its cost is in the seconds")
    if sets := comparison.set_names:
        found.append(f"{', '.join(map(bare, sets))}: metrics of a set have no paired difference")
    return found


def draw_frontier(comparison: Comparison, narrow: bool = False) -> bytes:
    """The figure of quality against cost: PSNR, LPIPS and FID, or the first measure where there are none."""
    from kintsugi.pipeline.analysis.figures import Quality, draw_costs  # which take the time of Matplotlib

    runs = [*comparison.runs, *comparison.baselines]
    values = {name: [run.estimate(name)[0] for run in runs] for name in [*FRONTIER, comparison.measures[0]]}
    known = [name for name in FRONTIER if any(value is not None for value in values[name])]
    qualities = [
        Quality(title(name), values[name], [badness_of(name, v) for v in values[name]])
        for name in known or comparison.measures[:1]
    ]
    return draw_costs(
        [run.label for run in runs], [run.cost for run in runs], qualities, narrow, comparison.ranked
    )


def make_cards(comparison: Comparison, inputs: Sequence[Input]) -> list[Card]:
    """The images that are shown, with the pictures that are kept; those of the i-th run under "run{i}".

    Truth and measurement are those of the first run that kept them, both where one did.
    """
    cards = {
        one.key: Card(
            key=one.key,
            place=one.place,
            measures={f"{name}_{i}": v for name, of in one.values.items() for i, v in enumerate(of) if v == v}
            | {f"{name}_spread": value for name, value in one.spreads.items()},
            why=[f"differs in {bare(comparison.by)}"] if one.differs else [],
            pictures={},
        )
        for one in comparison.shown
    }
    restored: dict[str, dict[str, bytes]] = {key: {} for key in cards}
    for i, one in enumerate(inputs):
        if one.run is None or one.rows is None:
            continue
        with parquet(one.rows) as file:
            shown = pc.is_in(file.read(["key"])["key"], value_set=pa.array(cards, pa.string()))
        bases = []
        for _, row in rows_at(one.run, np.flatnonzero(shown.to_numpy()).tolist()):
            card = cards[row["key"]]
            if row["restored"] is not None:
                restored[card.key][f"run{i}"] = row["restored"]
            kept = {KINDS[n]: row[n] for n in ("truth", "measurement") if row[n] is not None}
            if len(kept) > len(card.pictures):
                card.pictures = kept
                card.estimates = estimates_in(row)
                bases.append(card)
        with_pseudo_inverses(one.run.job, bases)
    for card in cards.values():
        card.pictures |= restored[card.key]
    return list(cards.values())


def orders(comparison: Comparison) -> dict[str, list[tuple[str, str]]]:
    """What the samples can be sorted by, in groups by heading: as the script reads it, and in words."""
    names = dict.fromkeys([comparison.by, *comparison.measures])
    found = {
        "": [
            *((f"{name}_spread:-1", f"where {bare(name)} differs most") for name in names),
            ("place:1", "as in the job"),
            ("failed:-1", "failures first"),
        ]
    }
    for i, run in enumerate(comparison.runs):
        found[run.label] = [
            (f"{name}_{i}:{direction}", f"{bare(name)} of {run.label}, {end} first")
            for name in names
            for direction, end in zip((1, -1), ASCENDING[better(name)], strict=True)
        ]
    return found


def write_page(comparison: Comparison, inputs: Sequence[Input], folder: Location) -> Location:
    """Everything in a folder: compare.html, .md, .json, .csv and .tex, runs.csv and frontier.svg.

    Returns:
        compare.html, which holds the figure and the pictures and needs no other file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw_frontier(comparison)
    runs, pairs = runs_table(comparison), paired_table(comparison.differences)
    said = [f"{run.label}: {run.title}" for run in [*comparison.runs, *comparison.listed] if run.title]
    said += [*comparison.warnings, *left_out(comparison)]
    listed = "".join(f"- {markdown_text(line)}\n" for line in said)
    values = asdict(comparison) | {"differing": comparison.differing}
    texts = {
        "compare.json": json.dumps(json_value(values), indent=1, allow_nan=False) + "\n",
        "compare.md": "\n".join(part for part in (listed, runs.markdown(), pairs.markdown()) if part),
        "compare.csv": paired_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "compare.tex": runs.latex() + "\n" + pairs.latex(),
        "compare.html": render(comparison, inputs, [figure, draw_frontier(comparison, narrow=True)]),
    }
    for name, content in {"frontier.svg": figure, **{k: v.encode() for k, v in texts.items()}}.items():
        with publish(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "compare.html"


def render(comparison: Comparison, inputs: Sequence[Input], figures: Sequence[bytes]) -> str:
    """The page.

    Args:
        figures: SVGs for a wide window and for a narrow one.
    """
    inputs = [one for one in inputs if one.has_images]
    cards = make_cards(comparison, inputs)
    pictures, form = fitted(cards)
    kinds = {kind: kind for kind in ("truth", "measurement", "pseudo-inverse")}
    kinds |= {f"run{i}": run.label for i, run in enumerate(comparison.runs)}
    available = {kind for found in pictures for kind in found}
    everything = [*comparison.runs, *comparison.listed]
    template = environments()["report.html"].get_template("compare.html.jinja")
    return template.render(
        c=comparison,
        reports=[one.report for one in inputs],
        sets={name: set(references(everything, name).values()) for name in comparison.set_names},
        best=best_runs(comparison),
        left_out=left_out(comparison),
        cards=list(zip(cards, pictures, strict=True)),
        form=form,
        kinds={kind: words for kind, words in kinds.items() if kind in available},
        orders=orders(comparison),
        title=title,
        figures=["data:image/svg+xml;base64," + b64encode(svg).decode() for svg in figures],
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def best_runs(comparison: Comparison) -> dict[str, int]:
    """Which run is the best in each measure, where that is one alone, and they can be ranked."""
    found = {}
    for name in comparison.measures if comparison.ranked else ():
        badness = [badness_of(name, run.measures[name][0]) for run in comparison.runs]
        least = min((value for value in badness if value is not None), default=None)
        first = [i for i, value in enumerate(badness) if value is not None and value == least]
        if len(first) == 1:
            found[name] = first[0]
    return found


def json_value(value: Any) -> Any:
    """The same with "inf" and "nan" for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: json_value(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
