"""The terminal: what is printed there, and the exit codes."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from rich import box
from rich import table as rich_table
from rich.console import Console

from kintsugi.errors import redacted

if TYPE_CHECKING:
    from rich.status import Status

    from kintsugi.pipeline.analysis.tables import Table

EXIT_CANNOT_RUN, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 1, 2, 130


class Terminal(Console):
    """Prints names and errors, also from files of others: no markup, no secrets, nothing that steers it."""

    def __init__(self, *, stderr: bool = False):
        super().__init__(stderr=stderr, markup=False, highlight=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich's; what is text alone is never wrapped."""
        if all(isinstance(it, str) for it in objects):  # lines, whose paths can be copied whole
            objects, options = tuple(map(redacted, objects)), {"soft_wrap": True} | options
        super().print(*objects, **options)

    def status(self, *status: Any, **options: Any) -> Status:
        """As rich's; nothing in a notebook, where it needs a package for one line that goes away again."""
        quiet = Console(quiet=True, force_jupyter=False)
        return quiet.status(*status, **options) if self.is_jupyter else super().status(*status, **options)


console, errors = Terminal(), Terminal(stderr=True)


def fail(message: str) -> NoReturn:
    """End the command with an error."""
    errors.print(f"error: {message}", style="red")
    sys.exit(EXIT_CANNOT_RUN)


def to_rich(
    table: Table, left: int = 1, title: str | None = None, caption: str | None = None
) -> rich_table.Table:
    """A table for the terminal, `left` columns flush left; what could steer it is written as an escape."""
    target = rich_table.Table(
        title=title,
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for i, column in enumerate(table.columns):
        target.add_column(redacted(column), justify="left" if i < left else "right", overflow="fold")
    for row in table.rows:
        target.add_row(*map(redacted, row))
    return target


def to_text(table: Table) -> str:
    """A table as `to_rich`, as plain text of at most a hundred columns."""
    plain = Console(file=io.StringIO(), width=100, force_jupyter=False, force_terminal=False)
    with plain.capture() as captured:
        plain.print(to_rich(table))
    return "\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines())
