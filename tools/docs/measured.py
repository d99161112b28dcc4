"""Tables of what a benchmark printed, as they are."""

from __future__ import annotations

from collections.abc import Sequence

from tools.docs.tables import crossed, kept, table


def results(of: str, part: str, digits: int = 3, rows: Sequence[str] = ()) -> str:
    """What a benchmark printed for a part, kept in docs/results/OF.json: figures are "part | row | column".

    ``rows``: those that are shown (default: all).
    """
    found = kept(of)[part]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for name, value in found["figures"].items():
        _, row, column = name.split(" | ")
        if rows and row not in rows:
            continue
        whole = column in ("tokens", "seconds")
        text = f"{value:,.0f}" if whole else f"{value:.{digits}f}"
        goal = found["goals"].get(name)
        cells.setdefault((row,), {})[column] = text + (f" (goal ≤ {goal:g})" if goal else "")
    return crossed(cells)


def benchmark_table(name: str) -> str:
    """The kept result of a benchmark, docs/results/NAME.json."""
    result = kept(name)
    goals = {key: f"≤ {goal:g}" for key, goal in result["goals"].items()}
    rows = ((key, f"{value:.4g}", goals.get(key, "")) for key, value in result["figures"].items())
    return f"Machine: {result['machine']}.\n\n" + table(("figure", "measured", "goal"), rows)
