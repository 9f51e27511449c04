"""The report of a run: report.html, report.md, tables, pictures.png, metrics.json and rows.parquet."""

import base64
import hashlib
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from kintsugi.pipeline.analysis.aggregate import Summary, better, summarise
from kintsugi.pipeline.analysis.report.gallery import choose, contact_sheet, draw_deviations, failures, fitted
from kintsugi.pipeline.analysis.set_metrics import set_metrics
from kintsugi.pipeline.analysis.tables import Table, markdown_text, no_formula
from kintsugi.pipeline.data.pictures import mime
from kintsugi.pipeline.execution.directory import METRICS, REPORT, TABLE
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.job import Job
from kintsugi.pipeline.metrics import ALL, BASELINES, SETS, Better, baseline_column
from kintsugi.pipeline.metrics.sets import SetResult
from kintsugi.pipeline.storage import records
from kintsugi.pipeline.storage.files import parquet
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.publish import publish

ARROWS: Mapping[Better, str] = {"higher": " ↑", "lower": " ↓", "one": " → 1", None: ""}
TITLES = {
    **{name: metric.title + ARROWS[metric.better] for name, metric in ALL.items()},
    **{f"{name}_infinity": f"{metric.title}, n → ∞ ↓" for name, metric in SETS.items() if metric.moments},
    "residual": "residual, RMS ↓",
    "spread": "deviation of the samples, RMS",
    "seconds": "sampler, s per image",
}
ABOUT = {
    **{name: metric.about.replace("\n", " ") for name, metric in ALL.items()},
    "residual": "Root mean square of H x̂ − y, on [-1, 1].",
    "spread": "Root mean square over the pixels of the samples' standard deviation, on [-1, 1].",
    "seconds": "The sampler's time for a batch divided by its samples; to the interval a batch is one value.",
}
TRADE = (
    "PSNR and SSIM measure distortion, and are highest for the average of all images that fit the "
    "measurement, which is blurred; detail that looks real is rarely that of the truth and costs distortion: "
    "one is traded for the other (Blau and Michaeli, CVPR 2018, 1711.06077)."
)
ASCENDING: Mapping[Better, tuple[str, str]] = {
    "higher": ("worst", "best"),
    "lower": ("best", "worst"),
    "one": ("lowest", "highest"),
    None: ("lowest", "highest"),
}
PARTS = {
    "read": "waiting for images",
    "degrade": "degrading",
    "forward": "network: forwards",
    "vjp": "network: vector-Jacobian products",
    "sampler": "sampler beside the network",
    "score": "scoring",
    "encode": "waiting for pictures to be encoded",
    "write": "writing",
}
REST = "the rest"
BESIDE = {"fetch": "reading", "decode": "decoding"}  # in threads that work while the network does
BOUNDS = {
    "the network": ("forward", "vjp"),
    "the sampler": ("sampler",),
    "degrading": ("degrade",),
    "scoring": ("score",),
    "reading": ("read",),
    "writing": ("encode", "write"),
}
GROUPS = 50  # at most, of a breakdown; breakdowns.csv has all
ON_DEVICE = ("degrade", "sample", "score")


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
            with publish(folder / name) as temporary:
                temporary.write_bytes(content)
    return folder / "report.html"


