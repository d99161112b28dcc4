"""Evidence read as a table of choices: everything measured that a plan may take. No torch.

This is the only place that turns measured changes into choices; the exact programme, the greedy rule, the controls and
the explanations read the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from ffn_fusion.analysis.evidence import Damage, Evidence
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.analysis.widths import narrower
from ffn_fusion.blueprint import Block, Blueprint, FusedFfn, FusionNorm, NarrowedFfn, NoSubBlock
from ffn_fusion.blueprint.choices import Choice, ChoiceTable, Price, count_steps
from ffn_fusion.errors import BlueprintError


def choices_of(
    evidence: Evidence,
    max_damage: float,
    max_width: int | None = None,
    *,
    repaired: bool = True,
    norm: FusionNorm = "own",
    ffns: bool = False,
    narrow: Sequence[float] = (),
    price: Price = count_steps,
) -> ChoiceTable:
    """Everything measured that may be chosen.

    Args:
        max_damage: choices that do more are left out, but for attentions dropped alone.
        max_width: wider runs are split (``blueprint.split_run``). A split run was measured whole; split it is closer to
            the sequential form, so its damage is taken as the whole's. Parts of it that were measured as runs of their
            own are choices like any other, so they win where they did less.
        repaired: score changes by their repaired damage where it was measured.
        norm: of the fused FFNs.
        ffns: FFNs that were dropped alone may go. narrow: shares of its width that an FFN may be narrowed to.
            An attention and an FFN of one block that weren't measured together do what both did, summed.
        price: what blocks of a child cost.

    Raises:
        BlueprintError: every run holds an FFN that alone is wider than ``max_width``.
    """
    table = ChoiceTable(evidence.parent, price)
    identity = Blueprint.identity(evidence.parent)
    runs: list[Choice] = []
    too_wide: BlueprintError | None = None
    for run in evidence.runs:
        damage = run.judged(repaired)
        if damage.kl > max_damage:
            continue
        try:
            blocks = tuple(run_blocks(identity, run, norm, max_width))
        except BlueprintError as error:
            too_wide = error
            continue
        choice = table.choice(blocks, max(damage.kl, 0.0), damage.kl_error)
        if choice.runs:
            runs.append(choice)
    if too_wide and not runs:
        raise too_wide
    rows = [*_attentions(table, identity, evidence, repaired), *runs]
    beside = _side_by_side(table, identity, evidence, repaired, norm, max_width)
    rows += [row for row in beside if row.score <= max_damage]
    for block in identity.blocks:
        for ffn, damage in _ffns(evidence, block, ffns, narrow, repaired):
            rows += [row for row in _with_ffn(table, evidence, block, ffn, damage, repaired) if row.score <= max_damage]
    return replace(table, rows=tuple(rows))


def choices_within(evidence: Evidence, budget: PlanSettings, price: Price = count_steps) -> ChoiceTable:
    """Return everything measured that a budget allows; see ``choices_of``."""
    return choices_of(
        evidence,
        budget.max_damage,
        budget.max_width,
        repaired=budget.repair,
        norm=budget.norm,
        ffns=bool(budget.drop_ffn),
        narrow=budget.narrow,
        price=price,
    )


def _ffns(
    evidence: Evidence, block: Block, ffns: bool, narrow: Sequence[float], repaired: bool
) -> Iterator[tuple[NoSubBlock | NarrowedFfn, Damage]]:
    """What a block's FFN may become, with the damage that this does alone."""
    (i, _), width = block.parent_blocks, evidence.parent.blocks[block.parent_blocks[0]].ffn_width
    for removal in evidence.removals:
        if ffns and removal.part == "ffn" and removal.block == i:
            yield NoSubBlock(), removal.judged(repaired)
    wanted = {narrower(width, share) for share in narrow} if width else set()
    for row in evidence.narrowed:
        if row.block == i and row.width in wanted:
            yield NarrowedFfn(source=i, channels=evidence.channels_kept(i, row.width)), row.judged(repaired)


def _with_ffn(
    table: ChoiceTable, evidence: Evidence, block: Block, ffn: NoSubBlock | NarrowedFfn, alone: Damage, repaired: bool
) -> Iterator[Choice]:
    """That FFN, with the block's attention and without."""
    (i, _) = block.parent_blocks
    changed = block.model_copy(update={"ffn": ffn})
    yield table.choice((changed,), max(alone.kl, 0.0), alone.kl_error)
    removed = {row.part: row.judged(repaired) for row in evidence.removals if row.block == i}
    if "attention" not in removed:
        return
    without = (changed.model_copy(update={"attention": NoSubBlock()}),)
    attention, both = removed["attention"], None if ffn.present else removed.get("block")
    if both:
        yield table.choice(without, max(both.kl, 0.0), both.kl_error)
    else:
        error = float(np.hypot(alone.kl_error, attention.kl_error))
        yield table.choice(without, max(alone.kl, 0.0) + max(attention.kl, 0.0), error)


def _attentions(table: ChoiceTable, identity: Blueprint, evidence: Evidence, repaired: bool) -> Iterator[Choice]:
    """Every attention dropped alone."""
    for row in evidence.importance:
        damage = row.judged(repaired)
        block = identity.blocks[row.block].model_copy(update={"attention": NoSubBlock()})
        yield table.choice((block,), max(damage.kl, 0.0), damage.kl_error)


def _side_by_side(
    table: ChoiceTable, identity: Blueprint, evidence: Evidence, repaired: bool, norm: FusionNorm, max_width: int | None
) -> Iterator[Choice]:
    """Blocks side by side, unless their FFN would be too wide: they aren't split."""
    for row in evidence.side_by_side:
        damage, block = row.judged(repaired), identity.side_by_side(row.first, row.last, norm).blocks[row.first]
        if max_width is None or identity.width(block) <= max_width:
            yield table.choice((block,), max(damage.kl, 0.0), damage.kl_error)


class Run(Protocol):
    """A run of blocks: its attentions are dropped, but maybe the first, and FFNs ``first..fused_last`` fused."""

    @property
    def first(self) -> int: ...

    @property
    def last(self) -> int: ...

    @property
    def fused_last(self) -> int: ...

    @property
    def keeps_attention(self) -> bool: ...


def run_blocks(
    identity: Blueprint, run: Run, norm: FusionNorm = "own", max_width: int | None = None
) -> Iterator[Block]:
    """The child's blocks in place of a run."""
    head = identity.blocks[run.first].attention if run.keeps_attention else NoSubBlock()
    parts = identity.split(run.first, run.fused_last, max_width)
    for first, last in (*parts, *((i, i) for i in range(run.fused_last + 1, run.last + 1))):
        sources = tuple(source for i in range(first, last + 1) for source in identity.blocks[i].ffn.sources)
        ffn = FusedFfn(sources=sources, norm=norm) if len(sources) > 1 else identity.blocks[first].ffn
        yield Block(parent_blocks=(first, last), attention=head if first == run.first else NoSubBlock(), ffn=ffn)
