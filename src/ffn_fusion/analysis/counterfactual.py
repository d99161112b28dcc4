"""What the exact programme would do if one sub-block had to have another fate. No torch."""

from __future__ import annotations

import numpy as np

from ffn_fusion.analysis.explanation import Instead
from ffn_fusion.analysis.programme import Frontier
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size


def least_damage(table: ChoiceTable, size: Size, block: int, instead: Instead) -> Selection | None:
    """The plan of least summed damage, of just this size, in which ``block`` has the fate ``instead``.

    Args:
        instead: "kept" and "dropped" speak of the attention, "unfused" and "fused" of the FFN.

    Returns:
        None: no plan of this size has it.
    """

    def does(choice: Choice) -> bool:
        if instead in ("kept", "dropped"):
            return block in choice.dropped
        return any(first <= block <= last for first, last in choice.runs)

    if instead in ("dropped", "fused"):
        allowed = table.where(lambda choice: block not in choice.covers or does(choice))
        frontier = Frontier(allowed, size, must_change={block})
    else:
        frontier = Frontier(table.where(lambda choice: not does(choice)), size)
    return frontier.selection(size) if np.isfinite(frontier.damage[size]) else None
