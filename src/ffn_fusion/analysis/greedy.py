"""The greedy rule: the cheapest measured choice first. What the exact programme is compared with. No torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ffn_fusion.analysis.programme import Frontier
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size


def greedy(table: ChoiceTable, size: Size) -> Selection | None:
    """Take the choice of least damage per sequential step saved, again and again, until the size is reached exactly.

    A choice must not overlap those taken, and must leave a way to the size: without that look-ahead single attentions,
    nearly always the cheapest, would use up the attentions that the runs need.

    Returns:
        None: no set of choices has this size. Never less summed damage than the exact programme's.
    """
    taken: list[Choice] = []
    saving = (choice for choice in table.rows if table.saved(choice).steps)
    left = sorted(saving, key=lambda choice: (choice.score / table.saved(choice).steps, choice.first, choice.last))
    missing = size
    # One pass is enough: a choice that doesn't fit now won't fit later, when still more is taken.
    for place, choice in enumerate(left):
        rest = missing.minus(choice.size)
        if min(rest) < 0 or any(choice.overlaps(other) for other in taken):
            continue
        free = [row for row in left[place + 1 :] if not any(row.overlaps(other) for other in (*taken, choice))]
        if not any(rest) or np.isfinite(Frontier(replace(table, rows=tuple(free)), rest).damage[rest]):
            taken.append(choice)
            missing = rest
    return None if any(missing) else Selection(tuple(sorted(taken, key=lambda choice: choice.first)))
