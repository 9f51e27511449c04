"""The report of a run: report.html, report.md, tables, pictures.png, metrics.json and rows.parquet."""

from kintsugi.pipeline.analysis.report.write import write_report

__all__ = ["write_report"]
