"""Tables of text on the terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Collection, Iterable, Sequence

from pipeline.errors import printable
from pipeline.training.console import print_text

UNLIMITED_WIDTH = 10_000
"""Width of the output in characters where it is not a terminal."""


def format_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    *,
    right: Collection[str] = (),
    width: int = UNLIMITED_WIDTH,
) -> str:
    """Format a table as plain text, without colours, control characters and truncation.

    Args:
        columns: Names of the columns.
        rows: Cells of each row.
        title: Line above the table.
        right: Columns that are aligned on the right.
        width: Width of the output in characters; cells are folded to fit.

    >>> print(format_table(("name", "size"), [("a", "12"), ("bc", "3")], right=("size",)))
    name | size
    -----+-----
    a    |   12
    bc   |    3
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=printable(title) or None,
        title_justify="left",
        box=box.ASCII,
        show_edge=False,
        pad_edge=False,
    )
    for column in columns:
        table.add_column(
            printable(column), justify="right" if column in right else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*map(printable, row))
    text = io.StringIO()
    Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    title: str = "",
    *,
    right: Collection[str] = (),
) -> None:
    """Print a table on stdout, on rank 0 only; see `format_table`."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED_WIDTH
    print_text(format_table(columns, rows, title, right=right, width=width))
