"""Which transform makes the tensors of each kind of sub-block: the other half of ``blueprint.kinds``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ffn_fusion.blueprint import (
    FusedFfn,
    KeptSubBlock,
    Kind,
    LinearSubBlock,
    NarrowedFfn,
    PooledAttention,
    WideAttention,
)
from ffn_fusion.surgery.fuse_ffn import Concatenated, fused_join, fused_parallel
from ffn_fusion.surgery.joins import Copy, Join, Wanted
from ffn_fusion.surgery.linear import linear_join
from ffn_fusion.surgery.narrow_ffn import narrowed_join, narrowed_parallel
from ffn_fusion.surgery.pool_heads import pooled_join
from ffn_fusion.surgery.wide_attention import wide_join, wide_parallel


@dataclass(frozen=True)
class Transform:
    """How a kind makes the tensors of a sub-block.

    Args:
        join: (kind, wanted) -> how the wanted tensor comes about.
        parallel: the same child with nothing merged, for verifying it: its sub-block is the sum of its sources' own
            sub-blocks on one input, of which some tensors are changed. (kind, wanted, at, rounded) -> what stands for
            the wanted tensor of the source number ``at``; None: the parent's own. ``rounded``: what the transform
            rounds (a folded norm) is rounded here too. Without ``parallel`` such a child's logits can't be verified.
    """

    join: Callable[[Any, Wanted], Join]
    parallel: Callable[[Any, Wanted, int, bool], Join | None] | None = None


def kept_join(kind: KeptSubBlock, wanted: Wanted) -> Join:
    """A copy, with zero channels where the child's width is padded."""
    if wanted.padding:
        return Concatenated(wanted.sources, wanted.tensor.axis, wanted.padding, stacked=wanted.tensor.stacked)
    return Copy(*wanted.sources)


TRANSFORMS: dict[type[Kind], Transform] = {
    KeptSubBlock: Transform(kept_join, lambda kind, wanted, at, rounded: None),
    FusedFfn: Transform(fused_join, fused_parallel),
    NarrowedFfn: Transform(narrowed_join, narrowed_parallel),
    WideAttention: Transform(wide_join, wide_parallel),
    PooledAttention: Transform(pooled_join),
    LinearSubBlock: Transform(linear_join),
}
"""A new kind registers its own here."""
