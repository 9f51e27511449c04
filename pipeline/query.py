"""The flat table of a run or of scored images, and SQL over it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.aggregate import shows_state_of
from pipeline.job import JobError
from pipeline.run import Run
from pipeline.storage import Location, Remote

Results = tuple[list[str], Iterator[Sequence[Any]]]
AT_ONCE = 10_000  # rows


def rows_file(folder: Location) -> Location:
    """Where all rows are, without pictures: of a run they are made anew if they are missing or stale.

    Args:
        folder: a run directory, or what `kintsugi score` made.

    Raises:
        JobError: it is neither.
    """
    from pipeline.report import write_report

    if not (folder / "job.yaml").exists() and (folder / "rows.parquet").exists():
        return folder / "rows.parquet"
    run = Run.open(folder)
    rows = folder / "report" / "rows.parquet"
    # The whole report, so that what is in that folder always shows one state of the run.
    if not (shows_state_of(run, rows) and (folder / "report" / "metrics.json").exists()):
        write_report(run)
    return rows


@contextmanager
def ask(rows: Location, sql: str) -> Iterator[Results]:
    """The names of the columns and the rows of a query over the view `rows`.

    DuckDB runs in memory and sees this table alone: no other file, no network, no extension and no variable
    of this process, so that a query from somebody else does no harm.

    Raises:
        JobError: the query is no SQL, asks for what is not there, or for what is not allowed.
    """
    import duckdb
    import pyarrow.dataset as ds

    settings: dict[str, Any] = dict.fromkeys(
        (
            "enable_external_access",
            "python_enable_replacements",
            "autoinstall_known_extensions",
            "autoload_known_extensions",
        ),
        "false",
    )
    with duckdb.connect(":memory:", config=settings) as connection:
        source = (
            ds.dataset(rows.path, filesystem=rows.filesystem, format="parquet")
            if isinstance(rows, Remote)
            else ds.dataset(rows, format="parquet")
        )
        connection.register("rows", source)
        connection.execute("set lock_configuration = true")
        try:
            found = connection.execute(sql)
            if found is None or not found.description:
                raise JobError("query: give a statement that has a result, such as: select * from rows")
            yield [name for name, *_ in found.description], iter(found.fetchone, None)
        except duckdb.Error as error:
            what = str(error).split("\n\n")[0].replace("\n", " ")
            raise JobError(f"query: {what} (`describe rows` lists the columns)") from error
