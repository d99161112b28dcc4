"""What the exact programme would do if one sub-block had to have another fate. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffn_fusion.analysis.explanation import Instead
from ffn_fusion.analysis.runs import Frontier, Move, Selection


def least_damage(
    blocks: int, moves: Sequence[Move], size: tuple[int, int], block: int, instead: Instead
) -> Selection | None:
    """The plan of least summed damage, of just this size, in which ``block`` has the fate ``instead``.

    Args:
        blocks: of the parent.
        size: attentions dropped, FFN steps fused away.
        instead: "kept" and "dropped" speak of the attention, "unfused" and "fused" of the FFN.

    Returns:
        None: no plan of this size has it.
    """

    def does(move: Move) -> bool:
        if instead in ("kept", "dropped"):
            return block in move.dropped
        return any(first <= block <= last for first, last in move.pieces)

    if instead in ("dropped", "fused"):
        allowed = [move for move in moves if block not in move.blocks or does(move)]
        frontier = Frontier(blocks, allowed, size[0], must_change={block})
    else:
        frontier = Frontier(blocks, [move for move in moves if not does(move)], size[0])
    return frontier.selection(*size) if np.isfinite(frontier.damage[size]) else None
