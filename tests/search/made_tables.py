"""Made-up tables of a small model."""

from __future__ import annotations

from ffn_fusion.search.table import CostRow, ScoreRow

KINDS = {
    "attention": {"kept": 1.0, "1 KV head": 0.6, "linear": 0.3, "none": 0.0},
    "ffn": {"kept": 1.0, "width 50%": 0.5, "none": 0.0},
}
"""Choices for the parts of every block, with what they take of the kept one's."""


def score_rows(blocks: int = 4) -> list[ScoreRow]:
    """Every choice but ``kept``, the more harmful the earlier the block is; and two fused runs."""
    rows = [
        ScoreRow(
            first_block=i,
            last_block=i,
            part=part,
            choice=choice,
            score=(1 - size) * (0.1 + 0.01 * (blocks - i)) * (2 if part == "ffn" else 1),
            standard_error=0.01,
        )
        for i in range(blocks)
        for part, choices in KINDS.items()
        for choice, size in choices.items()
        if choice != "kept"
    ]
    runs = [(i, i + 1) for i in range(0, blocks - 1, 2)]
    return [*rows, *(ScoreRow(first_block=a, last_block=b, part="block", choice="fused", score=0.05) for a, b in runs)]


def cost_rows(blocks: int = 4) -> list[CostRow]:
    """Costs of the same choices at batches 1 and 8, context 128; and of the rest of the model."""
    rows = []
    for batch in (1, 8):
        for i in range(blocks):
            for part, choices in KINDS.items():
                for choice, size in choices.items():
                    rows.append(_cost(i, i, part, choice, size, batch, 100, int(part == "attention" and size > 0.5)))
        rows += [_cost(i, i + 1, "block", "fused", 2.0, batch, 100, 0) for i in range(0, blocks - 1, 2)]
        rows.append(_cost(0, blocks - 1, "model", "rest", 0.5, batch, 100, 0))
    return rows


def _cost(
    first: int, last: int, part: str, choice: str, size: float, batch: int, parameters: int, kv_bytes: int
) -> CostRow:
    return CostRow.model_validate(
        {
            "first_block": first,
            "last_block": last,
            "part": part,
            "choice": choice,
            "parameters": round(size * parameters),
            "weight_bytes": round(size * parameters) * 2,
            "kv_bytes": kv_bytes * 64,
            "steps": int(size > 0),
            "batch": batch,
            "context": 128,
            "prefill_seconds": size * 0.01 * batch,
            "decode_seconds": size * 0.001 * (1 + batch / 8),
        }
    )
