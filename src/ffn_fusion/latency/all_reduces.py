"""All-reduces of tensor parallelism: how many a forward pass needs, and what one takes. No torch.

Attention and FFN are each split over the processes by columns, then by rows: each ends in the sum of all processes'
parts [B, T, D] (Shoeybi et al., "Megatron-LM", arXiv 1909.08053). An attention dropped or an FFN fused away saves one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from ffn_fusion.errors import CheckError
from ffn_fusion.families import ModelSpec


class AllReduceCost(BaseModel):
    """Seconds of one all-reduce of n bytes: ``alpha`` + ``beta`` * n."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float
    beta: float

    def seconds(self, nbytes: float) -> float:
        return self.alpha + self.beta * nbytes


def all_reduces(spec: ModelSpec, *, embedding: bool = False) -> int:
    """All-reduces of one forward pass, so of a token: one an attention, one an FFN.

    Linear layers in their places are held whole by every process. ``embedding``: split by the vocabulary, one more; the
    head's logits are gathered, not summed.
    """
    attentions = sum(block.attention is not None and block.attention.kind == "attention" for block in spec.blocks)
    ffns = sum(block.ffn is not None and block.ffn.kind == "gated" for block in spec.blocks)
    return attentions + ffns + embedding


def check_divides(spec: ModelSpec, processes: int) -> None:
    """Raises: CheckError: attentions whose heads can't be shared out evenly."""
    if spec.heads % processes:
        raise CheckError(
            f"{spec.heads} attention heads can't be divided by {processes} processes", "take a number that divides them"
        )
    for i, block in enumerate(spec.blocks):
        if block.attention and block.attention.kv_heads % processes:
            raise CheckError(
                f"block {i}: {block.attention.kv_heads} KV heads can't be divided by {processes} processes",
                "take a number of processes that divides the KV heads of every block",
            )


def fit_cost(nbytes: Sequence[float], seconds: Sequence[float]) -> AllReduceCost:
    """The line through measured times, by least squares of relative errors; neither part is negative."""
    import numpy as np

    sizes, times = np.asarray(nbytes, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([1 / times, sizes / times], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    if min(alpha, beta) < 0:  # then the line through the origin, or a level one
        kept = columns[:, int(alpha < 0)]
        only = kept.sum() / (kept @ kept)
        alpha, beta = (0.0, only) if alpha < 0 else (only, 0.0)
    return AllReduceCost(alpha=float(alpha), beta=float(beta))
