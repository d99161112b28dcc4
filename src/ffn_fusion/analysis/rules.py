"""Rules that choose runs without the exact programme, to show what it's worth. No torch.

Each rule makes a child of the same size as a given one: as many attentions dropped, as many FFN steps fused away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ffn_fusion.analysis.choices import choices_within
from ffn_fusion.analysis.evidence import Evidence
from ffn_fusion.analysis.greedy import greedy
from ffn_fusion.analysis.loadable import Allows, anything
from ffn_fusion.analysis.programme import made_of, size_of
from ffn_fusion.analysis.settings import PlanSettings
from ffn_fusion.blueprint import Blueprint
from ffn_fusion.blueprint.choices import Runs, Size


@dataclass(frozen=True)
class ControlPlan:
    """A child that a rule chose. ``meaning`` says how, for people."""

    name: str
    meaning: str
    blueprint: Blueprint


@dataclass(frozen=True)
class Compared:
    """A way of choosing, and what it does by the additive count (KL, nats a token); None: not all of it was measured.

    The count ignores ``max_damage``: it says what was measured, not what may be chosen.
    """

    name: str
    meaning: str
    dropped: tuple[int, ...]
    runs: Runs
    merged: Runs
    damage: float | None


def control_plans(
    blueprint: Blueprint, evidence: Evidence, budget: PlanSettings, allows: Allows = anything
) -> list[ControlPlan]:
    """Children of the same size as ``blueprint``, by the rules; a rule that finds none of this size is left out.

    * middle: see :func:`_middle`; a control that looks at no evidence.
    * paper rule: see :func:`_paper_rule`.
    * greedy rule: see ``analysis.greedy``.

    Args:
        budget: its ``norm`` and ``max_width`` hold for all rules, ``max_damage`` and ``repair`` for the greedy one.
        allows: the choices that the greedy rule may take, those that the engines asked for load.

    Returns:
        Nothing for a child without a fused run: all rules but the first are then the exact programme. The greedy rule
        alone where FFNs are dropped or blocks put side by side, nothing where some are narrowed: the others know no
        such changes.
    """
    size = size_of(blueprint)
    if any(block.ffn.kind == "narrowed" for block in blueprint.blocks) or not (size.fused or size.ffns):
        return []
    greedy_rule = partial(_greedy_rule, allows=allows)
    rules = (greedy_rule,) if size.ffns or blueprint.merged else (_middle, _paper_rule, greedy_rule)
    return [found for rule in rules if (found := rule(evidence, size, budget))]


def compare(
    blueprint: Blueprint, evidence: Evidence, budget: PlanSettings, allows: Allows = anything
) -> tuple[Compared, ...]:
    """The exact programme's ``blueprint`` beside every rule's of the same size, with summed measured damages."""
    table = choices_within(evidence, budget.model_copy(update={"max_damage": np.inf}))
    exact = ControlPlan("exact programme", "the least summed measured damage of this size", blueprint)
    found = []
    for plan in (exact, *control_plans(blueprint, evidence, budget, allows)):
        made = made_of(plan.blueprint, table)
        damage, child = made.score if made else None, plan.blueprint
        found.append(Compared(plan.name, plan.meaning, child.dropped_attentions, child.runs, child.merged, damage))
    return tuple(found)


def _middle(evidence: Evidence, size: Size, budget: PlanSettings) -> ControlPlan | None:
    """The consecutive attentions in the middle of the model, and one run over their FFNs."""
    with_attention = [i for i, block in enumerate(evidence.parent.blocks) if block.attention]
    drop = size.attentions
    start = (len(with_attention) - drop) // 2
    dropped = with_attention[start : start + drop]
    runs = _runs(evidence, dropped, size.fused, budget.max_width, by_dependency=False) if drop else ()
    meaning = f"the {drop} attentions in the middle of the model dropped, as many FFNs fused, from the front"
    return _control("middle", meaning, evidence, dropped, runs, size, budget)


def _paper_rule(evidence: Evidence, size: Size, budget: PlanSettings) -> ControlPlan | None:
    """The attentions that matter least; then the runs that depend least on one another, but for their last FFNs.

    arXiv 2503.18908 fuses the attention-free run of low dependency without its last FFN, and gives no algorithm. Our
    reading, where it is silent: replace-1 (KL) stands in for Puzzle's choice of attentions; a run's dependency is
    the mean of the block matrix M over the upper triangle of its square, and the least dependent run is fused
    first; the run that isn't needed whole is fused from its front; where leaving the last FFNs out fuses too
    little they join, and where that is too little as well, so do the FFNs of the blocks before, which keep their
    attention. Without a matrix, runs are taken from the front of the model. Repaired damages aren't looked at.
    """
    drop = size.attentions
    dropped = sorted(row.block for row in sorted(evidence.importance, key=lambda row: row.damage.kl)[:drop])
    runs = _runs(evidence, dropped, size.fused, budget.max_width, by_dependency=True)
    which = f"the {drop} attentions with the least replace-1 damage" if drop else "no attention"
    order = "the least dependent run" if "block.mean" in evidence.matrices else "the front"
    meaning = f"{which} dropped, as many FFNs fused, from {order} on"
    return _control("paper rule", meaning, evidence, dropped, runs, size, budget)


def _control(
    name: str, meaning: str, evidence: Evidence, dropped: Sequence[int], runs: Runs, size: Size, budget: PlanSettings
) -> ControlPlan | None:
    """The child, if the rule found one of the size: it may not, where not every attention was scored."""
    if not runs or len(dropped) != size.attentions:
        return None
    return ControlPlan(name, meaning, Blueprint.identity(evidence.parent).apply(dropped, runs, norm=budget.norm))


def _greedy_rule(evidence: Evidence, size: Size, budget: PlanSettings, allows: Allows) -> ControlPlan | None:
    table = choices_within(evidence, budget.model_copy(update={"narrow": ()})).where(allows)
    chosen = greedy(table, size)
    if chosen is None:
        return None
    meaning = "the measured change with the least damage per step saved taken, again and again"
    return ControlPlan("greedy rule", meaning, chosen.blueprint(evidence.parent))


def _runs(
    evidence: Evidence, dropped: Sequence[int], steps: int, max_width: int | None, *, by_dependency: bool
) -> Runs:
    """Runs that fuse away ``steps`` FFN steps over the attention-free blocks; none if that can't be done.

    As the paper fuses, with the last FFN left out, if that is enough; else with it, else headed by the block before.
    """
    identity = Blueprint.identity(evidence.parent)
    fusible = [
        b.ffn is not None and b.ffn.kind != "linear" and (max_width is None or b.ffn_width <= max_width)
        for b in evidence.parent.blocks
    ]
    free = _free_runs(evidence, set(dropped), fusible)
    if by_dependency:
        free.sort(key=lambda run: _dependency(evidence, run))
    for head, last in ((0, -1), (0, 0), (-1, 0)):
        runs: list[tuple[int, int]] = []
        missing = steps
        for first, end in free:
            begin = first + head if first + head >= 0 and fusible[first + head] else first
            for part_first, part_last in identity.split(begin, end + last, max_width):
                take = min(part_last - part_first, missing)
                if take > 0:
                    runs.append((part_first, part_first + take))
                    missing -= take
        if not missing:
            return tuple(sorted(runs))
    return ()


def _dependency(evidence: Evidence, run: tuple[int, int]) -> float:
    """Mean of M over the upper triangle of the run's square; a block alone has none and comes last."""
    if "block.mean" not in evidence.matrices or run[0] == run[1]:
        return np.inf
    inside = slice(run[0], run[1] + 1)
    square = evidence.dependency("block")[inside, inside]
    values = square[np.triu_indices(len(square), k=1)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.inf


def _free_runs(evidence: Evidence, dropped: set[int], fusible: Sequence[bool]) -> list[tuple[int, int]]:
    """The longest runs of blocks without attention and with an FFN that can be fused."""
    found: list[tuple[int, int]] = []
    for i, block in enumerate(evidence.parent.blocks):
        if (block.attention is None or i in dropped) and fusible[i]:
            if found and found[-1][1] == i - 1:
                found[-1] = (found[-1][0], i)
            else:
                found.append((i, i))
    return found
