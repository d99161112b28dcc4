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


def gains_grid(record: Mapping[str, Any]) -> Grid | None:
    """KL to the parent on windows that took no part, text by text; None where none were kept back."""
    names = ("pruned", "unrepaired", "repaired")
    rows = tuple(
        (row["text"], f"{row['tokens']:,}", *(small(row[name]) for name in names)) for row in record.get("gains", ())
    )
    return Grid(("KL to the parent on", "tokens", *names), rows, words=1) if rows else None
