"""What a distillation gained, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ffn_fusion.report.tables import Grid, small


def distillation_grid(record: Mapping[str, Any]) -> Grid | None:
    """KL to the parent and perplexity on windows that took no part, text by text, before and after; None where none
    were kept back.

    Args:
        record: ``distillation.json``.
    """
    rows = tuple(
        (
            row["text"],
            f"{row['tokens']:,}",
            small(row["kl"]["before"]),
            small(row["kl"]["after"]),
            *(f"{row['perplexity'][name]:.2f}" for name in ("parent", "before", "after")),
        )
        for row in record.get("gains", ())
    )
    columns = ("text", "tokens", "KL before", "KL after", "perplexity parent", "perplexity before", "perplexity after")
    return Grid(columns, rows, words=1) if rows else None