def contents(run: Run, rows: Path) -> list[tuple[str, bytes]]:
    """The files of the report but for the rows, which are written to `rows`."""
    summary = summarise(run, rows)
    metrics = describe(run, summary, set_metrics(run))
    beside = against(metrics)
    tables = [table(metrics), *([beside] if beside.rows else [])]
    found = {
        METRICS: records.sealed(metrics).decode(),
        "metrics.csv": table(metrics, exact=True).csv(),
        "metrics.tex": "\n".join(each.latex() for each in tables),
    }
    first = next(iter(summary.measures), None)
    cards = choose(run, rows, bare(first or ""), summary.measures.get(first or ""))
    white = draw_deviations(cards)
    pictures, form = fitted(cards)
    with parquet(rows) as file:
        failed = failures(file.read(["key", "status", "error"]))
    for name, environment in environments().items():
        found[name] = environment.get_template(f"{name}.jinja").render(
            m=metrics,
            against=beside,
            about_baselines=about_baselines(metrics),
            means={name: v["value"] for name, v in numbers(metrics).items()},
            published=published(run.job),
            cards=list(zip(cards, pictures, strict=True)),
            kinds={kind: kind for found in pictures for kind in found},
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
        loader=PackageLoader("kintsugi.pipeline.analysis.report", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (files("kintsugi.pipeline.analysis.report") / "report.js").read_text()
    html.globals |= {
        "number": number,
        "count": count,
        "with_interval": with_interval,
        "interval": interval,
        "data_uri": data_uri,
        "bare": bare,
        "shapes": histogram,
        "titles": TITLES,
        "about": ABOUT,
        "baselines": BASELINES,
        "trade": TRADE,
        "style": Markup((files("kintsugi.pipeline.analysis.report") / "report.css").read_text()),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return {"report.md": html.overlay(finalize=plain), "report.html": html}


def describe(run: Run, summary: Summary, sets: Mapping[str, SetResult]) -> dict[str, Any]:
    """Everything the report states, as JSON values."""
    degradation = run.job.degradation
    return {
        "title": title(run.job),
        "samples": {
            "planned": summary.planned,
            "done": summary.rows,
            "ok": summary.rows - summary.failed,
            "failed": summary.failed,
        },
        "units": {"planned": summary.units, "done": summary.units_done},
        "metrics": {name: asdict(measure) for name, measure in summary.measures.items()},
        "sets": {name: asdict(result) for name, result in sets.items()},
        "breakdowns": {
            by: {"groups": len(groups), "largest": largest(groups, list(summary.measures))}
            for by, groups in summary.breakdowns.items()
        },
        "cost": {"forwards": summary.forwards, "vjps": summary.vjps},
        "time": spent(summary),
        "failures": {
            "reasons": list(map(asdict, summary.reasons)),
            "first": [dict(zip(("key", "shard", "error"), f, strict=True)) for f in summary.failures],
        },
        "shards": {
            "read": len(run.summary.shards),
            "damaged": run.summary.damaged,
            "empty": run.summary.empty,
            "left_out": {"files": run.summary.left_out, "first": run.summary.left_out_first},
        },
        "convention": (
            f"{degradation.noise}; standard deviation {degradation.sigma_y:g} on [-1, 1] for the sampler"
            if degradation.sigma_y
            else "no noise"
        ),
        "masks": list(mask_sources(degradation.operator)),
        "provenance": {
            "prior": [run.prior.title],
            **{name: sorted(values) for name, values in sorted(summary.made_by.items())},
            **{
                f"reference of {name}": [f"{result.reference}, SHA-256 {result.reference_sha256}"]
                for name, result in sets.items()
                if result.reference_sha256
            },
        },
        "config_hash": run.config_hash,
        "job": run.job.model_dump(mode="json"),
        "command": f"kintsugi run {shlex.quote(str(run.folder / 'job.yaml'))} --set output=NEW-FOLDER",
    }


def largest(groups: pa.Table, measures: list[str]) -> list[dict[str, Any]]:
    """The largest groups of a breakdown, with (mean, low, high) of the measures that they have."""
    return [
        {name: row[column] for name, column in (("name", "group"), ("n", "n"), ("failed", "failed"))}
        | {
            "measures": {
                name: (row[name], row[f"{name}_low"], row[f"{name}_high"])
                for name in measures
                if row[name] is not None
            }
        }
        for row in groups.slice(0, GROUPS).to_pylist()
    ]


def groups_csv(breakdowns: Mapping[str, pa.Table]) -> bytes:
    """All groups of all breakdowns, with all digits."""
    sink = BytesIO()
    found = pa.concat_tables(
        table.add_column(0, "by", pa.array([by] * len(table), pa.string()))
        for by, table in breakdowns.items()
    )
    names = pa.array([no_formula(name) for name in found["group"].to_pylist()], pa.string())
    pyarrow.csv.write_csv(found.set_column(1, "group", names), sink)
    return sink.getvalue()


def published(job: Job) -> list[str]:
    """The metrics of which the literature's numbers are known."""
    values = [entry.values for entry in job.published]
    return list(dict.fromkeys(name for each in values for name, value in each.items() if value is not None))


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of images, whose mean is the value, and of the set with the numbers beside them."""
    found = {name: {"value": v["mean"], **v} for name, v in metrics["metrics"].items()}
    for name, v in metrics["sets"].items():
        found[name] = v
        found |= {extra: {"value": value, "n": v["n"]} for extra, value in v["extra"].items()}
    return found


def table(metrics: Mapping[str, Any], exact: bool = False) -> Table:
    """The headline table; `exact` for programs: names for titles, all digits, nothing where nothing is."""

    def cell(value: float | None) -> str:
        return ("" if value is None else repr(value)) if exact else number(value)

    parts = ("value", "low", "high", "deviation")
    rows = [
        [name if exact else TITLES[name], *(cell(v.get(part)) for part in parts), str(v["n"])]
        for name, v in numbers(metrics).items()
    ]
    if exact:
        for name, measure in metrics["metrics"].items():
            for baseline, v in measure.get("baselines", {}).items():
                for label, of in (
                    (baseline_column(name, baseline), v),
                    (f"{name}_less_{baseline}", v["difference"]),
                ):
                    rows.append([label, *(cell(of.get(part)) for part in parts), str(of["n"])])
    return Table(["measure", *parts, "n"], rows)


def against(metrics: Mapping[str, Any]) -> Table:
    """Each measure of what needs no network, H⁺y and linear MMSE, and what restoring adds to it."""
    rows = [
        [
            bare(name),
            BASELINES[baseline],
            number(v["value"]),
            with_interval(*(v["difference"][part] for part in ("value", "low", "high"))),
            "–" if v["improved"] is None else f"{100 * v['improved']:.0f} %",
        ]
        for name, measure in metrics["metrics"].items()
        for baseline, v in measure.get("baselines", {}).items()
    ]
    return Table(["measure", "no network", "mean", "restored less this, 95 %", "improved"], rows)


def about_baselines(metrics: Mapping[str, Any]) -> list[str]:
    """In words, where restoring did worse than that, and which of it there is not."""
    known = {name: v["baselines"] for name, v in metrics["metrics"].items() if v.get("baselines")}
    found = [
        f"{bare(name)}: {BASELINES[baseline]}, which needs no network, does better on "
        f"{100 - 100 * v['improved']:.0f} % of the images"
        for name, of in known.items()
        for baseline, v in of.items()
        if v["improved"] is not None and v["improved"] < 0.5
    ]
    if known and not any("lmmse" in of for of in known.values()):
        found.append("there is no linear MMSE estimate: the operator is not linear")
    return found


def title(job: Job) -> str:
    """What was done, in a line: "bicubic factor=4 · conjugate steps=5 · natural"."""

    def line(spec: dict[str, Any]) -> str:
        settings = [f"{k}={v}" for k, v in spec.items() if k != "name"]
        return " ".join([str(spec["name"]), *settings])

    parts = [line(job.degradation.operator), job.degradation.noise, line(job.sampler), line(job.prior)]
    return " · ".join(parts)


def spent(summary: Summary) -> dict[str, Any]:
    """Where the workers' time went, and what bounds them."""
    total = summary.seconds.get("total", 0.0)
    if not total:
        return {
            "worker_seconds": 0.0,
            "parts": {},
            "beside": {},
            "device_share": None,
            "verdict": "No unit is done yet.",
        }
    seconds: dict[str, float] = defaultdict(float, summary.seconds)
    seconds["sampler"] = seconds["sample"] - seconds["forward"] - seconds["vjp"]
    parts = {label: seconds[part] for part, label in PARTS.items()}
    parts[REST] = max(total - sum(parts.values()), 0.0)
    shares = {what: sum(seconds[part] for part in of) / total for what, of in BOUNDS.items()}
    first, *others = sorted(shares, key=lambda what: -shares[what])
    on_device = sum(seconds[part] for part in ON_DEVICE) / total
    if first in ("reading", "writing"):
        kind = "I/O-bound"
    else:
        on_gpu = any("cuda" in device for device in summary.made_by.get("device", ()))
        kind = "GPU-bound" if on_gpu else "CPU-bound"
    rest = ", ".join(f"{what} {percent(shares[what])}" for what in others)
    return {
        "worker_seconds": total,
        "parts": {label: {"seconds": s, "share": s / total} for label, s in parts.items()},
        "beside": {label: seconds[part] for part, label in BESIDE.items()},
        "device_share": on_device,
        "verdict": f"{kind}: {first} took {percent(shares[first])} of the workers' time; {rest}. "
        f"The device was busy for {percent(on_device)} of it.",
    }


def mask_sources(spec: Mapping[str, Any]) -> Iterator[str]:
    """Where the masks of an operator come from: a file and its checksum, or a rule and its seed."""
    for part in spec.get("operators", ()):
        yield from mask_sources(part)
    mask = spec.get("mask")
    if mask is None:
        return
    if not mask.endswith((".png", ".npz")):
        drawn = f", drawn with seed {spec.get('seed', 0)}" if mask in ("random", "freeform") else ""
        yield f"{mask}{drawn} (operators/masks.py)"
        return
    try:
        checksum = f"SHA-256 {hashlib.sha256(Path(mask).read_bytes()).hexdigest()}"
    except OSError:
        checksum = "which is not there any more"
    yield f"{mask}, {spec['known']} is known, {checksum}"


def orders(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the samples can be sorted by, as the script reads it, and in words."""
    found = [("place:1", "as in the job"), ("failed:-1", "failures first")]
    for name in metrics:
        low, high = (f"{bare(name)}, {end} first" for end in ASCENDING[better(name)])
        found += [(f"{name}:1", low), (f"{name}:-1", high)]
    return [order for order in found if not order[0].startswith("seconds")]


def histogram(measure: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """A histogram as shapes in a square of 100 × 100: bars (x, y, width, height), and where quantiles are.

    Args:
        most: the count of a bar as high as the square; the default is the largest one.
    """
    edges, counts = measure["edges"], measure["counts"]
    width, most = (edges[-1] - edges[0]) or 1.0, most or max(counts)

    def place(value: float) -> float:
        return round(100 * (value - edges[0]) / width, 2)

    bars = [
        (place(left), round(100 - 100 * count / most, 2), place(edges[0] + right - left), 100 * count / most)
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    return {"bars": bars, "quantiles": {q: place(value) for q, value in measure["quantiles"].items()}}


def bare(name: str) -> str:
    """The title of a measure without the arrow and the unit."""
    return re.sub(r"( [↑↓]| → 1|, .*)+$", "", TITLES.get(name, name))


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def number(value: float | None, digits: int | None = None) -> str:
    """A number for reading, with three digits behind the point, or with three that count if it is small."""
    if value is None:
        return "–"
    if digits is None and 0 < abs(value) < 0.1:
        return f"{value:#.3g}"
    return f"{value:.{3 if digits is None else digits}f}"


def count(measure: Mapping[str, Any]) -> str:
    """How many values a mean is of, how many are infinite, and how many more are undefined."""
    infinite, undefined = (measure.get(what) for what in ("infinite", "undefined"))
    found = f"{measure['n']} ({infinite} infinite)" if infinite else str(measure["n"])
    return f"{found} + {undefined} undefined" if undefined else found


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    return number(value) + (f" ({interval(low, high)})" if low is not None or high is not None else "")


def interval(low: float | None, high: float | None) -> str:
    return "–" if low is None and high is None else f"{number(low)} … {number(high)}"


def plain(value: Any) -> str:
    """A value in Markdown, without any markup of its own: keys and errors come from the data of others."""
    return markdown_text(str(value))


def data_uri(picture: bytes) -> str:
    return f"data:{mime(picture)};base64," + base64.b64encode(picture).decode()
