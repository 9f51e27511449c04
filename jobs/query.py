"""`kintsugi query`: SQL over the rows of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

MOST = 200  # rows that are shown


def query(
    run: Annotated[str, typer.Argument(help="A run directory; also what an earlier `score` made.")],
    sql: Annotated[str, typer.Argument(help="One SELECT of DuckDB's SQL over the table `rows`.")],
    csv: Annotated[bool, typer.Option("--csv", help="Print all of the result as CSV.")] = False,
) -> None:
    """Ask the rows of a run in SQL: all samples with their measures, without the pictures.

    The query sees this table and nothing else, and changes nothing, also not the run: if its report is
    missing or older than its last unit, the table is made in a temporary file. `describe rows` lists the
    columns. CSV holds the values as they are, but for texts that a spreadsheet would take for
    formulae, which get an apostrophe in front; on a terminal control characters are escaped, too.

    Examples:

        kintsugi query runs/sr4 "select key, psnr from rows order by psnr limit 5"

        kintsugi query runs/sr4 "select label, avg(psnr) from rows group by label" --csv > classes.csv
    """
    import io
    import sys
    from itertools import chain, islice

    from kintsugi.errors import redacted
    from kintsugi.jobs.files import located
    from kintsugi.jobs.terminal import console, to_rich
    from kintsugi.pipeline.analysis.query import ask, rows_of
    from kintsugi.pipeline.analysis.tables import Table, write_csv

    with rows_of(located("RUN", run)) as table, ask(table, sql) as (columns, rows):
        if csv:
            lines: Iterable[Sequence[Any]] = chain([columns], rows)
            if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
                sys.stdout.reconfigure(encoding="utf-8")  # the values as they are, whatever terminals know
            if sys.stdout.isatty():  # keys and errors come from the data of others, and could steer it
                lines = (["" if value is None else redacted(str(value)) for value in line] for line in lines)
            write_csv(sys.stdout, lines)
            return
        cells = [["–" if value is None else str(value) for value in row] for row in islice(rows, MOST)]
        console.print(to_rich(Table(columns, cells)))
        if next(rows, None) is not None:
            console.print(f"the first {MOST} rows; --csv prints all")
