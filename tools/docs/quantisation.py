"""docs/quantisation.md."""

from __future__ import annotations

from tools.docs.tables import crossed, kept


def quantize_results(part: str) -> str:
    """What benchmarks/quantize.py printed for a part (docs/results/quantize.json), in percent of the output's norm."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for name, value in kept("quantize")[part]["figures"].items():
        _, row, column = name.split(" | ")
        cells.setdefault((row,), {})[column] = f"{value:.2%}"
    return crossed(cells)
