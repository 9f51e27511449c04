"""The report of a run: report.html, report.md, pictures.png, metrics.json and rows.parquet."""

import base64
import json
import math
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from pipeline.aggregate import MEASURES, Summary, gallery, summarise
from pipeline.commit import publish
from pipeline.job import Job
from pipeline.run import Run
from pipeline.worker import GALLERY

TITLES = {
    "psnr": "PSNR, dB ↑",
    "ssim": "SSIM ↑",
    "ms_ssim": "MS-SSIM ↑",
    "lpips": "LPIPS ↓",
    "residual": "residual RMS(H x̂ − y) ↓",
    "seconds": "sampler, s per image",
}
SHEET_ROWS, GAP = 4, 4  # of pictures.png
PARTS = {
    "read": "waiting for images",
    "degrade": "degrading",
    "sample": "sampling (network)",
    "score": "scoring",
    "encode": "waiting for pictures to be encoded",
    "write": "writing",
}


def write_report(run: Run) -> Path:
    """Aggregate the run and write its report; returns the path of the HTML file.

    Raises:
        JobError: a data file is not the one that was committed.
    """
    folder = run.folder / "report"
    summary = summarise(run, folder / "rows.parquet")
    metrics = describe(run, summary)
    with publish(folder / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    environment = Environment(
        loader=PackageLoader("pipeline.report", "."),
        autoescape=select_autoescape(["html.jinja"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = gallery(run, GALLERY)
    if pictures:
        with publish(folder / "pictures.png") as temporary:
            contact_sheet(pictures[:SHEET_ROWS]).save(temporary, format="PNG")
    for name in ("report.md", "report.html"):
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
    images = [
        [Image.open(BytesIO(row[name])).convert("RGB") for name in ("measurement", "restored", "truth")]
        for row in rows
    ]
    width, height = images[0][-1].size
    sheet = Image.new("RGB", (3 * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for y, pictures in enumerate(images):
        for x, picture in enumerate(pictures):
            sheet.paste(
                picture.resize((width, height), Image.Resampling.NEAREST),
                (x * (width + GAP), y * (height + GAP)),
            )
    return sheet


def finite(value: float) -> float | None:
    """JSON has no NaN: an interval of a single value is null."""
    return value if math.isfinite(value) else None


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
