"""Writing the report of a run: its files, and the templates that make its pages."""

import base64
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from kintsugi.pipeline.analysis.aggregate import summarise
from kintsugi.pipeline.analysis.calibration import calibration
from kintsugi.pipeline.analysis.estimates import estimates
from kintsugi.pipeline.analysis.measures import about, bare, count, interval, number, title, with_interval
from kintsugi.pipeline.analysis.report.gallery import choose, contact_sheet, draw_deviations, failures, fitted
from kintsugi.pipeline.analysis.report.numbers import (
    about_baselines,
    against,
    calibration_table,
    estimates_table,
    exact_table,
    groups_csv,
    histogram,
    numbers,
    orders,
    published,
    table,
)
from kintsugi.pipeline.analysis.report.opening import LINEAR, add_linear_mmse, at_top, opening, views
from kintsugi.pipeline.analysis.report.results import results
from kintsugi.pipeline.analysis.set_metrics import set_metrics
from kintsugi.pipeline.analysis.stated import protocol_of, values_of
from kintsugi.pipeline.analysis.tables import markdown_text
from kintsugi.pipeline.data.pictures import mime
from kintsugi.pipeline.execution.directory import METRICS, REPORT, TABLE
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.metrics.registry import BASELINES, CALIBRATION, COVERAGE
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish, publish_bytes

PACKAGE = "kintsugi.pipeline.analysis.report"
TRADE = (
    "PSNR and SSIM measure distortion, and are highest for the average of all images that fit the "
    "measurement, which is blurred; detail that looks real is rarely that of the truth and costs distortion: "
    "one is traded for the other (Blau and Michaeli, CVPR 2018, 1711.06077)."
)


def write_report(run: Run) -> Location:
    """Aggregate the run and write its report; returns the path of the HTML file.

    Nothing is replaced before all of it is made, and `rows.parquet`, which says what state of the run the
    folder shows, comes last.

    Raises:
        JobError: a data file is not the one that was committed; a reference or its features are missing.
    """
    folder = run.folder / REPORT
    with publish(folder / TABLE) as rows:
        for name, content in contents(run, rows):
            publish_bytes(folder / name, content)
    return folder / "report.html"


def contents(run: Run, rows: Path) -> list[tuple[str, bytes]]:
    """The files of the report but for the rows, which are written to `rows`."""
    tally, summary = summarise(run, rows)
    metrics = results(run, tally, summary, set_metrics(run))
    metrics["protocol"] = protocol_of(run, tally, summary, rows)
    if values := values_of(rows, summary):
        metrics["values"] = values
    if calibrated := calibration(run, rows):
        metrics["calibration"] = calibrated
    if estimated := estimates(run, rows):
        metrics["estimates"] = estimated
    beside = against(metrics)
    tables = [table(metrics), *([beside] if beside.rows else [])]
    found = {
        METRICS: records.sealed(metrics).decode(),
        "metrics.csv": exact_table(metrics).csv(),
        "metrics.tex": "\n".join(each.latex() for each in tables),
    }
    first = next(iter(summary.measures), None)
    cards = choose(run, rows, bare(first or ""), summary.measures.get(first or ""))
    white = draw_deviations(cards)
    add_linear_mmse(run.job, at_top(cards))
    pictures, form = fitted(cards)
    with parquet(rows) as file:
        failed = failures(file.read(["key", "status", "error"]))
    for name, environment in environments().items():
        found[name] = environment.get_template(f"{name}.jinja").render(
            m=metrics,
            opening=opening(run.job, metrics),
            opened={card.place: views(card.pictures) for card in at_top(cards)},
            against=beside,
            about_baselines=about_baselines(metrics),
            means={name: v["value"] for name, v in numbers(metrics).items()},
            published=published(run.job),
            calibration=calibration_table(metrics),
            estimates=estimates_table(metrics),
            cards=list(zip(cards, pictures, strict=True)),
            kinds={kind: kind for found in pictures for kind in found if kind != LINEAR},
            failed=failed,
            form=form,
            white=white,
            orders=orders(metrics["metrics"]),
            job=yaml.safe_dump(metrics["job"], sort_keys=False, allow_unicode=True),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
    made = [(name, text.encode()) for name, text in found.items()]
    made.append(("breakdowns.csv", groups_csv(summary.breakdowns)))
    if cards:
        sheet = BytesIO()
        contact_sheet(cards).save(sheet, format="PNG")
        made.append(("pictures.png", sheet.getvalue()))
    return made


@cache
def environments() -> Mapping[str, Environment]:
    """The templates' environments by the file they make."""
    html = Environment(
        loader=PackageLoader(PACKAGE, "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files(PACKAGE) / "report.js").read_text()
    html.globals |= {
        "number": number,
        "count": count,
        "with_interval": with_interval,
        "interval": interval,
        "data_uri": data_uri,
        "bare": bare,
        "shapes": histogram,
        "title": title,
        "about": about,
        "baselines": BASELINES,
        "coverage": COVERAGE,
        "of_calibration": CALIBRATION,
        "trade": TRADE,
        "style": Markup((files(PACKAGE) / "report.css").read_text()),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return {"report.md": html.overlay(finalize=plain), "report.html": html}


def plain(value: Any) -> str:
    """A value in Markdown, without any markup of its own: keys and errors come from the data of others."""
    return markdown_text(str(value))


def data_uri(picture: bytes) -> str:
    """A picture as what `src` takes."""
    return f"data:{mime(picture)};base64," + base64.b64encode(picture).decode()
