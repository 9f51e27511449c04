"""The report of a run: report.html, report.md, pictures.png, metrics.json and rows.parquet."""

import base64
import json
import math
import re
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from pipeline.aggregate import MEASURES, Summary, gallery, summarise
from pipeline.job import Job
from pipeline.pictures import encode, mime
from pipeline.run import Run
from pipeline.storage import Location, publish
from pipeline.worker import GALLERY

TITLES = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "ms_ssim": "MS-SSIM ↑",
    "lpips": "LPIPS ↓",
    "residual": "residual RMS(H x̂ − y) ↓",
    "spread": "standard deviation of the samples, RMS",
    "seconds": "sampler, s per image",
}
MARKUP = re.compile(r"[&<>`|*~\[\]\\]")
SHEET_ROWS, GAP = 4, 4  # of pictures.png
SHOWN = 1024  # pixels of the longer side of a picture in the report, at most
PARTS = {
    "read": "waiting for images",
    "degrade": "degrading",
    "sample": "sampling (network)",
    "score": "scoring",
    "encode": "waiting for pictures to be encoded",
    "write": "writing",
}


def write_report(run: Run) -> Location:
    """Aggregate the run and write its report; returns the path of the HTML file.

    Raises:
        JobError: a data file is not the one that was committed.
    """
    folder = run.folder / "report"
    summary = summarise(run, folder / "rows.parquet")
    metrics = describe(run, summary)
    with publish(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    html = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    markdown = html.overlay(finalize=plain)
    pictures = gallery(run, GALLERY)
    if pictures:
        with publish(folder / "pictures.png") as temporary:
            contact_sheet(pictures[:SHEET_ROWS]).save(temporary, format="PNG")
    for name, environment in (("report.md", markdown), ("report.html", html)):
        text = environment.get_template(f"{name}.jinja").render(
            m=metrics,
            titles=TITLES,
            gallery=pictures,
            data_uri=data_uri,
            number=number,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        with publish(folder / name) as temporary:
            temporary.write_text(text)
    return folder / "report.html"


def describe(run: Run, summary: Summary) -> dict[str, Any]:
    """Everything the report states, as JSON values."""
    degradation = run.job.degradation
    total = summary.seconds.get("total", 0.0)
    parts = {label: summary.seconds.get(part, 0.0) for part, label in PARTS.items()}
    if total:
        parts["the rest"] = max(total - sum(parts.values()), 0.0)
    return {
        "title": title(run.job),
        "samples": {
            "planned": summary.planned,
            "done": summary.rows,
            "ok": summary.rows - summary.failed,
            "failed": summary.failed,
        },
        "units": {"planned": summary.units, "done": summary.units_done},
        "metrics": {
            name: {
                "mean": mean.mean if mean.n else None,
                "low": finite(mean.interval()[0]),
                "high": finite(mean.interval()[1]),
                "deviation": finite(mean.deviation),
                "n": mean.n,
                "infinite": mean.infinite,
            }
            for name in MEASURES
            if (mean := summary.means.get(name)) is not None
        },
        "cost": {"forwards": summary.forwards, "vjps": summary.vjps},
        "time": {
            "worker_seconds": total,
            "parts": {label: {"seconds": s, "share": s / total} for label, s in parts.items()}
            if total
            else {},
        },
        "failures": {
            "by_kind": dict(summary.errors.most_common()),
            "first": [dict(zip(("key", "shard", "error"), f, strict=True)) for f in summary.failures],
        },
        "shards": {
            "read": len(run.summary.shards),
            "damaged": run.summary.damaged,
            "empty": run.summary.empty,
        },
        "convention": (
            f"{degradation.noise}; standard deviation {degradation.sigma_y:g} on [-1, 1] for the sampler"
            if degradation.sigma_y
            else "no noise"
        ),
        "provenance": {
            "prior": [run.prior.title],
            **{name: sorted(values) for name, values in sorted(summary.made_by.items())},
        },
        "config_hash": run.config_hash,
        "job": run.job.model_dump(mode="json"),
        "command": f"kintsugi run {run.folder / 'job.yaml'}",
    }


def title(job: Job) -> str:
    """What was done, in a line: "bicubic factor=4 · conjugate steps=5 · natural"."""

    def line(spec: dict[str, Any]) -> str:
        settings = [f"{k}={v}" for k, v in spec.items() if k != "name"]
        return " ".join([str(spec["name"]), *settings])

    parts = [line(job.degradation.operator), job.degradation.noise, line(job.sampler), line(job.prior)]
    return " · ".join(parts)


def contact_sheet(rows: list[dict[str, Any]]) -> Image.Image:
    """Measurement, restoration and truth side by side, a sample per row; measurements are not smoothed."""
    names = [name for name in ("measurement", "restored", "truth") if rows[0][name] is not None]
    images = [[Image.open(BytesIO(row[name])).convert("RGB") for name in names] for row in rows]
    # A row is as large as its restoration, up to a bound.
    sides = [thumbnail(pictures[1].size) for pictures in images]
    width = max(len(names) * (w + GAP) - GAP for w, _ in sides)
    sheet = Image.new("RGB", (width, sum(h + GAP for _, h in sides) - GAP), "white")
    top = 0
    for (w, h), pictures in zip(sides, images, strict=True):
        for x, picture in enumerate(pictures):
            smooth = picture.width > w
            how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            sheet.paste(picture.resize((w, h), how), (x * (w + GAP), top))
        top += h + GAP
    return sheet


def thumbnail(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height, reduced to at most `SHOWN` pixels."""
    scale = min(1.0, SHOWN / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shown(content: bytes) -> bytes:
    """A picture for the report: large ones are reduced."""
    with Image.open(BytesIO(content)) as image:
        if max(image.size) <= SHOWN:
            return content
        return encode(
            np.asarray(image.convert("RGB").resize(thumbnail(image.size), Image.Resampling.LANCZOS))
        )


def finite(value: float) -> float | None:
    """JSON has no NaN: an interval of a single value is null."""
    return value if math.isfinite(value) else None


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def plain(value: Any) -> str:
    """A value in Markdown, without any markup of its own: keys and errors come from the data of others.

    Character references stand for text only, in tables too, where a backslash may end a cell.
    """
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(value).split()))


def data_uri(picture: bytes) -> str:
    picture = shown(picture)
    return f"data:{mime(picture)};base64," + base64.b64encode(picture).decode()
