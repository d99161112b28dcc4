"""docs/benchmarking.md."""

from __future__ import annotations

from tools.docs.tables import crossed, kept


def speed_results(part: str) -> str:
    """Decoding in docs/results/speed.json: tokens a second of each model, and its time over that of the one before."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for name, value in kept("speed")[part]["figures"].items():
        _, kind, setting, model, what = name.split(" | ")
        if not setting.startswith("decode"):
            continue
        row, batch = cells.setdefault((kind, model), {}), setting.removeprefix("decode, ")
        if what == "tokens a second":
            row[f"tokens a second, {batch}"] = f"{value:,.1f}"
        elif what.startswith("time over"):
            row[f"time, {batch}"] = f"{value:.2f} of {what.removeprefix('time over ')}"
    columns = sorted(dict.fromkeys(column for row in cells.values() for column in row), key=lambda c: c[-1])
    return crossed(cells, columns)
