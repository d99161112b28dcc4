"""Tables in Markdown, and the results they're made of: what benchmarks printed, kept in docs/results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def kept(name: str) -> Any:
    """docs/results/NAME.json."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of cells below a heading."""
    heading = "|" + "".join(f" {name} |" if name else " |" for name in columns)
    return "\n".join([heading, "|" + "---|" * len(columns), *("| " + " | ".join(row) + " |" for row in rows)])


def crossed(cells: Mapping[tuple[str, ...], Mapping[str, str]], columns: Sequence[str] = ()) -> str:
    """A table of (what the row is of) -> column -> cell.

    ``columns``: their order (default: as they come).
    """
    columns = columns or list(dict.fromkeys(column for row in cells.values() for column in row))
    first = [""] * len(next(iter(cells)))
    return table([*first, *columns], ([*of, *(row.get(c, "") for c in columns)] for of, row in cells.items()))
