"""`kintsugi query`: SQL over the rows of a run."""

from __future__ import annotations

from typing import Annotated

import typer

MOST = 200  # rows that are shown


def query(
    run: Annotated[str, typer.Argument(help="A run directory, or a folder that `kintsugi score` made.")],
    sql: Annotated[str, typer.Argument(help="A query of DuckDB's SQL over the table `rows`.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print all of the result as CSV.")] = False,
) -> None:
    """Ask the rows of a run in SQL: all samples with their measures, without the pictures.

    The query sees this table and nothing else, and changes nothing. `describe rows` lists the columns.

    Examples:

        kintsugi query runs/sr4 "select key, psnr from rows order by psnr limit 5"

        kintsugi query runs/sr4 "select label, avg(psnr) from rows group by label" --csv > classes.csv
    """
    import csv as files
    import sys
    from itertools import islice

    from jobs.cli import console
    from jobs.compare import shown
    from pipeline.job import JobError
    from pipeline.query import ask, rows_file
    from pipeline.storage import at
    from pipeline.tables import Table

    try:
        folder = at(run)
    except ValueError as error:
        raise JobError(f"RUN: {error}") from error
    with ask(rows_file(folder), sql) as (columns, rows):
        if csv:
            writer = files.writer(sys.stdout, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
            return
        cells = [["–" if value is None else str(value) for value in row] for row in islice(rows, MOST)]
        console.print(shown(Table(columns, cells)))
        if next(rows, None) is not None:
            console.print(f"the first {MOST} rows; --csv prints all")
