"""Grids on a terminal. rich and nothing heavier: every command imports this."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ffn_fusion.report.grid import MODEL, Column, Grid, Tone
from ffn_fusion.report.palette import TERMINAL_MODELS

_SHORTEST_NAME = 12  # characters: names up to this long never give way to numbers
_TONES: dict[Tone, str] = {"": "", "marked": "bold", "good": "green", "fair": "yellow", "bad": "red"}


def rich_table(grid: Grid) -> Table:
    """The grid for a terminal of 80 columns or more; groups become headings above indented rows."""
    columns = grid.columns[1:] if grid.grouped else grid.columns
    longest = max((len(cells[grid.grouped]) for cells in grid.texts), default=0) + 2
    table = _empty(columns, grid.title, grid.notes, min(longest, _SHORTEST_NAME))
    for row, cells in zip(grid.rows, grid.texts, strict=True):
        if grid.grouped and cells[0]:
            if table.row_count:
                table.add_section()
            table.add_row(Text(cells[0], style="bold"))
        if row.rule:
            table.add_section()
        shown = cells[1:] if grid.grouped else cells
        style = _TONES[row.tone] or (TERMINAL_MODELS.get(shown[0], "") if columns[0] is MODEL else "")
        first = f"  {shown[0]}" if grid.grouped else shown[0]
        # Text, not str: names that others gave may hold [markup]
        table.add_row(*(Text(cell) for cell in (first, *shown[1:])), style=style)
    return table


def _empty(columns: Sequence[Column], title: str, notes: Sequence[str], least: int) -> Table:
    """A table without rows, its first column at least ``least`` wide.

    Numbers never wrap: half a number is worse than a narrow column of words.
    """
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        header_style="bold",
        title=Text(title) if title else None,
        caption=Text(" ".join(notes)) if notes else None,
        caption_justify="left",
        title_justify="left",
    )
    for place, column in enumerate(columns):
        table.add_column(
            _heading(column),
            justify="right" if column.number else "left",
            no_wrap=column.number,
            min_width=None if place else least,
            vertical="top",
        )
    return table


def _heading(column: Column) -> Text:
    """The unit, or the second half of a long heading, on a line of its own, so that tables fit 80 columns."""
    if column.unit:
        return Text(f"{column.name}\n{column.unit}")
    if not column.number or len(column.name) <= 8 or " " not in column.name:
        return Text(column.name)
    name = column.name
    middle = min((i for i, char in enumerate(name) if char == " "), key=lambda i: max(i, len(name) - i))
    return Text(name[:middle] + "\n" + name[middle + 1 :])
