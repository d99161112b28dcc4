"""One table of typed values, for the terminal, the report, the model card and JSON.

A ``Grid`` is made once from what was measured. Its columns say how a value becomes text, so that the same figure reads
the same wherever it is shown: ``terminal.rich_table``, the report's template and ``markdown`` draw one, and ``records``
gives the values themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal, Self, TypeVar

from ffn_fusion.report.formats import NOTHING, kl, printable, whole

Tone = Literal["", "marked", "good", "fair", "bad"]
"""How a row stands out; each renderer has its own way to show it."""


@dataclass(frozen=True)
class Column:
    """A heading, a unit, and how a value is written.

    ``number``: right-aligned and never wrapped. ``optional``: left out where no row has a value.
    """

    name: str
    show: Callable[[Any], str] = whole
    unit: str = ""
    number: bool = True
    optional: bool = False

    @property
    def heading(self) -> str:
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def text(self, value: object) -> str:
        return NOTHING if value is None else self.show(value)


def words(name: str, *, optional: bool = False) -> Column:
    """A column of text, left-aligned."""
    return Column(name, printable, number=False, optional=optional)


MODEL = words("model")
"""Renderers colour its cells by the model's name."""


def kl_column(name: str = "KL", *, optional: bool = False) -> Column:
    return Column(name, kl, "nats/token", optional=optional)


@dataclass(frozen=True)
class Row:
    """The values of a row. ``rule``: a line is drawn above it."""

    values: tuple[Any, ...]
    tone: Tone = ""
    rule: bool = False


T = TypeVar("T")


@dataclass(frozen=True)
class Grid:
    """A table: columns, rows, and notes that say where and how the values were measured.

    ``grouped``: the values of the first column name groups of consecutive rows. ``notes`` are whole sentences.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    grouped: bool = False

    @classmethod
    def of(
        cls,
        items: Iterable[T],
        *columns: tuple[Column, Callable[[T], object]],
        tone: Callable[[T], Tone] = lambda item: "",
        rule: Callable[[T], bool] = lambda item: False,
        title: str = "",
        notes: Iterable[str] = (),
        grouped: bool = False,
    ) -> Self:
        """A row for each item; every column comes with the function that takes its value from an item.

        Empty notes are left out, and so are optional columns without values.
        """
        rows = [Row(tuple(value(item) for _, value in columns), tone(item), rule(item)) for item in items]
        kept = [n for n, (c, _) in enumerate(columns) if not c.optional or any(r.values[n] is not None for r in rows)]
        return cls(
            tuple(columns[n][0] for n in kept),
            tuple(replace(row, values=tuple(row.values[n] for n in kept)) for row in rows),
            title,
            tuple(filter(None, notes)),
            grouped,
        )

    @property
    def headings(self) -> tuple[str, ...]:
        return tuple(column.heading for column in self.columns)

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row as text."""
        return tuple(column.text(value) for column, value in zip(self.columns, row.values, strict=True))

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """All rows as text; a group's name is given in its first row alone."""
        found = []
        before = None
        for cells in map(self.cells, self.rows):
            found.append(("", *cells[1:]) if self.grouped and cells[0] == before else cells)
            before = cells[0]
        return found

    def split(self) -> list[Grid]:
        """A grid for each group, with the group's name as its title; the notes stay with the whole."""
        assert self.grouped
        return [
            Grid(self.columns[1:], tuple(replace(row, values=row.values[1:]) for row in rows), name)
            for name, rows in groupby(self.rows, key=lambda row: self.columns[0].text(row.values[0]))
        ]

    def transposed(self) -> Grid:
        """The rows as columns, headed by their first value: for tables of many figures about few things."""
        heads = tuple(self.columns[0].text(row.values[0]) for row in self.rows)
        lines = zip(self.headings, *map(self.cells, self.rows), strict=True)
        columns = (words(self.columns[0].name), *(Column(head, str) for head in heads))
        return replace(self, columns=columns, rows=tuple(Row(line) for line in list(lines)[1:]), grouped=False)


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table after its notes; text that others wrote means nothing but itself."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ("---:" if column.number else "---" for column in grid.columns)
    table = [line(grid.headings), line(rule), *(line(map(plain_markdown, cells)) for cells in grid.texts)]
    notes = [plain_markdown(" ".join(grid.notes)) + "\n"] if grid.notes else []
    return "\n".join([*notes, *table]) + "\n"


def plain_markdown(text: str) -> str:
    """Text as Markdown without markup, HTML or line breaks."""
    escaped = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", printable(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
