"""All-reduces of tensor parallelism: how many a forward pass needs, and the time that one takes.

Attention and FFN are each split over the processes by columns, then by rows, so each ends in the sum of all processes'
parts [B, T, D] (Shoeybi et al., "Megatron-LM", arXiv 1909.08053). Each dropped attention
and each FFN fused away saves one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from ffn_fusion.errors import CheckError
from ffn_fusion.families import ModelSpec


class AllReduceCost(BaseModel):
    """The time of one all-reduce of n bytes: ``alpha`` + ``beta`` * n seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha: float
    beta: float

    def seconds(self, nbytes: float) -> float:
        return self.alpha + self.beta * nbytes


def all_reduces(spec: ModelSpec, *, embedding: bool = False) -> int:
    """Count the all-reduces of one forward pass: one for each attention and one for each FFN.

    Every process holds linear layers whole. The head's logits are gathered, not summed.

    Args:
        embedding: it is split by the vocabulary, which takes one more.
    """
    attentions = sum(block.attention is not None and block.attention.kind == "attention" for block in spec.blocks)
    ffns = sum(block.ffn is not None and block.ffn.kind == "gated" for block in spec.blocks)
    return attentions + ffns + embedding


def check_divides(spec: ModelSpec, processes: int) -> None:
    """Check that the processes can share the heads of every attention evenly.

    Raises:
        CheckError: they can't.
    """
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
    """Fit a line to measured times by least squares of relative errors; neither of its parts is negative."""
    sizes, times = np.asarray(nbytes, dtype=float), np.asarray(seconds, dtype=float)
    columns = np.stack([1 / times, sizes / times], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, np.ones_like(times), rcond=None)
    if min(alpha, beta) < 0:  # then a line through the origin, or a level one
        kept = columns[:, int(alpha < 0)]
        only = kept.sum() / (kept @ kept)
        alpha, beta = (0.0, only) if alpha < 0 else (only, 0.0)
    return AllReduceCost(alpha=float(alpha), beta=float(beta))
