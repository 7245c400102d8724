"""The look of the tables that the command prints."""

from __future__ import annotations

from rich.table import Table


def new_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return a table as all of the kit's are; columns in ``right`` are aligned there."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table
