"""What a repair did, as text: place by place, and the KL before and after on windows that took no part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.report.tables import NOTHING, Grid, small

_PARTS = {"attention": "attention", "ffn": "FFN"}


def repairs_grid(record: Mapping[str, Any]) -> Grid:
    """Every place that was solved: lambda, the linear solve's residual, the error left on held-out tokens.

    Args:
        record: ``repairs.json``.
    """
    rows = tuple(
        (
            str(row["block"]),
            row["why"],
            _PARTS[row["part"]],
            f"{row['width']:,}",
            f"{row['lambda']:g}" if row["lambda"] is not None else NOTHING,
            f"{row['residual']:.0e}" if row["residual"] is not None else NOTHING,
            f"{row['held_out_error']:.1%}" if row["reason"] is None else f"kept: {row['reason']}",
        )
        for row in record["places"]
    )
    columns = ("child block", "why", "solved", "width", "lambda", "residual", "error left, held out")
    return Grid(columns, rows, words=3)


def solved_projections(record: Mapping[str, Any]) -> str | None:
    """Say how many output projections of which kind have new weights; None where every old weight was kept.

    Args:
        record: ``repairs.json``. A bias that was solved with its projection is no projection of its own.
    """
    changed = [row["part"] for row in record["places"] if row["reason"] is None]
    counts = [(changed.count(part), word) for part, word in _PARTS.items() if part in changed]
    if not counts:
        return None
    kinds = " and ".join(f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts)
    one = len(changed) == 1
    biases = any(name.endswith(".bias") for name in record["files"])
    with_bias = " with its bias" if one else " with their biases"
    return f"The output projection{' of' if one else 's of'} {kinds}{with_bias * biases} {'was' if one else 'were'}"


def gains_grid(record: Mapping[str, Any]) -> Grid | None:
    """KL to the parent on windows that took no part, text by text; None where none were kept back."""
    names = ("pruned", "unrepaired", "repaired")
    rows = tuple(
        (row["text"], f"{row['tokens']:,}", *(small(row[name]) for name in names)) for row in record.get("gains", ())
    )
    return Grid(("KL to the parent on", "tokens", *names), rows, words=1) if rows else None
