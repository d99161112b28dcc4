"""Which stretches of blocks are worth measuring as fused runs. No torch.

A stretch drops the attentions of consecutive blocks and fuses their FFNs; by default its last FFN stays alone, as in
the paper. Its first block may keep its attention: then that block's FFN joins the sum as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ffn_fusion.analysis.evidence import Removal
from ffn_fusion.families import ModelSpec


@dataclass(frozen=True)
class StretchShape:
    """Blocks first..last; FFNs first..fused_last are fused; the first keeps its attention or not."""

    first: int
    last: int
    fused_last: int
    keeps_attention: bool


def least_important(removals: Sequence[Removal], share: float) -> set[int]:
    """Blocks of that share of the attentions, by replace-1 damage, repaired where that was measured."""
    importance = [row for row in removals if row.part == "attention"]
    cheapest = sorted(importance, key=lambda row: row.judged().kl)
    return {row.block for row in cheapest[: round(share * len(cheapest))]}


def candidate_stretches(
    spec: ModelSpec, allowed: Iterable[int], max_stretch: int, leave_last: bool = True
) -> list[StretchShape]:
    """Stretches of up to max_stretch blocks whose dropped attentions are all among the ``allowed``.

    Blocks that have no attention in the parent (Nemotron-NAS) cost nothing to drop and always qualify; blocks without
    a gated FFN end a stretch.

    Args:
        leave_last: only stretches whose last FFN stays alone; otherwise those that fuse it, too.
    """
    allowed = set(allowed) | {i for i, block in enumerate(spec.blocks) if block.attention is None}
    found = []
    for first in range(len(spec.blocks)):
        for last in range(first + 1, min(first + max_stretch, len(spec.blocks))):
            inside = spec.blocks[first : last + 1]
            if any(block.ffn is None or block.ffn.kind != "gated" for block in inside):
                break
            if not set(range(first + 1, last + 1)) <= allowed:
                break
            for fused_last in (last - 1,) if leave_last else (last - 1, last):
                if fused_last == first:
                    continue  # nothing fused: the attentions dropped one by one say as much
                if first in allowed:
                    found.append(StretchShape(first, last, fused_last, keeps_attention=False))
                if spec.blocks[first].attention is not None:
                    found.append(StretchShape(first, last, fused_last, keeps_attention=True))
    return found
