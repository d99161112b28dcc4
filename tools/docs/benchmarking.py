"""docs/benchmarking.md."""

from __future__ import annotations

from tools.docs.tables import crossed, kept


def speed_results(part: str) -> str:
    """Decoding in docs/results/speed.json: tokens a second of each model, and its time over that of the one before."""
    figures: dict[str, float] = kept("speed")[part]["figures"]
    named = {tuple(name.split(" | ")[1:]): value for name, value in figures.items()}
    limits = {kind: value for (kind, *rest), value in named.items() if rest == ["widest FFN that isn't slower"]}
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for (kind, *place), value in named.items():
        if place[-1] == "its widest FFN":
            over = f", over the curve's {limits[kind]:,.0f}" if value > limits.get(kind, value) else ""
            cells.setdefault((kind, place[0]), {})["widest FFN"] = f"{value:,.0f}{over}"
        if not place[0].startswith("decode"):
            continue
        setting, model, what = place
        row, batch = cells.setdefault((kind, model), {}), setting.removeprefix("decode, ")
        if what == "tokens a second":
            row[f"tokens a second, {batch}"] = f"{value:,.1f}"
        elif what.startswith("time over"):
            row[f"time, {batch}"] = f"{value:.2f} of {what.removeprefix('time over ')}"
    columns = sorted(dict.fromkeys(column for row in cells.values() for column in row), key=lambda c: c[-1])
    return crossed(cells, columns)
