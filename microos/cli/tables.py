"""Tables for people; whoever wants data says `--json`. The only importer of rich."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

WIDTH = 200
"""Of a table that does not go to a terminal [columns]."""


def show(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows, shape (n, columns), to standard output."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    console.print(table)


def _cell(value: object) -> str:
    match value:
        case bool():
            text = "yes" if value else "no"
        case dict():
            text = " ".join(f"{key}={each}" for key, each in value.items())
        case list() | tuple():
            text = " ".join(str(each) for each in value)
        case _:
            text = str(value)
    # What nodes say of themselves is text, never markup of ours.
    return text.replace("[", "\\[")
