"""Every possible child of a small model, and random evidence: what the exact programme is checked against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st
from made_evidence import damage, make_evidence

from ffn_fusion.analysis.evidence import Evidence, MeasuredRun
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size


def every_plan(table: ChoiceTable, at: int = 0) -> Iterator[tuple[Choice, ...]]:
    """Every set of choices that don't overlap, in order."""
    if at >= len(table.parent.blocks):
        yield ()
        return
    yield from every_plan(table, at + 1)
    for choice in table.rows:
        if choice.first == at:
            for rest in every_plan(table, choice.last + 1):
                yield (choice, *rest)


def size_of(plan: Sequence[Choice]) -> Size:
    return Selection(tuple(plan)).size


def damage_of(plan: Sequence[Choice]) -> float:
    return sum(choice.score for choice in plan)


def least_of_every_plan(plans: Iterator[tuple[Choice, ...]]) -> dict[Size, float]:
    best: dict[Size, float] = {}
    for plan in plans:
        best[size_of(plan)] = min(best.get(size_of(plan), np.inf), damage_of(plan))
    return best


@st.composite
def random_evidence(draw: st.DrawFn, most: int = 7) -> Evidence:
    """A few blocks, each attention's damage, and a few runs, none twice; FFNs 10 wide."""
    blocks = draw(st.integers(2, most))
    kl = st.floats(0, 5, allow_nan=False)
    shapes = [
        (first, last, fused_last, keeps)
        for first in range(blocks)
        for last in range(first + 1, min(first + 5, blocks))
        for fused_last in range(max(first + 1, last - 1), last + 1)
        for keeps in (False, True)
    ]
    chosen = draw(st.lists(st.sampled_from(shapes), unique=True, max_size=10))
    maybe = st.one_of(st.none(), kl.map(damage))
    runs = [
        MeasuredRun(
            first=first,
            last=last,
            fused_last=fused_last,
            keeps_attention=keeps,
            damage=damage(draw(kl)),
            repaired=draw(maybe),
        )
        for first, last, fused_last, keeps in chosen
    ]
    alone = draw(st.lists(kl, min_size=blocks, max_size=blocks))
    matrix = np.full((blocks, blocks), np.nan)
    upper = np.triu_indices(blocks, k=1)
    matrix[upper] = draw(st.lists(st.floats(0, 1), min_size=len(upper[0]), max_size=len(upper[0])))
    made = make_evidence(blocks, runs, width=10, kl=alone)
    removals = tuple(row.model_copy(update={"repaired": draw(maybe)}) for row in made.removals)
    return made.model_copy(update={"matrices": {"block.mean": matrix.tolist()}, "removals": removals})


widths = st.sampled_from([None, 20, 30])
"""``max_width``: two FFNs, or three."""
