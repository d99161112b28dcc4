"""Every possible child of a small model, and random evidence: what the exact programme is checked against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st
from made_evidence import damage, make_evidence

from ffn_fusion.analysis.evidence import Evidence, MeasuredRun, MeasuredWidth, Removal
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Selection, Size
from ffn_fusion.blueprint.sub_blocks import FfnSpec


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


@st.composite
def evidence_of_every_kind(draw: st.DrawFn) -> Evidence:
    """Up to 10 blocks; of a few of them attention, FFN or the whole block dropped and the FFN narrowed; some runs.

    FFNs are 1,024 wide, narrowed to 768 or 512.
    """
    evidence = draw(random_evidence(10))
    blocks = len(evidence.parent.blocks)
    kl = st.floats(0, 5, allow_nan=False)
    some = st.sets(st.integers(0, blocks - 1), max_size=4)
    attentions = draw(some)
    removals = [row for row in evidence.removals if row.block in attentions]
    ffns = sorted(draw(some))
    removals += [Removal(part="ffn", block=i, damage=damage(draw(kl))) for i in ffns]
    removals += [Removal(part="block", block=i, damage=damage(draw(kl))) for i in ffns if draw(st.booleans())]
    narrowed = [
        MeasuredWidth(block=i, width=width, damage=damage(draw(kl)))
        for i in sorted(draw(some))
        for width in (768, 512)
        if draw(st.booleans())
    ]
    wide = [replace(block, ffn=FfnSpec("gated", 1024) if block.ffn else None) for block in evidence.parent.blocks]
    return evidence.model_copy(
        update={
            "parent": evidence.parent.model_copy(update={"blocks": tuple(wide)}),
            "removals": tuple(removals),
            "runs": evidence.runs[:4],
            "narrowed": tuple(narrowed),
            "channels": {i: np.arange(1024, dtype=np.int32)[::-1].tobytes() for i in range(blocks)},
        }
    )


widths = st.sampled_from([None, 20, 30])
"""``max_width``: two FFNs, or three."""
