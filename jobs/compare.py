"""`kintsugi compare`: runs side by side on the same images."""

from __future__ import annotations

from typing import Annotated

import typer

from kintsugi.jobs.files import located
from kintsugi.jobs.terminal import console, errors, to_rich
from kintsugi.pipeline.analysis.tables import Table


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run directories, also those that `kintsugi score` made, and .json of results (`kintsugi "
            "list schema`), paths or URLs; the first is the baseline.",
        ),
    ],
    out: Annotated[str, typer.Option(help="The folder for the results, a path or URL.")] = "compare",
    by: Annotated[
        str | None,
        typer.Option(help="The measure in which the images that are shown differ most. [default: psnr]"),
    ] = None,
) -> None:
    """Compare runs image by image: differences with intervals and p-values, wins, cost, and pictures.

    Only images that all of the runs restored are compared, paired by key. Up to four runs every pair is
    compared, of more runs each with the first. In the folder: compare.html, a report of all runs in one
    file; compare.md, .json, .csv and .tex, runs.csv, and frontier.svg, quality against cost.

    Examples:

        kintsugi compare runs/conjugate runs/pigdm

        kintsugi compare runs/ours scored/resshift scored/diffir --by lpips --out tables/sr4

        kintsugi compare runs/ours theirs.json
    """
    from kintsugi.pipeline.analysis.compare import compare as compare_runs
    from kintsugi.pipeline.analysis.compare_inputs import open_inputs
    from kintsugi.pipeline.analysis.compare_page import left_out, paired_table, runs_table, write_page

    folder = located("--out", out)
    with console.status("reading rows"):
        inputs = open_inputs(runs)
        found = compare_runs(inputs, by)
    for line in [*found.warnings, *left_out(found)]:
        errors.print(line, style="yellow")
    console.print(to_rich(transpose(runs_table(found))))
    console.print(to_rich(abridge(paired_table(found.differences))))
    with console.status("writing"):
        page = write_page(found, inputs, folder)
    console.print(f"{found.images} images compared · {page}")


def transpose(table: Table) -> Table:
    """Columns as rows: there are many measures, and a terminal is narrow."""
    columns, *rows = zip(table.columns, *table.rows, strict=True)
    return Table(columns, rows)


def abridge(table: Table) -> Table:
    """What eighty columns have room for: both runs in one, and of the p-values the corrected one."""
    rows = [
        [measure, f"{other} − {baseline}", difference, corrected, wins]
        for measure, baseline, other, _, difference, _, corrected, wins in table.rows
    ]
    return Table(["measure", "difference of", "difference", "p, Holm", "wins"], rows)
