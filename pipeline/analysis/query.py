"""The flat table of a run, or of what an earlier `score` made, and SQL over it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from kintsugi.errors import JobError
from kintsugi.pipeline.analysis.rows import flat_schema, shows_state_of, write_rows
from kintsugi.pipeline.execution.commit import schema_of
from kintsugi.pipeline.execution.directory import JOB, REPORT, TABLE
from kintsugi.pipeline.execution.run import Run
from kintsugi.pipeline.storage.files import dataset
from kintsugi.pipeline.storage.location import Location
from kintsugi.pipeline.storage.records import MAX_TABLE, regular

Results = tuple[list[str], Iterator[Sequence[Any]]]
LOCKS = (
    # DuckDB allows its temporary directory and its database's files whatever else is set: there are none.
    "set temp_directory = ''",
    "set allowed_directories = []",
    "set allowed_paths = []",
    "set enable_external_access = false",
    "set python_enable_replacements = false",
    "set autoinstall_known_extensions = false",
    "set autoload_known_extensions = false",
    "set lock_configuration = true",
)


def rows_file(folder: Location) -> Location:
    """Where all rows are, without pictures; the report of a run is made anew if it is missing or stale.

    Args:
        folder: a run directory, or what `kintsugi score` of an earlier version made.

    Raises:
        JobError: it is neither.
    """
    from kintsugi.pipeline.analysis.report import write_report

    found = kept_rows(folder)
    if found is None:
        # The whole report, so that what is in that folder always shows one state of the run.
        return write_report(Run.open(folder)).parent / TABLE
    return found


@contextmanager
def rows_of(folder: Location) -> Iterator[Location]:
    """All rows as they are now, without pictures; if the report of a run is missing or stale, in a file here.

    Nothing is written to the run, which may be somebody else's; no metric of the set is computed.

    Raises:
        JobError: `folder` is neither a run directory nor what an earlier `score` made.
    """
    if (found := foreign_rows(folder)) is not None:
        yield found
        return
    with rows_of_run(Run.open(folder)) as rows:
        yield rows


@contextmanager
def rows_of_run(run: Run) -> Iterator[Location]:
    """The same of a run that is open."""
    rows = run.folder / REPORT / TABLE
    if shows_state_of(run, rows, flat_schema(schema_of(run.job)).names):
        yield rows
        return
    with tempfile.TemporaryDirectory(prefix="kintsugi-") as name:
        file = Path(name) / TABLE
        write_rows(run, file)
        yield file


def kept_rows(folder: Location) -> Location | None:
    """The table that is there already, if it shows what is committed now.

    Raises:
        JobError: it is a link or no regular file; or `folder` is no run.
    """
    if (found := foreign_rows(folder)) is not None:
        return found
    run, rows = Run.open(folder), folder / REPORT / TABLE
    return rows if shows_state_of(run, rows) else None


def foreign_rows(folder: Location) -> Location | None:
    """The table of what is no run; raises a JobError if that is a link or no regular file."""
    if not (folder / JOB).exists():
        with suppress(FileNotFoundError):
            regular(folder / TABLE, MAX_TABLE)
            return folder / TABLE
    return None


@contextmanager
def ask(rows: Location, sql: str) -> Iterator[Results]:
    """The names of the columns and the rows of a query over the view `rows`.

    DuckDB runs in memory, takes one SELECT (also DESCRIBE, SUMMARIZE, VALUES and FROM), and sees this table
    alone: no other file to read, list or write, no network, no extension and no variable of this process,
    so that a query from somebody else does no harm but for the time and memory that it takes.

    Raises:
        JobError: the query is no SQL, asks for what is not there, or for what is not allowed.
    """
    import duckdb

    with duckdb.connect(":memory:") as connection:
        try:
            source = dataset(rows)
        except pa.ArrowException as error:
            raise JobError(f"{rows} cannot be read as Parquet: {error}") from error
        connection.register("rows", source)
        for lock in LOCKS:
            connection.execute(lock)
        try:
            statements = connection.extract_statements(sql)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise JobError("query: give one statement that selects, such as: select * from rows")
            found = connection.execute(statements[0])
            yield [name for name, *_ in found.description], iter(found.fetchone, None)
        except pa.ArrowException as error:
            raise JobError(f"{rows} cannot be read as Parquet: {error}") from error
        except duckdb.Error as error:
            what = str(error).split("\n\n")[0].replace("\n", " ")
            raise JobError(f"query: {what} (`describe rows` lists the columns)") from error
