"""Why a block's attention and FFN were kept, dropped or fused, from the evidence and the exact programme. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import get_args

import numpy as np

from ffn_fusion.analysis.choices import choices_within
from ffn_fusion.analysis.counterfactual import least_damage
from ffn_fusion.analysis.evidence import PARTS, Evidence, Part
from ffn_fusion.analysis.explanation import (
    Alone,
    Choice,
    ChosenBy,
    Counterfactual,
    Decision,
    Dependency,
    Explanation,
    Fate,
    Instead,
    Link,
    Neighbour,
    SubBlock,
)
from ffn_fusion.analysis.loadable import Allows, anything
from ffn_fusion.analysis.programme import Frontier, made_of, size_of
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Choice as TableChoice
from ffn_fusion.blueprint.choices import ChoiceTable, Selection, Size
from ffn_fusion.blueprint.ranges import format_blocks
from ffn_fusion.errors import BlueprintError, UsageError

_ALTERNATIVES = 5  # choices not taken that are shown
_LINKS = 3
_INSTEAD: dict[Fate, dict[SubBlock, Instead]] = {
    "kept": {"attention": "dropped", "ffn": "fused"},
    "dropped": {"attention": "kept"},
    "fused": {"ffn": "unfused"},
    "narrowed": {},
    "none in the parent": {},
}


def explain(
    blueprint: Blueprint,
    evidence: Evidence,
    block: int,
    *,
    budget: PlanSettings | None = None,
    by_person: bool = False,
    allows: Allows = anything,
    around: int = 2,
) -> Explanation:
    """Why a parent block's attention and FFN are what they are in the child, with numbers against its neighbours'.

    Args:
        block: of the parent, from 0.
        budget: the plan's; its ``max_damage`` and ``max_width`` bound what the counterfactuals may choose. Without one,
            the default limits, and every change that the child carries out.
        by_person: a person named the attentions and runs, so no rule chose them.
        allows: the changes whose child the engines asked for load.
        around: how many neighbours on each side.

    Raises:
        UsageError: the block is outside the model.
        BlueprintError: the evidence is of another model.
    """
    _check(blueprint, evidence, block)
    blocks = len(blueprint.parent.blocks)
    limits = budget or PlanSettings()
    measured = choices_within(evidence, limits.model_copy(update={"max_damage": np.inf}))
    own = made_of(blueprint, measured)
    taken = own.choices if own else ()

    def may(choice: TableChoice) -> bool:
        return allows(choice) and (choice.only_attention or choice.score <= limits.max_damage)

    allowed = measured.where(lambda choice: may(choice) or (budget is None and choice in taken))
    size = size_of(blueprint)
    least = _least(allowed, size)
    alone = partial(_alone, evidence, limits.repair)
    near = range(max(block - around, 0), min(block + around + 1, blocks))
    decisions = tuple(_decision(blueprint, part, block, taken, alone(part, block)) for part in get_args(SubBlock))
    return Explanation(
        parent=blueprint.parent.name,
        block=block,
        blocks=blocks,
        size=(size.attentions, size.fused),
        repaired=limits.repair and evidence.repaired,
        chosen_by=_chosen_by(own, least, by_person),
        damage=own.score if own else None,
        least=least,
        decisions=decisions,
        neighbours=tuple(_neighbour(blueprint, evidence, i, alone) for i in near),
        choices=_choices(measured, block, taken, may),
        dependencies=_dependencies(evidence, block),
        counterfactuals=tuple(
            _counterfactual(allowed, size, block, decision, own)
            for decision in decisions
            if decision.part in _INSTEAD.get(decision.fate, {})
        ),
    )


def _check(blueprint: Blueprint, evidence: Evidence, block: int) -> None:
    """Raises: see :func:`explain`."""
    blocks = len(blueprint.parent.blocks)
    if not 0 <= block < blocks:
        raise UsageError(
            f"layer {block} is outside the model, which has {blocks} blocks", f"blocks count from 0 to {blocks - 1}"
        )
    if evidence.parent.blocks != blueprint.parent.blocks:
        raise BlueprintError(
            f"the evidence is of {evidence.parent.name}, another model than {blueprint.parent.name}",
            "name the evidence that the child was planned from",
        )


def _least(table: ChoiceTable, size: Size) -> float | None:
    damage = Frontier(table, size).damage[size]
    return float(damage) if np.isfinite(damage) else None


def _chosen_by(own: Selection | None, least: float | None, by_person: bool) -> ChosenBy:
    if by_person:
        return "person"
    if own is None or least is None:
        return "unknown"
    return "programme" if own.score <= least + 1e-9 else "unknown"  # sums in another order differ in the last digits


# ---- what became of it


def _decision(
    blueprint: Blueprint, part: SubBlock, block: int, taken: Sequence[TableChoice], alone: Alone | None
) -> Decision:
    fate = _fate(blueprint, part, block)
    home = next((n for n, child in enumerate(blueprint.kept_blocks) if block in getattr(child, part).sources), None)
    name = f"{'FFN' if part == 'ffn' else part} {block}"
    words = f"{name}: {fate}"
    if home is not None:
        others = [i for i in blueprint.kept_blocks[home].ffn.sources if i != block] if fate == "fused" else []
        words += f" with FFN{'s' if len(others) > 1 else ''} {format_blocks(others)}" if others else ""
        words += f" to {blueprint.width(blueprint.kept_blocks[home]):,}" if fate == "narrowed" else ""
        words += f", in child block {home}"
    by = next((choice for choice in taken if block in choice.covers), None)
    if part == "ffn" and fate == "kept" and by and by.runs and block == by.last:
        words += f"; the last of the run {by.first}-{by.last}, left out of its fusion"
    if alone:
        words += f"; dropping it alone does {alone.kl:.4f}, rank {alone.rank} of {alone.ranked}"
    return Decision(part=part, fate=fate, child_block=home, words=words)


def _fate(blueprint: Blueprint, part: SubBlock, block: int) -> Fate:
    if getattr(blueprint.parent.blocks[block], part) is None:
        return "none in the parent"
    child = next((b for b in blueprint.blocks if block in getattr(b, part).sources), None)
    if child is None:
        return "dropped"
    return child.part(part).fate


def _neighbour(
    blueprint: Blueprint, evidence: Evidence, block: int, alone: Callable[[Part, int], Alone | None]
) -> Neighbour:
    return Neighbour(
        block=block,
        attention=_fate(blueprint, "attention", block),
        ffn=_fate(blueprint, "ffn", block),
        alone={part: found for part in PARTS if (found := alone(part, block))},
        geometry=tuple(row for row in evidence.geometry if row.block == block),
    )


def _alone(evidence: Evidence, repaired: bool, part: Part, block: int) -> Alone | None:
    ranked = sorted((row for row in evidence.removals if row.part == part), key=lambda row: row.judged(repaired).kl)
    for rank, row in enumerate(ranked, start=1):
        if row.block == block:
            damage = row.judged(repaired)
            return Alone(kl=damage.kl, kl_error=damage.kl_error, rank=rank, ranked=len(ranked))
    return None


# ---- what else there was


def _choices(table: ChoiceTable, block: int, taken: Sequence[TableChoice], may: Allows) -> tuple[Choice, ...]:
    """What was chosen for the block, then the cheapest that weren't, by damage for each step saved."""

    def per_step(choice: TableChoice) -> float:
        return choice.score / table.saved(choice).steps

    here = sorted((c for c in table.rows if block in c.covers and table.saved(c).steps), key=per_step)
    chosen = [choice for choice in here if choice in taken]
    others = [choice for choice in here if choice not in taken][:_ALTERNATIVES]
    return tuple(
        Choice(
            first=choice.first,
            last=choice.last,
            dropped=choice.dropped,
            runs=choice.runs,
            merged=choice.merged,
            steps=table.saved(choice).steps,
            damage=choice.score,
            damage_error=choice.error,
            per_step=per_step(choice),
            chosen=choice in taken,
            allowed=may(choice),
        )
        for choice in (*chosen, *others)
    )


def _dependencies(evidence: Evidence, block: int) -> tuple[Dependency, ...]:
    """What the block depends on (a column of M) and what depends on it (a row), where M was measured."""
    return tuple(
        Dependency(
            part=part,
            depends_on=_strongest(evidence.dependency(part)[:, block].tolist()),
            needed_by=_strongest(evidence.dependency(part)[block].tolist()),
        )
        for part in PARTS
        if f"{part}.mean" in evidence.matrices
    )


def _strongest(distances: Sequence[float]) -> tuple[Link, ...]:
    links = [Link(block=i, distance=value) for i, value in enumerate(distances) if not np.isnan(value)]
    return tuple(sorted(links, key=lambda link: -link.distance)[:_LINKS])


def _counterfactual(
    table: ChoiceTable, size: Size, block: int, decision: Decision, own: Selection | None
) -> Counterfactual:
    instead = _INSTEAD[decision.fate][decision.part]
    found = least_damage(table, size, block, instead)
    return Counterfactual(
        part=decision.part,
        instead=instead,
        damage=found.score if found else None,
        more=found.score - own.score if found and own else None,
        dropped=found.dropped if found else (),
        runs=found.runs if found else (),
        merged=found.merged if found else (),
    )
