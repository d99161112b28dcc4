"""The greedy rule: the cheapest measured change first. What the exact programme is compared with. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ffn_fusion.analysis.runs import Frontier, Move, Selection


def greedy(blocks: int, moves: Sequence[Move], dropped: int, fused_steps: int) -> Selection | None:
    """Take the move of least damage per sequential step saved, again and again, until the size is reached exactly.

    A move must not overlap those taken, and must leave a way to the size: without that look-ahead single attentions,
    nearly always the cheapest, would use up the attentions that the runs need.

    Args:
        blocks: of the parent.
        dropped: attentions that go; ``fused_steps``: FFN steps that are fused away.

    Returns:
        None: no set of moves has this size. Never less summed damage than the exact programme's.
    """
    taken: list[Move] = []
    left = sorted(moves, key=lambda move: (move.damage / move.steps_saved, move.first, move.last))
    n, f = dropped, fused_steps
    # One pass is enough: a move that doesn't fit now won't fit later, when still more is taken.
    for place, move in enumerate(left):
        rest = n - len(move.dropped), f - move.fused_steps
        if min(rest) < 0 or any(_overlap(move, other) for other in taken):
            continue
        free = [m for m in left[place + 1 :] if not any(_overlap(m, other) for other in (*taken, move))]
        if rest == (0, 0) or np.isfinite(Frontier(blocks, free, rest[0]).damage[rest]):
            taken.append(move)
            n, f = rest
    return Selection(tuple(sorted(taken, key=lambda move: move.first))) if (n, f) == (0, 0) else None


def _overlap(a: Move, b: Move) -> bool:
    return a.first <= b.last and b.first <= a.last
